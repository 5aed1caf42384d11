"""Reading: a file, a folder of files or a hub data set becomes rows that know where they stand.

JSON, JSONL, CSV and Parquet are read here rather than through `datasets.load_dataset`, so that a
malformed row is named by file and line, values keep their types, and no cache can be stale; hub
data sets go through `datasets`.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cores.config.sources import OneSource
from cores.data.files import READERS
from cores.errors import UserError
from cores.runtime.hub import HUB_TIMEOUT


@dataclass(frozen=True)
class Row:
    """One row as it was read."""

    where: str
    """`file:line`, or the row's number where a format has no lines: for error messages."""
    columns: dict[str, Any]
    """Column name to value."""


@dataclass(frozen=True)
class Source:
    """The rows of one path, and what identifies them."""

    path: str
    """As configured."""
    rows: list[Row]
    """In the order of the file, files of a folder by name."""
    fingerprints: dict[str, str]
    """sha256 in hex by file name; for a hub data set `datasets`' fingerprint by its id."""

    def columns(self) -> list[str]:
        """Every column that occurs, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row.columns))


@dataclass(frozen=True)
class Stream:
    """The rows of one path, read anew at each pass."""

    path: str
    """As configured."""
    fingerprints: dict[str, str]
    """Size in bytes by file name; for a hub data set its id."""
    open: Callable[[], Iterator[Row]]
    """Begins a pass."""


Place = tuple[str, str, OneSource, str]
"""Path, split, source, and the dotted key of the path, for errors."""


def read_train(section: OneSource, key: str) -> Source:
    """Rows of `path` (its `split`); `key` is the section's dotted key, for errors.

    Raises UserError for a path that is unset, missing, unreachable, malformed or empty.
    """
    return _read(*_train_place(section, key))


def read_test(section: OneSource, key: str) -> Source | None:
    """Held-out rows of `test_path` or `test_split`; None where neither is set."""
    place = _test_place(section, key)
    return None if place is None else _read(*place)


def stream_train(section: OneSource, key: str) -> Stream:
    """As `read_train`, to be read while training; a malformed row raises when it is reached."""
    return _stream(*_train_place(section, key))


def stream_test(section: OneSource, key: str) -> Stream | None:
    """As `read_test`, row by row."""
    place = _test_place(section, key)
    return None if place is None else _stream(*place)


def _train_place(section: OneSource, key: str) -> Place:
    if section.path is None:
        raise UserError(
            f"{key}.path is not set: this stage needs a JSON, JSONL, CSV or Parquet file, a folder "
            f"of them, or the id of a data set on the Hugging Face hub; give --{key}.path."
        )
    return section.path, section.split, section, f"{key}.path"


def _test_place(section: OneSource, key: str) -> Place | None:
    if section.test_path is not None:
        split = section.test_split or section.split
        return section.test_path, split, section, f"{key}.test_path"
    if section.test_split is not None:
        assert section.path is not None, "the training rows come first"
        if _is_local(section.path):
            raise UserError(
                f"{key}.test_split is {section.test_split!r}, but {key}.path {section.path!r} is a "
                f"local path, and files have no splits; give the held-out rows as {key}.test_path, "
                f"or null as {key}.test_split to hold out data.test_fraction of the rows."
            )
        return section.path, section.test_split, section, f"{key}.path"
    return None


def _read(path: str, split: str, section: OneSource, key: str) -> Source:
    read = _read_local if _is_local(path) else _read_hub
    source = read(path, split, section, key)
    if not source.rows:
        raise _no_rows(path, key)
    return source


def _stream(path: str, split: str, section: OneSource, key: str) -> Stream:
    stream = (_stream_local if _is_local(path) else _stream_hub)(path, split, section, key)
    if next(stream.open(), None) is None:
        raise _no_rows(path, key)
    return stream


def _no_rows(path: str, key: str) -> UserError:
    return UserError(f"{key} {path!r} holds no rows; give a source with at least one row.")


def _is_local(path: str) -> bool:
    """Hub ids are `name` or `owner/name`: whatever cannot be one, or exists, is a local path."""
    if Path(path).suffix.lower() in READERS or path.startswith((".", "/", "~")):
        return True
    return path.count("/") > 1 or Path(path).exists()


def _read_local(path: str, split: str, section: OneSource, key: str) -> Source:
    files = _files(Path(path).expanduser(), key)
    rows = list(_file_rows(path, files, section.limit, key))
    return Source(path, rows, {file.name: _sha256(file) for file in files})


def _stream_local(path: str, split: str, section: OneSource, key: str) -> Stream:
    files = _files(Path(path).expanduser(), key)
    if files[0].suffix.lower() == ".json":
        raise UserError(
            f"{key} {path!r}: a list of JSON objects cannot be streamed; write one object a line "
            "(.jsonl), or turn streaming off."
        )
    # a digest would read the whole of a set that is streamed because it is large
    sizes = {file.name: f"{file.stat().st_size} bytes" for file in files}
    return Stream(path, sizes, lambda: _file_rows(path, files, section.limit, key))


def _file_rows(path: str, files: list[Path], limit: int | None, key: str) -> Iterator[Row]:
    rows = (Row(*row) for file in files for row in READERS[file.suffix.lower()](file))
    try:
        yield from itertools.islice(rows, limit)
    except OSError as error:
        raise UserError(f"{key} {path!r} cannot be read: {error.strerror or error}.") from error


def _files(path: Path, key: str) -> list[Path]:
    """The file itself, or the data files of a folder, which must be of one kind."""
    if not path.exists():
        raise UserError(
            f"{key} {str(path)!r} does not exist (looked in {Path.cwd()}); correct the path, or "
            "give the id of a data set on the Hugging Face hub (owner/name)."
        )
    known = ", ".join(READERS)
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise UserError(f"{key} {str(path)!r} has no known suffix; readable are: {known}.")
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS)
    kinds = sorted({file.suffix.lower() for file in files})
    if not files:
        raise UserError(f"{key} {str(path)!r} is a folder without any data file ({known}).")
    if len(kinds) > 1:
        raise UserError(
            f"{key} {str(path)!r} holds files of several kinds ({', '.join(kinds)}), perhaps the "
            "same rows twice; leave one kind in the folder, or name one file."
        )
    return files


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _read_hub(path: str, split: str, section: OneSource, key: str) -> Source:
    table = _load_hub(path, split, section, key, streaming=False)
    if section.limit is not None:
        table = table.select(range(min(section.limit, len(table))))
    rows = [Row(f"{path} ({split}), row {i}", dict(row)) for i, row in enumerate(table, 1)]
    return Source(path, rows, {path: table._fingerprint})


def _stream_hub(path: str, split: str, section: OneSource, key: str) -> Stream:
    table = _load_hub(path, split, section, key, streaming=True)

    def rows() -> Iterator[Row]:
        for i, row in enumerate(itertools.islice(table, section.limit), 1):
            yield Row(f"{path} ({split}), row {i}", dict(row))

    return Stream(path, {path: "streamed"}, rows)


def _load_hub(path: str, split: str, section: OneSource, key: str, streaming: bool) -> Any:
    """A hub data set, from its cache if HF_HUB_OFFLINE is set.

    One request comes first, because `datasets` itself retries for half a minute when offline.
    """
    import datasets
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HTTPError

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        if not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(path, timeout=HUB_TIMEOUT)
        return datasets.load_dataset(path, section.name, split=split, streaming=streaming)
    except (HTTPError, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(
            f"{key} {path!r} (split {split!r}) is no local file or folder and could not be fetched "
            f"from the Hugging Face hub: {reason}. Give a local file with the same columns "
            f"({key if '[' in key else f'--{key}'} FILE), or fetch the data set once on a machine "
            "with access and set HF_HUB_OFFLINE=1 to use its cache."
        ) from error
