"""One reader a kind of file: each yields (where, columns) row by row, or raises UserError.

All but JSON lists hold no more than a row (Parquet: a batch of rows) in memory.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cores.errors import UserError

Rows = Iterator[tuple[str, dict[str, Any]]]

BLANK = re.compile(r"[ \t\r\n]*")
LONGEST = 10_000_000
"""Characters of one text: tokenizing them takes seconds, and no model reads as many."""
DIGITS = 600
"""Of a whole number at most: where Python's own limit may be set lowest."""


def read_jsonl(path: Path) -> Rows:
    """One JSON object a line; blank lines are no rows."""
    for number, line in enumerate(_lines(path, "\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            value, end = _decode(line, _skip(line, 0), where)
            if line[end:].strip():
                raise UserError(
                    f"{where}: more than one JSON value (text follows the first); put one object a "
                    "line and nothing else."
                )
            yield where, _object(value, where)


def read_json(path: Path) -> Rows:
    """A JSON list of objects. Decoded one by one, so that an error has the row's own line."""
    text = "".join(_lines(path, "\n"))
    position = _skip(text, 0)
    if position == len(text):
        return
    if text[position] != "[":
        raise UserError(
            f"{path}: a .json file must hold one list of objects, but it starts with "
            f"{text[position]!r}; where each line is an object of its own, name the file .jsonl."
        )
    position, line, counted = _skip(text, position + 1), 1, 0
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        where = f"{path}:{line}"
        value, position = _decode(text, position, where)
        yield where, _object(value, where)
        position = _skip(text, position)
        if text[position : position + 1] == ",":
            position = _skip(text, position + 1)
            if text[position : position + 1] == "]":
                raise UserError(f"{where}: bad JSON after this row: no row follows the comma.")
        elif text[position : position + 1] != "]":
            raise UserError(f"{where}: bad JSON after this row: a comma or ] is missing.")
    if _skip(text, position + 1) != len(text):
        raise UserError(f"{path}: bad JSON: text follows the end of the list.")


def read_csv(path: Path) -> Rows:
    """Comma-separated values with a header line; every value is text, as CSV has no types."""
    csv.field_size_limit(LONGEST)  # the standard limit of 131072 characters is below long texts
    reader = csv.reader(_lines(path, ""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for values in reader:
            if values and not header:
                header = values
                _once(header, f"{path}:{line}: the header")
            elif values and len(values) != len(header):
                raise UserError(
                    f"{path}:{line}: malformed CSV row: {len(values)} values for the "
                    f"{len(header)} columns {', '.join(header)}; quote values that hold commas."
                    f"{separator_hint(header)}"
                )
            elif values:  # else a blank line
                yield f"{path}:{line}", dict(zip(header, values, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{path}:{line}: malformed CSV row: {error}; see that the quotes are balanced."
        ) from error


def read_parquet(path: Path) -> Rows:
    """Parquet, a batch at a time; rows are numbered from 1."""
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _once(file.schema_arrow.names, f"{path}: the schema")
            for batch in file.iter_batches():
                for columns in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", columns
    except (pyarrow.ArrowException, ValueError, OverflowError, OSError) as error:
        if isinstance(error, UserError) or getattr(error, "errno", None):
            raise  # ours, or the disk's
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise UserError(f"{path}: not a readable Parquet file: {reason}.") from error


READERS: dict[str, Callable[[Path], Rows]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def separator_hint(columns: list[str]) -> str:
    """A sentence on a CSV file whose one column looks like several, else nothing."""
    marks = {";": "semicolons", "\t": "tabs"}
    found = [name for mark, name in marks.items() if len(columns) == 1 and mark in columns[0]]
    return (
        f" The header looks separated by {found[0]}: values need commas between." if found else ""
    )


def _once(names: list[str], what: str) -> None:
    """UserError for a name that stands twice among `names`: one of its values would be lost."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{what} names {', '.join(twice)} more than once; rename or remove a column."
        )


def _lines(path: Path, newline: str) -> Iterator[str]:
    """The file's lines with their ends, UTF-8 with or without a byte order mark.

    newline: as for `open`; "" leaves every kind of line end as it is.
    """
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise UserError(
                        f"{path}:{number}: holds NUL bytes, as a copy does that was cut short or "
                        "text in UTF-16; copy or convert the file again."
                    )
                yield line
    except UnicodeDecodeError as error:
        number, byte = _undecodable(path)
        raise UserError(
            f"{path}:{number}: not UTF-8 (byte 0x{byte:02x}); convert the file, e.g. with iconv -f "
            "latin1 -t utf-8; unpack it if it is compressed, and name a Parquet file .parquet."
        ) from error


def _undecodable(path: Path) -> tuple[int, int]:
    """Line and byte where the file stops being UTF-8: no UTF-8 character holds a line break."""
    with path.open("rb") as file:
        number = 1
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, line[error.start]
    return number, line[-1]


def _skip(text: str, position: int) -> int:
    match = BLANK.match(text, position)
    assert match is not None, "the pattern matches the empty string"
    return match.end()


def _decode(text: str, position: int, where: str) -> tuple[Any, int]:
    """The JSON value at `position` and the position after it."""
    try:
        return DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        if what.startswith("Unterminated") or text[error.pos : error.pos + 1] in ("\n", "\r"):
            what = "a string is not closed, or the row is cut off"
        raise UserError(
            f"{where}: bad JSON: {what} (character {error.pos - position + 1} of the row); "
            "one object a line is a .jsonl file, a list of objects a .json file."
        ) from error
    except RecursionError as error:
        raise UserError(f"{where}: bad JSON: nested too deeply.") from error
    except RefusedError as error:
        raise UserError(f"{where}: {error}") from error


class RefusedError(Exception):
    """What the decoder found in a row, without the row's place."""


def _columns(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RefusedError(f"an object names {twice!r} twice; remove one.")
    return found


def _whole_number(text: str) -> int:
    if len(text) > DIGITS:
        raise RefusedError(f"a number of {len(text)} digits; write it as text.")
    return int(text)


DECODER = json.JSONDecoder(object_pairs_hook=_columns, parse_int=_whole_number)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(
            f"{where}: a row must be a JSON object {{column: value}}, not {type(value).__name__}; "
            "one object a line is a .jsonl file, a list of objects a .json file."
        )
    return value
