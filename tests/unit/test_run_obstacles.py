"""What stands where a run wants to write: damage, and what others put there."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from _models import LAUNCH
from _stages import begun, config, write
from test_run_stage import break_off, names, record

from cores import files
from cores.errors import UserError
from cores.run import StageRun


def refused(root: Path, **options: Any) -> str:
    """What is said at the claim, which leaves everything as it was."""
    before = sorted(root.rglob("*"))
    run = StageRun(config(root, **options), "sft", LAUNCH, 0.0)
    with pytest.raises(UserError) as error, run:
        run.claim()
    assert sorted(root.rglob("*")) == before
    return str(error.value)


@pytest.mark.parametrize(
    "state", ["{}", '{"config": null, "facts": {}}', '{"config": {}, "facts": []}', "[]", "\x00"]
)
def test_a_damaged_state(tmp_path: Path, state: str) -> None:
    """Named, with the way out, which works."""
    path = break_off(config(tmp_path), 3)
    (path / "state.json").write_text(state)
    said = refused(tmp_path)
    assert said.startswith(f"{path / 'state.json'}: ")
    assert "--resume never" in said
    assert begun(config(tmp_path, resume="never")).resumed is None


def test_damaged_rows_go(tmp_path: Path) -> None:
    """Those that can be read stay."""
    path = break_off(config(tmp_path), 1, 3)
    rows = (path / "metrics.jsonl").read_bytes()
    (path / "metrics.jsonl").write_bytes(b"\xff\xfe\x00\n" + rows)
    begun(config(tmp_path))
    assert (path / "metrics.jsonl").read_bytes() == rows


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_rows_go_to_a_file_alone(tmp_path: Path, name: str) -> None:
    """A pipe would be waited for without an end."""
    path = break_off(config(tmp_path), 1, 3)
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    with pytest.raises(UserError, match=f"{name} is no ordinary file"):
        begun(config(tmp_path))


@pytest.mark.parametrize("name", ["sft", "sft.unfinished", ".sft.before"])
@pytest.mark.parametrize("what", ["file", "dangling", "notes"])
def test_what_no_run_wrote_is_not_removed(tmp_path: Path, name: str, what: str) -> None:
    """Whatever is asked for."""
    place = tmp_path / name
    if what == "file":
        place.write_text("mine")
    elif what == "dangling":
        place.symlink_to(tmp_path / "none")
    else:
        place.mkdir()
        (place / "diary.txt").write_text("mine")
    for options in ({}, {"overwrite": True}, {"resume": "never"}):
        said = refused(tmp_path, **options)
        assert said.startswith(f"{place}: ")
        assert "that no run wrote (diary.txt)" in said or "is no folder" in said


def test_a_linked_folder_of_a_run(tmp_path: Path) -> None:
    """Of a link the link alone is removed."""
    path = break_off(config(tmp_path), 3)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert begun(config(tmp_path, resume="never")).resumed is None
    assert not path.is_symlink()
    assert names(tmp_path / "elsewhere" / "checkpoints") == {"step-3"}


def test_a_kill_while_a_folder_is_removed(tmp_path: Path) -> None:
    """What is left of it is removed by the next run."""
    gone = tmp_path / ".sft.removed"
    (gone / "checkpoints").mkdir(parents=True)
    begun(config(tmp_path))
    assert not gone.exists()


@pytest.mark.parametrize("kind", ["dangling", "file"])
def test_a_checkpoint_in_the_way(tmp_path: Path, kind: str) -> None:
    """Of the number of the next one: passed over, and replaced."""
    path = break_off(config(tmp_path), 1)
    place = path / "checkpoints" / "step-3"
    place.symlink_to(tmp_path / "none") if kind == "dangling" else place.write_text("x")
    break_off(config(tmp_path), 3)
    assert record(place / "manifest.json")["step"] == 3
    assert json.loads((place / "state.json").read_text())


def test_rows_end_where_lines_end(tmp_path: Path) -> None:
    """Other characters that end a line for some are part of a reply."""
    path = break_off(config(tmp_path), 1, 3)
    row = json.dumps({"update": 1, "reply": "a\u2028b\x85c"}, ensure_ascii=False) + "\n"
    (path / "samples.jsonl").write_text(row, encoding="utf-8")
    begun(config(tmp_path))
    assert (path / "samples.jsonl").read_text(encoding="utf-8") == row


@pytest.mark.parametrize("what", ["stage", "notes", "file"])
def test_what_comes_to_stand_there_meanwhile(tmp_path: Path, what: str) -> None:
    """It is not removed; the run can be finished when it is away."""
    final = tmp_path / "sft"
    run = begun(config(tmp_path))
    if what == "file":
        final.write_text("mine")
    else:
        final.mkdir()
        (final / ("stage.json" if what == "stage" else "diary.txt")).write_text("{}")
    before = sorted(final.rglob("*"))
    with pytest.raises(UserError, match=f"{final}: "), run:
        run.finish(lambda to: None, {})
    assert sorted(final.rglob("*")) == before
    assert (run.path / "state.json").exists()


def test_a_newer_unfinished_run_is_refused(tmp_path: Path) -> None:
    """By its state.json, before anything is touched; `--resume never` removes it."""
    path = break_off(config(tmp_path), 3)
    state = record(path / "state.json")
    (path / "state.json").write_text(json.dumps({**state, "version": 2}))
    with (
        pytest.raises(UserError, match=r"state\.json: written by a newer version of this program"),
        StageRun(config(tmp_path), "sft", LAUNCH, 0.0) as run,
    ):
        run.claim()
    assert record(path / "state.json")["version"] == 2
    assert names(path / "checkpoints") == {"step-3"}
    assert begun(config(tmp_path, resume="never")).resumed is None


def test_an_output_dir_that_is_a_file(tmp_path: Path) -> None:
    """Invariant 30: found before anything is computed."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output_dir: .*/file is a file, not a folder"):
        StageRun(config(tmp_path / "file" / "run"), "sft", LAUNCH, 0.0).claim()


