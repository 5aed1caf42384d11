"""What a run goes on from: named whole tensors and numbers, in safetensors and JSON.

A folder `step-N` is whole or absent: written under another name, its manifest last, then renamed.
"""

import errno
import hashlib
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cores.errors import UserError
from cores.files import read_json, remove, sync, write_json

VERSION = 1
MANIFEST, NUMBERS = "manifest.json", "state.json"
WRITERS = 8
"""Files written and hashed at a time."""


@dataclass(frozen=True)
class State:
    """Everything that a step changes, as it is between two steps."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    """By file, then by name: whole tensors, whatever shards the launch has. On the main process;
    empty on others."""
    numbers: dict[str, Any]
    """JSON values."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole one on the disk."""

    folder: Path
    step: int
    numbers: dict[str, Any]

    def tensors(self, file: str) -> "Reader":
        """The tensors of one file by name, each read when it is asked for."""
        return Reader(self.folder / f"{file}.safetensors")

    def parts(self, prefix: str = "") -> "dict[str, Reader]":
        """Those of every file whose name begins with `prefix`, by what follows it."""
        files = sorted(path.stem for path in self.folder.glob(f"{prefix}*.safetensors"))
        return {file.removeprefix(prefix): self.tensors(file) for file in files}


class Reader:
    """Tensors by name, on the CPU."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = safe_open(path, framework="pt")
        self.names = set(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise UserError(
                f"{self.path}: there is no tensor {name} in it: it is of another model, or of "
                "another version of this program. Begin anew with --resume never."
            )
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


def write(root: Path, step: int, state: State) -> Path:
    """Write `root`/step-N. OSError if the disk is full or fails: nothing is left behind then."""
    final, aside = root / f"step-{step}", root / f".step-{step}.writing"
    for leftover in root.glob(".step-*.writing"):
        shutil.rmtree(leftover)
    aside.mkdir(parents=True)
    try:
        write_json(aside / NUMBERS, state.numbers)
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda item: _save(aside, *item), state.tensors.items()))
            paths = sorted(p for p in aside.iterdir() if p.name != MANIFEST)
            digests = pool.map(_facts, paths)
            files = {path.name: facts for path, facts in zip(paths, digests, strict=True)}
        write_json(aside / MANIFEST, {"version": VERSION, "step": step, "files": files})
        sync(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    remove(final)  # a damaged one that was passed over
    aside.rename(final)
    sync(root)
    return final


def _save(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    path = folder / f"{name}.safetensors"
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:  # it does not say OSError
        raise OSError(errno.EIO, str(error), str(path)) from error
    path.chmod((folder / NUMBERS).stat().st_mode)  # it writes for its owner alone
    sync(path)


def _facts(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size": path.stat().st_size, "sha256": digest}


def rotate(root: Path, keep: int) -> None:
    """Leave the newest `keep` checkpoints; called when a newer one is whole."""
    for _, folder in _found(root)[keep:]:
        remove(folder)


def newest(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a line for each damaged one passed over."""
    notes: list[str] = []
    for step, folder in _found(root):
        problem = damage(folder, step)
        if problem is None:
            return Checkpoint(folder, step, read_json(folder / NUMBERS)), notes
        notes.append(f"note: {folder}: damaged ({problem}); the one before it is used")
    return None, notes


def steps(root: Path) -> list[int]:
    """Steps of the checkpoints that stand there, whole or not, the newest first."""
    return [step for step, _ in _found(root)]


def damage(folder: Path, step: int) -> str | None:
    """What is wrong with a checkpoint, if anything. UserError if a newer program wrote it."""
    try:
        manifest = read_json(folder / MANIFEST)
        version, files = manifest["version"], manifest["files"]
        if version <= VERSION:
            wrong = [name for name, facts in files.items() if _facts(folder / name) != facts]
            if manifest["step"] != step or NUMBERS not in files:
                return "its manifest is of another"
            return f"{wrong[0]} is not what was written" if wrong else None
    except UserError as error:
        return str(error)
    except (OSError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    raise UserError(
        f"{folder}: written by a newer version of this program (checkpoints of form {version}, "
        f"known up to {VERSION}). Go on with that one."
    )


def _found(root: Path) -> list[tuple[int, Path]]:
    """Step and folder, the newest first."""
    folders = [p for p in root.glob("step-*") if p.name[5:].isdecimal()]
    return sorted(((int(p.name[5:]), p) for p in folders), reverse=True)
