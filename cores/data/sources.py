"""Reading: a file, a folder of files or a hub data set becomes rows that know where they stand.

JSON, JSONL, CSV and Parquet are read here rather than through `datasets.load_dataset`, so that a
malformed row is named by file and line, values keep their types, and no cache can be stale; hub
data sets go through `datasets`.
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cores.config.schema import SourceSection
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


def read_train(section: SourceSection, key: str) -> Source:
    """Rows of `path` (its `split`); `key` is the section's dotted key, for errors.

    Raises UserError for a path that is unset, missing, unreachable, malformed or empty.
    """
    if section.path is None:
        raise UserError(
            f"{key}.path is not set: this stage needs a JSON, JSONL, CSV or Parquet file, a folder "
            f"of them, or the id of a data set on the Hugging Face hub; give --{key}.path."
        )
    return _read(section.path, section.split, section, f"{key}.path")


def read_test(section: SourceSection, key: str) -> Source | None:
    """Held-out rows of `test_path` or `test_split`; None where neither is set."""
    if section.test_path is not None:
        split = section.test_split or section.split
        return _read(section.test_path, split, section, f"{key}.test_path")
    if section.test_split is not None:
        assert section.path is not None, "read_train comes first"
        if _is_local(section.path):
            raise UserError(
                f"{key}.test_split is {section.test_split!r}, but {key}.path {section.path!r} is a "
                f"local path, and files have no splits; give the held-out rows as {key}.test_path, "
                f"or null as {key}.test_split to hold out data.test_fraction of the rows."
            )
        return _read(section.path, section.test_split, section, f"{key}.path")
    return None


def _read(path: str, split: str, section: SourceSection, key: str) -> Source:
    read = _read_local if _is_local(path) else _read_hub
    source = read(path, split, section, key)
    if not source.rows:
        raise UserError(f"{key} {path!r} holds no rows; give a source with at least one row.")
    return source


def _is_local(path: str) -> bool:
    """Hub ids are `name` or `owner/name`: whatever cannot be one, or exists, is a local path."""
    if Path(path).suffix.lower() in READERS or path.startswith((".", "/", "~")):
        return True
    return path.count("/") > 1 or Path(path).exists()


def _read_local(path: str, split: str, section: SourceSection, key: str) -> Source:
    files = _files(Path(path).expanduser(), key)
    rows = (Row(where, columns) for file in files for where, columns in _rows(file))
    try:
        kept = list(itertools.islice(rows, section.limit))
        return Source(path, kept, {file.name: _sha256(file) for file in files})
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


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return READERS[file.suffix.lower()](file)


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _read_hub(path: str, split: str, section: SourceSection, key: str) -> Source:
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
        table = datasets.load_dataset(path, section.name, split=split)
    except (HTTPError, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(
            f"{key} {path!r} (split {split!r}) is no local file or folder and could not be fetched "
            f"from the Hugging Face hub: {reason}. Give a local file with the same columns "
            f"(--{key} FILE), or fetch the data set once on a machine with access and set "
            "HF_HUB_OFFLINE=1 to use its cache."
        ) from error
    if section.limit is not None:
        table = table.select(range(min(section.limit, len(table))))
    rows = [Row(f"{path} ({split}), row {i}", dict(row)) for i, row in enumerate(table, 1)]
    return Source(path, rows, {path: table._fingerprint})