def test_weights_of_a_try_without_a_checkpoint(tmp_path: Path) -> None:
    """They are of other options, perhaps; those of a run that goes on stay."""
    for steps, stay in (((), False), ((3,), True)):
        path = break_off(config(tmp_path), *steps)
        (path / "weights" / "step-1").mkdir(parents=True, exist_ok=True)
        begun(config(tmp_path))
        assert (path / "weights").exists() is stay


def test_a_kill_while_the_folder_is_made(tmp_path: Path) -> None:
    """Before state.json has its name: the next run begins there."""
    path = tmp_path / "sft.unfinished"
    path.mkdir()
    (path / ".state.json.partial").write_text("{")
    assert begun(config(tmp_path)).resumed is None
    assert names(path) >= {"state.json"}
    assert ".state.json.partial" not in names(path)


def test_a_kill_between_two_renames(tmp_path: Path) -> None:
    """The old stage is put back from `.<stage>.before`, and the new one can go on."""
    path = break_off(config(tmp_path), 3)
    write(tmp_path / "other", "sft", "old").rename(tmp_path / ".sft.before")
    run = begun(config(tmp_path, overwrite=True))
    assert run.resumed is not None
    assert (run.path, names(tmp_path)) == (path, {".sft.lock", "other", "sft", "sft.unfinished"})
    assert (tmp_path / "sft" / "model.safetensors").read_text() == "old"


def test_a_kill_before_the_third_rename(tmp_path: Path) -> None:
    """The new stage has its place, and the older one goes."""
    write(tmp_path, "sft", "new")
    write(tmp_path / "other", "sft", "old").rename(tmp_path / ".sft.before")
    begun(config(tmp_path, overwrite=True))
    assert not (tmp_path / ".sft.before").exists()
    assert (tmp_path / "sft" / "model.safetensors").read_text() == "new"


def test_a_copy_of_a_stage_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the name that anyone would give it, where names are not exchanged either."""
    monkeypatch.setattr(files, "RENAME_EXCHANGE", 1 << 30)  # EINVAL
    write(tmp_path, "sft", "mine").rename(tmp_path / "sft.before")
    for text in ("old", "new"):
        write(tmp_path, "sft", text)
    assert (tmp_path / "sft.before" / "model.safetensors").read_text() == "mine"
    assert (tmp_path / "sft" / "model.safetensors").read_text() == "new"


def test_a_kill_behind_the_exchange(tmp_path: Path) -> None:
    """The new stage has its place and keeps it, cleaned; the older one is no unfinished run."""
    folder = write(tmp_path, "sft", "new")
    (folder / "checkpoints").mkdir()
    (folder / "state.json").write_text("{}")
    older = write(tmp_path / "other", "sft", "old")
    older.rename(tmp_path / "sft.unfinished")
    with (
        pytest.raises(UserError, match="exists already"),
        StageRun(config(tmp_path), "sft", LAUNCH, 0.0) as run,
    ):
        run.claim()
    assert names(tmp_path) == {"sft", "other"}
    assert not {"checkpoints", "state.json"} & names(folder)
    assert (folder / "model.safetensors").read_text() == "new"
