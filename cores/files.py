"""JSON files: read strictly and within bounds, written whole or not at all."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

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
        text = path.read_text(encoding="utf-8-sig")
        hooks = (_refuse, _finite) if finite else (None, None)
        value = json.loads(text, parse_constant=hooks[0], parse_float=hooks[1])
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, not an object")
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


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)
