"""Files and folders that are whole or absent, on the disk and under their name; JSON files, read
strictly and within bounds."""

import ctypes
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cores.errors import UserError

LARGEST = 64 * 2**20
"""Bytes of a record or configuration; a file beyond it is something else."""


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` in one step: a reader finds the old file or the whole new one.

    UserError names a number that JSON has no form for (NaN, infinity).
    """
    for key in not_finite(value, ""):
        raise UserError(f"{path}: {key} is no finite number, so the record would be no JSON.")
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # \udc80, JSON's own form of it
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def not_finite(value: Any, key: str = "") -> Iterator[str]:
    """Numbers in a JSON value that JSON has no form for, each by its key."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{key} ({value})"
    elif isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for name, part in items:
            yield from not_finite(part, f"{key}.{name}" if key else str(name))


def read_json(path: Path, remedy: str = "", finite: bool = True) -> dict[str, Any]:
    """The JSON object in `path`; UserError with the reason and `remedy` if it holds none.

    `finite`: NaN and Infinity, which are no JSON, are refused.
    """
    try:
        if not path.is_file():
            raise ValueError("no regular file" if path.exists() else "no such file")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20} MiB")
        if other := impostor(path):
            raise ValueError(other)
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, not an object")
        for key in not_finite(value) if finite else ():
            raise ValueError(f"{key} is no number of JSON")
    except (OSError, ValueError, RecursionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"{path}: damaged ({reason}). {remedy}".rstrip()) from None
    return value


def changes(was: Any, now: Any, place: str) -> Iterator[str]:
    """Where two values of JSON differ, each `place: before -> now`, long ones cut. A parent is what
    its files are, wherever they stand."""
    if isinstance(was, dict) and isinstance(now, dict):
        moved = {"folder"} if place.startswith("parents.") else set()
        for key in [key for key in {**was, **now} if key not in moved]:
            yield from changes(was.get(key), now.get(key), f"{place}.{key}")
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        for number, pair in enumerate(zip(was, now, strict=True)):
            yield from changes(*pair, f"{place}[{number}]")
    elif was != now:
        shown = (json.dumps(value, ensure_ascii=False) for value in (was, now))
        yield f"{place}: {' -> '.join(s if len(s) < 40 else f'{s[:13]}...' for s in shown)}"


def impostor(path: Path) -> str:
    """What stands in the place of a file that was not fetched; empty where it may be the file."""
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file: run `git lfs pull` there"
    return "a web page" if head.startswith(b"<") else "" if head else "empty"


AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Linux: of the working directory; let two names change places in one step."""


def sync(place: Path) -> None:
    """Wait until a file or folder is on the disk, whatever happens to the machine."""
    number = os.open(place, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_tree(folder: Path) -> None:
    """Every file of a folder, and the folders."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def remove(place: Path) -> None:
    """Whatever stands there, if anything; of a link the link alone."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def exchange(new: Path, old: Path) -> None:
    """Let the folders `new` and `old` change places, with no moment at which one is absent.

    Where the file system cannot (NFS), by way of `aside(old)`: see `settle`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(new), os.fsencode(old)
    done = getattr(libc, "renameat2", lambda *_: -1)(
        AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE
    )
    if done != 0:
        old.rename(aside(old))
        new.rename(old)
        aside(old).rename(new)
    sync(old.parent)


def aside(old: Path) -> Path:
    """Another name of the folder `old`, hidden: one such as `sft.before` is for people's copies."""
    return old.with_name(f".{old.name}.before")


def settle(old: Path) -> None:
    """Put `old` back where a kill in the middle of `exchange` left it aside, or, where the new one
    has its place, remove it."""
    if old.exists():
        remove(aside(old))
    elif aside(old).exists():
        aside(old).rename(old)
