"""Folders of finished stages, damaged by hand and at random: a whole parent, or a UserError."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _damage import CONFIG, RANDOMLY, WEIGHTS, damage_at_random, instead, keys, one_paragraph
from _stages import config, facts
from hypothesis import given
from hypothesis import strategies as st

from cores.config import plain
from cores.errors import UserError
from cores.runtime.fingerprint import model_files
from cores.runtime.parents import load_parents, parent_facts, stale_parents

PARTS = ("stage", "version", "files", "tokenizer", "vocab_size", "parents", "config")
RECORDS: dict[str, bytes | dict[str, Any]] = {
    **{f"{part} is {value!r}": {part: value} for part in PARTS for value in (None, [], 2.5)},
    **{f"{part} is text": {part: "x"} for part in PARTS if part != "tokenizer"},
    "template a list": {"config": {"template": []}},
    "template none": {"config": {"template": None}},
    "template empty": {"config": {"template": {}}},
    "no template": {"config": {}},
    "no files": {"files": {}},
    "files without weights": {"files": {"config.json": "0"}},
    "a file outside": {"files": {"../model.safetensors": "0"}},
    "an absolute file": {"files": {"/etc/model.safetensors": "0"}},
    "parents of text": {"parents": {"base": "x"}},
    "parents' files a list": {"parents": {"base": {"files": []}}},
    "another stage's": {"stage": "reward"},
    "version below": {"version": -1},
    "NaN": b'{"stage": NaN}',
    "cut": b'{"stage": "sft", "files"',
    "a list": b"[]",
    "deep": b'{"a":' * 100_000,
    "digits": b'{"vocab_size": 1' + b"0" * 5000 + b"}",
    "not UTF-8": b"\xff\xfe\x00",
    "empty": b"",
}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output_dir with a finished stage, whose weights are no weights."""
    root = tmp_path_factory.mktemp("run")
    folder = root / "sft"
    folder.mkdir()
    for name in (WEIGHTS, CONFIG, "adapter/adapter_model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    base = {"base": {"folder": "x", "files": {WEIGHTS: "0"}}}
    record = {"stage": "sft", **facts(parents=base), "files": model_files(folder)}
    record["config"] = plain(config(root))
    (folder / "stage.json").write_text(json.dumps(record), "utf-8")
    return root


def read_parent(root: Path) -> dict[str, Any]:
    parents = load_parents(config(root), ["sft"])
    stale_parents(parents)
    return parent_facts(parents)


def said_of(root: Path) -> str:
    with pytest.raises(UserError) as error:
        read_parent(root)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_of_another_form_is_damaged(kind: str, stage: Path, tmp_path: Path) -> None:
    """By its path, with the remedy."""
    root = Path(shutil.copytree(stage, tmp_path / "run"))
    path, damage = root / "sft" / "stage.json", RECORDS[kind]
    if isinstance(damage, bytes):
        path.write_bytes(damage)
    else:
        keys("stage.json", **damage)(root / "sft")
    said = said_of(root)
    assert said.startswith(f"{path}: damaged ("), said
    assert said.endswith("Run stage1_sft.py again with --overwrite.")


def test_records_of_other_versions(stage: Path, tmp_path: Path) -> None:
    """None and the present one are read, as are keys that others added; a newer one is not."""
    root = Path(shutil.copytree(stage, tmp_path / "run"))
    read_parent(root)
    keys("stage.json", version=1, more={"a": [1]})(root / "sft")
    read_parent(root)
    keys("stage.json", version=2)(root / "sft")
    assert "written by a newer version of this program" in said_of(root)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_a_record_that_is_no_file(make: Callable[[Path], Any], stage: Path, tmp_path: Path) -> None:
    """A pipe would be waited for."""
    root = Path(shutil.copytree(stage, tmp_path / "run"))
    instead("stage.json", make)(root / "sft")
    assert "stage.json: damaged (no regular file)" in said_of(root)


def test_weights_that_the_stage_did_not_write(stage: Path, tmp_path: Path) -> None:
    """They would be loaded in the place of its own, or with them; notes beside them may be."""
    root = Path(shutil.copytree(stage, tmp_path / "run"))
    for name in ("notes.json", "state.json", "checkpoints/1/model.safetensors", "weights/a.bin"):
        (root / "sft" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sft" / name).write_text("{}")
    read_parent(root)
    (root / "sft" / "more.safetensors").write_text("x")
    assert "more.safetensors: the stage did not write it" in said_of(root)


def test_only_one_rank_need_hash(stage: Path, tmp_path: Path) -> None:
    """The others see that the files are there."""
    root = Path(shutil.copytree(stage, tmp_path / "run"))
    (root / "sft" / WEIGHTS).write_text("other")
    load_parents(config(root), ["sft"], hashed=False)
    assert "not the file that the stage wrote" in said_of(root)
    (root / "sft" / WEIGHTS).unlink()
    with pytest.raises(UserError, match="missing; the checkpoint is damaged"):
        load_parents(config(root), ["sft"], hashed=False)


@RANDOMLY
@given(data=st.data())
def test_any_damage_to_a_stage(data: st.DataObject, stage: Path, tmp_path: Path) -> None:
    """stage.json or a file that it lists."""
    root = tmp_path / "run"
    if root.exists():
        shutil.rmtree(root)
    shutil.copytree(stage, root)
    shutil.rmtree(root / "sft" / "adapter")
    whole = read_parent(stage)["sft"]["files"]
    damaged = damage_at_random(data, root / "sft")
    found = one_paragraph(read_parent, root)
    # What is read of damaged files is what their digests say; of a damaged record, what it says.
    assert found is None or damaged == "stage.json" or found["sft"]["files"] == whole
