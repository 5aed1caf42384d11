"""JSON that every reader takes, written whole or not at all."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cores.errors import UserError


def strict_json(value: Any, path: Path, indent: int | None = None) -> str:
    """`value` as JSON that every reader takes. UserError naming a number that is none."""
    for key, number in _numbers(value):
        if not math.isfinite(number):
            raise UserError(
                f"{path}: {key} is {number}, which is no number: something in this run has gone "
                "wrong before. Look at the last lines of metrics.jsonl beside it."
            )
    return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for i, inner in enumerate(value):
            yield from _numbers(inner, f"{key}[{i}]")


def write_json(path: Path, value: Any) -> None:
    """Put `value` into `path` at once: whoever reads finds the old text or the new."""
    text = strict_json(value, path, indent=2) + "\n"
    aside = path.with_name(f".{path.name}.writing")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


def read_json(path: Path) -> Any:
    """The value in `path`. UserError with the reason where there is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}).") from None
