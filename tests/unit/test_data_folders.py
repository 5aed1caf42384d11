"""Folders whose files are of several splits, or lie in folders of their own: never mixed."""

from pathlib import Path

import pytest
from _data_helpers import CHAT, config, read, refused, rows
from _tokenizers import chat_like

from cores.config.data import SourceSection
from cores.data import sft_data
from cores.data.sources import sources
from cores.errors import UserError


def folder(root: Path, *names: str) -> Path:
    """Files that hold their own name as a text."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{{"text": "{name}"}}\n' if name.endswith("l") else "about", "utf-8")
    return root


def texts(root: Path, **fields: object) -> tuple[list[str], list[str] | None]:
    """Those of the training rows and of the rows held out."""
    section = SourceSection(path=str(root), **fields)  # type: ignore[arg-type]
    train, test = sources(section, "data.sft")
    return [row.columns["text"] for row in rows(train)], (
        [row.columns["text"] for row in rows(test)] if test else None
    )


@pytest.mark.parametrize("held", ["test.jsonl", "desk_validation.jsonl", "dev-0.jsonl"])
def test_files_named_by_their_split(tmp_path: Path, held: str) -> None:
    """Rows of the others are held out."""
    folder(tmp_path, "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", held)
    train = ["train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"]
    assert texts(tmp_path) == (train, [held])


def test_which_split_is_held_out(tmp_path: Path) -> None:
    """Of several the one that is named; test_path and split as with a hub data set."""
    folder(tmp_path, "train.jsonl", "test.jsonl", "val.jsonl")
    with pytest.raises(UserError, match=r"splits test, validation; set data.sft.test_split to"):
        texts(tmp_path)
    assert texts(tmp_path, test_split="test") == (["train.jsonl"], ["test.jsonl"])
    with pytest.raises(UserError, match=r"test, train, validation, not 'dev'; set data.sft.split"):
        texts(tmp_path, test_split="dev")
    (tmp_path / "val.jsonl").unlink()
    assert texts(tmp_path, split="test", test_split="train") == (["test.jsonl"], ["train.jsonl"])
    other = folder(tmp_path / "other", "new.jsonl")
    assert texts(tmp_path, test_path=str(other)) == (["train.jsonl"], ["new.jsonl"])
    assert texts(other, test_path=str(tmp_path)) == (["new.jsonl"], ["test.jsonl"])


@pytest.mark.parametrize("other", ["more.jsonl", "test_train.jsonl"])
def test_a_mixture_is_refused(tmp_path: Path, other: str) -> None:
    """Held-out rows would be trained on."""
    folder(tmp_path, "test.jsonl", other)
    message = refused(tmp_path)
    assert f"holds test.jsonl beside {other}, so that held-out rows could be trained" in message


@pytest.mark.parametrize(
    "names", [("a.jsonl", "b.jsonl"), ("test.jsonl",), ("more.jsonl", "train.jsonl")]
)
def test_folders_without_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Files of one split alone, and files that no name holds out."""
    assert texts(folder(tmp_path, *names)) == (list(names), None)


def test_a_clone_of_a_hub_data_set(tmp_path: Path) -> None:
    """Its own files stand beside the data, which lie one folder down."""
    beside = ("README.md", "dataset_infos.json", ".git/x.jsonl", "license.txt")
    folder(tmp_path, *beside, "data/train-0.jsonl", "data/test-0.jsonl")
    assert texts(tmp_path) == (["data/train-0.jsonl"], ["data/test-0.jsonl"])
    folder(tmp_path, "more/a.jsonl")
    assert "holds data files in several folders (data, more); name the one" in refused(tmp_path)


def test_several_training_splits_of_a_hub_data_set(tmp_path: Path) -> None:
    """Parts of one file belong together; those of others hold the same prompts again, or others."""
    train, held = ("train_sft", "train_gen"), ("test_sft", "test_gen")
    folder(tmp_path, *(f"data/{name}-00000-of-00001.jsonl" for name in (*train, *held)))
    folder(tmp_path, "data/train_sft-00001-of-00002.jsonl")
    with pytest.raises(UserError, match=r"splits test_gen, test_sft, train_gen, train_sft, not 't"):
        texts(tmp_path)
    found, test = texts(tmp_path, split="train_sft", test_split="test_sft")
    assert found == [f"data/train_sft-0000{i}-of-0000{i + 1}.jsonl" for i in (0, 1)]
    assert test == ["data/test_sft-00000-of-00001.jsonl"]


def test_folders_named_by_their_split(tmp_path: Path) -> None:
    folder(tmp_path, "train/a.jsonl", "test/a.jsonl")
    assert texts(tmp_path) == (["train/a.jsonl"], ["test/a.jsonl"])
    assert [row.columns["text"] for row in rows(read(tmp_path / "test"))] == ["test/a.jsonl"]


def test_files_of_one_name(tmp_path: Path) -> None:
    """Each is known by its digest, so that a change in either is seen."""
    source = read(folder(tmp_path, "train_a/x.jsonl", "train_b/x.jsonl"))
    assert sorted(source.fingerprints) == ["train_a/x.jsonl", "train_b/x.jsonl"]
    assert len(set(source.fingerprints.values())) == 2


def test_the_report_names_the_splits(tmp_path: Path) -> None:
    folder(tmp_path, "train.jsonl", "test.jsonl")
    data = sft_data(config(str(tmp_path), CHAT, test_fraction=0.5), chat_like())
    assert data.report.lines() == [
        f"train: 1 of 1 rows of {tmp_path} (train) (text)",
        f"test: 1 of 1 rows of {tmp_path} (test) (text)",
    ]


def test_a_test_path_that_cannot_be_read(tmp_path: Path) -> None:
    """Told as for the path of training rows."""
    folder(tmp_path, "a.jsonl")
    with pytest.raises(UserError, match=r"^data.sft.test_path 'xxx.* cannot be read: File name"):
        texts(tmp_path, test_path="x" * 300)


@pytest.mark.parametrize("name", ["train.jsonl", "train.parquet", "train.csv"])
def test_a_clone_without_its_large_files(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(UserError, match=r"is a pointer of Git LFS, not the data; fetch it"):
        rows(read(tmp_path))
