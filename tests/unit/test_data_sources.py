"""Reading files, folders and hub ids: what is read, and how each mistake is named."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest
from _data_helpers import read, refused, rows

from cores.config.data import SourceSection
from cores.data.sources import sources
from cores.errors import UserError

ROWS = [{"prompt": "a, b", "completion": "1"}, {"prompt": "你好\nc", "completion": "2"}]
CONTENTS = {
    "rows.jsonl": '{"prompt": "a, b", "completion": "1"}\n\n'
    '{"prompt": "你好\\nc", "completion": "2"}\n',
    "rows.json": '[\n{"prompt": "a, b", "completion": "1"},\n'
    '{"prompt": "你好\\nc", "completion": "2"}\n]\n',
    "rows.csv": 'prompt,completion\n"a, b",1\n"你好\nc",2\n',
    "rows.tsv": 'prompt\tcompletion\na, b\t1\n"你好\nc"\t2\n',
}
CONTENTS["lines.json"] = CONTENTS["rows.jsonl"]
CONTENTS["inside.json"] = (
    '{"info": {"of": [{"a": 1}]}, "tags": ["x"], "none": [],\n"rows":' + CONTENTS["rows.json"] + "}"
)


@pytest.mark.parametrize("name", CONTENTS)
def test_text_files_give_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(CONTENTS[name], encoding="utf-8")
    source = read(tmp_path / name)
    assert [row.columns for row in rows(source)] == ROWS
    digest = hashlib.sha256(CONTENTS[name].encode()).hexdigest()
    assert source.fingerprints == {name: digest}


def test_rows_know_their_lines(tmp_path: Path) -> None:
    known = {"rows.jsonl": [1, 3], "rows.json": [2, 3], "rows.csv": [2, 3], "rows.tsv": [2, 3]}
    for name, lines in (known | {"lines.json": [1, 3], "inside.json": [3, 4]}).items():
        path = tmp_path / name
        path.write_text(CONTENTS[name], encoding="utf-8")
        assert [row.where for row in rows(read(path))] == [f"{path}:{line}" for line in lines]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    source = read(path)
    assert [row.columns for row in rows(source)] == ROWS
    assert rows(source)[1].where == f"{path}, row 2"
    path.write_bytes(b"PAR1 not really")
    assert f"{path}: not a readable Parquet file" in refused(path)


def test_csv_values_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\nNA,007\n1e3,None\n")
    assert [list(row.columns.values()) for row in rows(read(path))] == [
        ["NA", "007"],
        ["1e3", "None"],
    ]


def test_folder_limit_and_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("ignored")
    (tmp_path / "b.jsonl").write_text('{"text": "3"}\n{"text": "4"}\n')
    (tmp_path / "a.jsonl").write_text('\ufeff{"text": "1"}\n{"text": "2"}\n', encoding="utf-8")
    source = read(tmp_path)
    assert [row.columns["text"] for row in rows(source)] == ["1", "2", "3", "4"]
    assert sorted(source.fingerprints) == ["a.jsonl", "b.jsonl"]
    assert [row.columns["text"] for row in rows(read(tmp_path, limit=3))] == ["1", "2", "3"]


def test_changed_content_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "old"}\n')
    before = read(path)
    path.write_text('{"text": "new"}\n')
    after = read(path)
    assert rows(after)[0].columns == {"text": "new"}
    assert before.fingerprints != after.fingerprints


@pytest.mark.parametrize(
    ("name", "content", "line", "reason"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', 2, "bad JSON"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', 2, "must be a JSON object"),
        ("a.jsonl", '{"text": "x"} {"text": "y"}\n', 1, "more than one JSON value"),
        ("a.jsonl", "[" * 100_000, 1, "bad JSON"),
        ("a.jsonl", '{"text": "x\n{"text": "y"}\n', 1, "not closed, or the row is cut off (char"),
        ("a.jsonl", '{"text": "x', 1, "not closed, or the row is cut off (character 10 of"),
        ("a.jsonl", '{"text": "x\ty"}\n', 1, "Invalid control character (character 12 of"),
        ("a.json", '[{"text": "x"},\n\n{"text" "y"}]', 3, "bad JSON"),
        ("a.json", '[{"text": "x"},\n3]', 2, "must be a JSON object"),
        ("a.json", '[\n{"text": "x"}\n{"text": "y"}]', 2, "comma"),
        ("a.json", '[\n{"text": "x"},\n', 3, "bad JSON"),
        ("a.csv", "a,b\n1,2\n1,2,3\n", 3, "3 values for the 2 columns a, b"),
        ("a.csv", 'a,b\n1,2\n"1,2\n', 3, "malformed CSV"),
        ("a.csv", "a,b,a\n1,2,3\n", 1, "the header names a more than once"),
        ("a.csv", "a;b\n1,2\n", 2, "The header looks separated by semicolons"),
        ("a.csv", "a\tb\n1,2\n", 2, "The header looks separated by tabs: .csv needs commas"),
        ("a.tsv", "a\tb\n1\t2\n1,2\n", 3, "1 values for the 2 columns a, b; quote values that"),
        ("a.tsv", "a,b\n1,2\n3\t4\n", 3, "The header looks separated by commas"),
        ("a.csv", "a,b\n1,2\n3,\0\0\0\n", 3, "NUL bytes"),
        ("a.jsonl", '{"text": "x"}\n\0\0\0\n', 2, "NUL bytes"),
        ("a.jsonl", '{"text": "x", "text": "y"}', 1, "names 'text' twice"),
        ("a.json", '[\n{"a": {"b": 1, "b": 2}}]', 2, "names 'b' twice"),
        ("a.json", '[\n{"a": 1},\n]', 2, "no row follows the comma"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", 1, "a number of 5000 digits"),
        ("a.json", '[{"text": -' + "9" * 5000 + "}]", 1, "a number of 5001 digits"),
        ("a.jsonl", '[{"text": "x"}]', 1, "must be a JSON object"),
        (
            "a.jsonl",
            '[{"text": "x"},\n{"text": "y"}]',
            1,
            "a list of objects a .json file",
        ),
        ("a.jsonl", '{"text": "x"},\n', 1, "text follows the first"),
        ("a.jsonl", '{"text": "x"}\r{"text": "y"}\r', 1, "one object a line"),
    ],
)
def test_malformed_rows_are_named(
    tmp_path: Path, name: str, content: str, line: int, reason: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    message = refused(path)
    assert f"{path}:{line}: " in message
    assert reason in message


def test_json_must_be_one_list(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[] []")
    assert "follows the end" in refused(path)
    path.write_text('"x"')
    assert "must hold one list of objects, but it starts with '\"'" in refused(path)


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n{"text": "caf\xe9"}\n')
    message = refused(path)
    assert f"{path}:2: not UTF-8" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", "\n \n"), ("a.json", "[]"), ("b.json", ""), ("a.csv", "a,b\n"), ("b.csv", "")],
)
def test_empty_sources(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    message = refused(tmp_path / name)
    assert "holds no rows" in message
    assert "data.sft.path" in message


@pytest.mark.parametrize("path", ["gone.jsonl", "./gone", "~/gone-too", "a/b/c", "/gone/x.csv"])
def test_missing_files_name_the_key(path: str) -> None:
    message = refused(path)
    assert message.startswith("data.sft.path ")
    assert "does not exist" in message


def test_unreadable_choices(tmp_path: Path) -> None:
    assert "without any data file" in refused(tmp_path)
    (tmp_path / "a.doc").write_text("x")
    assert "no known suffix" in refused(tmp_path / "a.doc")
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    assert "several kinds (.csv, .jsonl)" in refused(tmp_path)
    with pytest.raises(UserError, match=r"data\.sft\.path is not set"):
        sources(SourceSection(), "data.sft")


def test_held_out_rows_of_another_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    other = tmp_path / "b.jsonl"
    other.write_text('{"text": "y"}\n')
    assert sources(SourceSection(path=str(path)), "data.sft")[1] is None
    _, source = sources(SourceSection(path=str(path), test_path=str(other)), "data.sft")
    assert rows(source)[0].columns == {"text": "y"}
    with pytest.raises(UserError, match=r"data\.sft\.test_path 'gone.jsonl' does not exist"):
        sources(SourceSection(path=str(path), test_path="gone.jsonl"), "data.sft")
    with pytest.raises(UserError, match="files have no splits"):
        sources(SourceSection(path=str(path), test_split="test"), "data.sft")


def test_hub_out_of_reach_is_told_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    message = refused("nobody/no-such-set")
    assert time.monotonic() - start < 5
    assert "could not be fetched from the Hugging Face hub" in message
    assert "--data.sft.path FILE" in message


def test_hub_offline_uses_the_cache_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert "--data.sft.path FILE" in refused("nobody/no-such-set")


def test_hub_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(
        path: str, name: str | None, split: str, streaming: bool, revision: str | None
    ) -> Any:
        asked.append((path, name, split, revision))
        table = datasets.Dataset.from_list([{"text": f"{split} {i}"} for i in range(5)])
        address = f"hf://datasets/owner/set@{'0af1' * 10}/data/{split}.parquet"
        table.info.download_checksums = {address: {"num_bytes": 1, "checksum": None}}
        return table.to_iterable_dataset() if streaming else table

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    section = SourceSection(path="owner/set", name="small", test_split="test", limit=2)
    train, test = sources(section, "data.sft")
    assert asked == [("owner/set", "small", s, None) for s in ("train", "test")]
    assert train.fingerprints["owner/set, commit"] == "0af1" * 10
    sources(replace(section, revision="v2"), "data.sft")
    assert asked[-1] == ("owner/set", "small", "test", "v2")
    assert [row.columns["text"] for row in rows(train)] == ["train 0", "train 1"]
    assert [row.columns["text"] for row in rows(test)] == ["test 0", "test 1"]
    assert rows(train)[1].where == "owner/set (train), row 2"
    assert len(train.fingerprints["owner/set"]) >= 16
    stream, held_out = sources(section, "data.sft", streaming=True)
    for _ in range(2):
        assert rows(stream) == rows(train)
    assert rows(held_out) == rows(test)


def test_a_revision_of_a_local_path(tmp_path: Path) -> None:
    """It would be without effect."""
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "one"}\n', encoding="utf-8")
    message = refused(file, revision="v2")
    assert "revision is for hub data sets; remove data.sft.revision" in message


def test_a_folder_that_datasets_saved(tmp_path: Path) -> None:
    """Its rows and the digest of its files; of several splits the one that is asked for."""
    made = datasets.Dataset.from_list([{"text": "one"}, {"text": "two"}])
    made.save_to_disk(str(tmp_path / "saved"))
    source = read(tmp_path / "saved")
    assert [row.columns for row in rows(source)] == [{"text": "one"}, {"text": "two"}]
    assert list(source.fingerprints) == ["data-00000-of-00001.arrow"]
    both = datasets.DatasetDict({"train": made, "test": made.select([1])})
    both.save_to_disk(str(tmp_path / "both"))
    assert len(rows(read(tmp_path / "both"))) == 2
    (row,) = rows(read(tmp_path / "both", split="test"))
    assert (row.where, row.columns) == (f"{tmp_path / 'both'} (test), row 1", {"text": "two"})
    assert "with the splits test, train, not 'dev'" in refused(tmp_path / "both", split="dev")
    _, held = sources(SourceSection(path=str(tmp_path / "both"), test_split="test"), "data.sft")
    assert [row.columns["text"] for row in rows(held)] == ["two"]
    assert "without splits, so there is no 'test'" in refused(tmp_path / "saved", split="test")
    section = SourceSection(path=str(tmp_path / "both"), test_path=str(tmp_path / "saved"))
    _, held = sources(section, "data.sft")
    assert [row.columns["text"] for row in rows(held)] == ["one", "two"]
    section = SourceSection(path=str(tmp_path / "saved"), test_path=str(tmp_path / "both"))
    _, held = sources(section, "data.sft")
    assert [row.columns["text"] for row in rows(held)] == ["two"], "not its training rows"
    datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "alone"))
    section = SourceSection(path=str(tmp_path / "saved"), test_path=str(tmp_path / "alone"))
    _, held = sources(section, "data.sft")
    assert len(rows(held)) == 2
