"""Checkpoints: whole or absent, and known from damaged ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _stages import state
from safetensors.torch import load_file

from cores.errors import UserError
from cores.run import checkpoint
from cores.run.checkpoint import State, newest, rotate, write


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Tensors of every kind by file and name, numbers as they were; nothing beside."""
    tensors = {
        "weights": {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(2.0)},
        "adam": {"a.step": torch.tensor(7.0), "a.half": torch.ones(3, dtype=torch.bfloat16)},
    }
    folder = write(tmp_path, 12, State(tensors, {"x": 0.1, "rows": [1, None]}))
    assert folder == tmp_path / "step-12"
    assert [p.name for p in tmp_path.iterdir()] == ["step-12"]
    found, notes = newest(tmp_path)
    assert found is not None
    assert (found.folder, found.step, found.numbers, notes) == (
        folder, 12, {"x": 0.1, "rows": [1, None]}, [],
    )  # fmt: skip
    for file, named in tensors.items():
        reader = found.tensors(file)
        assert reader.names == set(named)
        for name, tensor in named.items():
            assert torch.equal(reader[name], tensor)
            assert reader[name].dtype == tensor.dtype


def test_a_tensor_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path, 1, state(1))
    found, _ = newest(tmp_path)
    assert found is not None
    with pytest.raises(UserError, match=r"weights\.safetensors: there is no tensor v in it"):
        found.tensors("weights")["v"]


def change(folder: Path, key: str, value: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tensors cut": (
        lambda f: (f / "weights.safetensors").write_bytes(
            (f / "weights.safetensors").read_bytes()[:-1]
        ),
        "weights.safetensors is not what was written",
    ),
    "tensors edited": (
        lambda f: (f / "weights.safetensors").write_bytes(
            (f / "weights.safetensors").read_bytes()[:-1] + b"x"
        ),
        "weights.safetensors is not what was written",
    ),
    "tensors gone": (lambda f: (f / "weights.safetensors").unlink(), "FileNotFoundError"),
    "numbers edited": (
        lambda f: (f / "state.json").write_text('{"at": 9}'),
        "state.json is not what was written",
    ),
    "numbers gone": (lambda f: (f / "state.json").unlink(), "FileNotFoundError"),
    "manifest gone": (lambda f: (f / "manifest.json").unlink(), "no such file"),
    "manifest cut": (lambda f: (f / "manifest.json").write_text('{"version": 1,'), "damaged"),
    "manifest of nothing": (lambda f: (f / "manifest.json").write_text("{}"), "KeyError"),
    "manifest of another step": (lambda f: change(f, "step", 1), "its manifest is of another"),
    "manifest without numbers": (lambda f: change(f, "files", {}), "its manifest is of another"),
    "version of text": (lambda f: change(f, "version", "x"), "TypeError"),
    "files of text": (lambda f: change(f, "files", "x"), "AttributeError"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_passed_over(kind: str, tmp_path: Path) -> None:
    """By name, for the one before it; it stays for whoever wants to look."""
    for step in (2, 10):
        write(tmp_path, step, state(step))
    damage, says = DAMAGE[kind]
    damage(tmp_path / "step-10")
    found, (note,) = newest(tmp_path)
    assert found is not None
    assert (found.step, found.numbers) == (2, {"at": 2})
    assert note.startswith(f"note: {tmp_path / 'step-10'}: damaged (")
    assert says in note
    assert (tmp_path / "step-10").exists()


def test_when_all_are_damaged_there_is_none(tmp_path: Path) -> None:
    for step in (1, 2):
        (write(tmp_path, step, state(step)) / "state.json").unlink()
    found, notes = newest(tmp_path)
    assert found is None
    assert len(notes) == 2
    assert newest(tmp_path / "absent") == (None, [])


def test_one_of_a_newer_program_is_no_damage(tmp_path: Path) -> None:
    """It is not passed over, which would lose its steps."""
    change(write(tmp_path, 3, state(3)), "version", 2)
    with pytest.raises(UserError, match=r"step-3: written by a newer version of this program"):
        newest(tmp_path)


def test_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    """When the run comes to its step again."""
    (write(tmp_path, 3, state(3)) / "weights.safetensors").write_text("x")
    write(tmp_path, 3, state(3))
    found, notes = newest(tmp_path)
    assert found is not None
    assert (found.step, notes) == (3, [])


def test_steps_are_numbers(tmp_path: Path) -> None:
    """10 is newer than 9, and what is none is left alone."""
    for step in (9, 10):
        write(tmp_path, step, state(step))
    (tmp_path / "step-11.old").mkdir()
    found, _ = newest(tmp_path)
    assert found is not None
    assert found.step == 10
    assert checkpoint.steps(tmp_path) == [10, 9]


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 3):
        write(tmp_path, step, state(step))
    rotate(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [10, 3]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OSError, whatever the library's own is; the checkpoints before it are all there."""
    from safetensors import SafetensorError

    write(tmp_path, 1, state(1))

    def full(*_: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, 2, state(2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_a_kill_while_writing_leaves_no_checkpoint(tmp_path: Path) -> None:
    """What is half written has another name, and goes with the next one."""
    half = tmp_path / ".step-2.writing"
    half.mkdir(parents=True)
    (half / "weights.safetensors").write_text("half")
    assert newest(tmp_path) == (None, [])
    write(tmp_path, 3, state(3))
    assert [p.name for p in tmp_path.iterdir()] == ["step-3"]


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    """By their key, and nothing is left of it."""
    with pytest.raises(UserError, match=r"state\.json: loss\.0 \(nan\) is no finite number"):
        write(tmp_path, 2, state(2, loss=[float("nan")]))
    assert list(tmp_path.iterdir()) == []


def test_files_have_this_user_s_permissions(tmp_path: Path) -> None:
    """Not the library's 0600: a group may share an output_dir."""
    plain = tmp_path / "plain"
    plain.touch()
    folder = write(tmp_path, 1, state(1))
    assert {p.stat().st_mode for p in folder.iterdir()} == {plain.stat().st_mode}
    assert load_file(folder / "weights.safetensors")["w"].tolist() == [1.0] * 3
