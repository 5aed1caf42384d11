"""One reader a kind of file: each yields (where, columns) row by row, or raises UserError. All but
JSON lists and texts hold no more than a row (Parquet: a batch of rows) in memory. Text files may be
packed."""

import csv
import io
import json
import re
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from cores.errors import UserError

Rows = Iterator[tuple[str, dict[str, Any]]]

MARKS = {",": "commas", "\t": "tabs", ";": "semicolons"}
TURNS = ("messages", "conversations", "prompt", "chosen", "rejected", "completion")
"""Columns that are lists of objects in one row."""
BLANK = re.compile(r"[ \t\r\n]*")
LONGEST = 10_000_000
"""Characters of one text: tokenizing them takes seconds, and no model reads as many."""
DIGITS = 600
"""Of a whole number at most: where Python's own limit may be set lowest."""


def read_jsonl(path: Path) -> Rows:
    """One JSON object a line; blank lines are no rows."""
    for number, line in enumerate(lines(path, "\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            value, end = _decode(line, _skip(line, 0), where)
            if line[end:].strip():
                raise UserError(
                    f"{where}: more than one JSON value (text follows the first); put one object a "
                    "line and nothing else (lines end with LF or CR LF, not with CR alone)."
                )
            yield where, _object(value, where)


def read_json(path: Path) -> Rows:
    """A JSON list of objects, alone or as the one list of objects within an object; or one object a
    line. Decoded one by one, so that an error has the row's own line."""
    text = "".join(lines(path, "\n"))
    start = _skip(text, 0)
    if start == len(text):
        return
    if text[start] == "{":
        _, end = _decode(text, start, f"{path}:1")
        if text[end:].strip():  # many publish lines under this name
            yield from read_jsonl(path)
        else:
            yield from _items(text, _list_inside(text, start, path), path)
    elif text[start] == "[":
        end = yield from _items(text, start, path)
        if _skip(text, end) != len(text):
            raise UserError(f"{path}: bad JSON: text follows the end of the list.")
    else:
        raise UserError(
            f"{path}: a .json file must hold one list of objects, but it starts with "
            f"{text[start]!r}; where each line is an object of its own, name the file .jsonl."
        )


def _items(text: str, start: int, path: Path) -> Generator[tuple[str, dict[str, Any]], None, int]:
    """The rows of the list that begins at `start`; returns the position after it."""
    position, line, counted = _skip(text, start + 1), 1, 0
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
    return position + 1


def _list_inside(text: str, start: int, path: Path) -> int:
    """Where the one list of objects begins that the (well-formed) object at `start` holds."""
    found: dict[str, int] = {}
    position = start
    while text[position] != "}" and text[position := _skip(text, position + 1)] != "}":
        name, position = _decode(text, position, f"{path}:1")
        here = _skip(text, _skip(text, position) + 1)  # behind the colon
        value, position = _decode(text, here, f"{path}:1")
        position = _skip(text, position)  # at a comma, or at the end
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            found[name] = here
    (name, at), *more = found.items() or [("", start)]
    if more or not name or name in TURNS:
        what = f"the lists {', '.join(found)}" if more else "no list of rows"
        raise UserError(
            f"{path}: holds one object with {what} in it, so that it is unclear what the rows are; "
            "give one list of objects (.json), or one object a line (.jsonl)."
        )
    return at


def read_text(path: Path) -> Rows:
    """A text: the whole file is one row of format text, its line ends as they are."""
    yield f"{path}:1", {"text": "".join(lines(path, ""))}


def read_csv(path: Path, mark: str = ",") -> Rows:
    """Values separated by `mark` with a header line; every value is text, as CSV has no types."""
    csv.field_size_limit(LONGEST)  # the standard limit of 131072 characters is below long texts
    reader = csv.reader(lines(path, ""), strict=True, delimiter=mark)
    header: list[str] = []
    line = 1
    try:
        for values in reader:
            if values and not header:
                header = [name.strip() for name in values]
                _once(header, f"{path}:{line}: the header")
            elif values and len(values) != len(header):
                raise UserError(
                    f"{path}:{line}: malformed CSV row: {len(values)} values for the "
                    f"{len(header)} columns {', '.join(header)}; quote values that hold "
                    f"{MARKS[mark]}.{separator_hint(header)}"
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
    ".tsv": partial(read_csv, mark="\t"),
    ".txt": read_text,
    ".parquet": read_parquet,
}


def kind_of(path: Path) -> str:
    """The suffix that says how a file is read, `.jsonl` of `a.jsonl.gz`; no key of READERS where it
    cannot be."""
    inner = Path(path.stem).suffix.lower()
    packed = path.suffix.lower() in PACKINGS and inner in READERS and inner != ".parquet"
    return inner if packed else path.suffix.lower()


def separator_hint(columns: list[str]) -> str:
    """A sentence on a CSV file whose one column looks like several, else nothing."""
    found = [name for mark, name in MARKS.items() if len(columns) == 1 and mark in columns[0]]
    return (
        f" The header looks separated by {found[0]}: .csv needs commas between values, .tsv tabs."
        if found
        else ""
    )


def _once(names: list[str], what: str) -> None:
    """UserError for a name that stands twice among `names`: one of its values would be lost."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(
            f"{what} names {', '.join(twice)} more than once; rename or remove a column."
        )


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


PACKINGS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""By the suffix behind a text file's own; pyarrow, which comes with datasets, unpacks them all."""


def lines(path: Path, newline: str) -> Iterator[str]:
    """The file's lines with their ends, UTF-8 with or without a byte order mark.

    newline: as for `open`; "" leaves every kind of line end as it is.
    """
    try:
        with _unpacked(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", newline=newline) as file:
            for number, line in enumerate(file, 1):
                if "\0" in line:
                    raise UserError(
                        f"{path}:{number}: holds NUL bytes, as a copy does that was cut short or "
                        "text in UTF-16; copy or convert the file again."
                    )
                yield line
    except UnicodeDecodeError as error:
        number, byte = _undecodable(path)
        other = "utf-16" if number == 1 and byte in (0xFE, 0xFF) else "latin1"
        raise UserError(
            f"{path}:{number}: not UTF-8 (byte 0x{byte:02x}); convert the file, e.g. with iconv -f "
            f"{other} -t utf-8; unpack it if it is compressed, or name it "
            "by its packing (.gz, .bz2, .zst), and name a Parquet file .parquet."
        ) from error
    except OSError as error:
        if error.errno or path.suffix.lower() not in PACKINGS:
            raise  # the disk's
        raise UserError(f"{path}: cannot be unpacked ({error}); copy it here again.") from error


def _unpacked(path: Path) -> Any:
    """The file's bytes, opened for reading."""
    packing = PACKINGS.get(path.suffix.lower())
    if packing is None:
        return path.open("rb")
    import pyarrow

    return pyarrow.CompressedInputStream(path.open("rb"), packing)


def _undecodable(path: Path) -> tuple[int, int]:
    """Line and byte where the file stops being UTF-8: no UTF-8 character holds a line break."""
    with _unpacked(path) as raw:
        number = 1
        for number, line in enumerate(io.BufferedReader(raw), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return number, line[error.start]
    return number, line[-1]
