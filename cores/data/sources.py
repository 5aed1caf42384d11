"""Reading: a file, a folder of files or a hub data set becomes rows that know where they stand.

JSON, JSONL, CSV and Parquet are read here rather than through `datasets.load_dataset`, so that a
malformed row is named by file and line, values keep their types, and no cache can be stale; hub
data sets go through `datasets`.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from cores.config.data import OneSource
from cores.data.files import READERS, kind_of
from cores.data.folders import data_files, held_out_split, is_saved
from cores.errors import UserError, readable
from cores.runtime.fingerprint import HUB_TIMEOUT

COMMIT = re.compile(r"@([0-9a-f]{40})/")
"""Of a file's address on the hub."""


@dataclass(frozen=True)
class Row:
    """One row as it was read."""

    where: str
    """`file:line`, or the row's number where a format has no lines: for error messages."""
    columns: dict[str, Any]
    """Column name to value."""
    images: tuple[str, ...] = ()
    """Files of its images, in the order in which they stand in its text."""


@dataclass(frozen=True)
class Source:
    """The rows of one path, read anew at each pass, and what identifies them."""

    path: str
    """As configured, with the split where a folder holds files of several."""
    fingerprints: dict[str, str]
    """sha256 in hex by file name (of several folders: by folder and name), of a streamed file its
    size; for a hub data set `datasets`' fingerprint by its id."""
    open: Callable[[], Iterator[Row]]
    """Begins a pass, in the order of the file, files of a folder by name. UserError for the first
    malformed row, or if there is none at all."""
    hidden: int = 0
    """Hidden files of the folder, which are left out."""


def sources(section: OneSource, key: str, streaming: bool = False) -> tuple[Source, Source | None]:
    """Rows of `path` (its `split`); and held-out rows of `test_path` or `test_split`, where neither
    is set those of the files of a folder that are named as such, None where there are none. `key`
    is the section's dotted key, for errors.

    Raises UserError for a path that is unset, missing or unreachable.
    """
    if section.path is None:
        raise UserError(
            f"{key}.path is not set: this stage needs a data file ({', '.join(READERS)}), a folder "
            f"of them, or the id of a data set on the Hugging Face hub; give --{key}.path."
        )
    train = _source(section.path, section.split, section, f"{key}.path", streaming)
    split = section.test_split
    if section.test_path is not None:
        split = split or held_out_split(section.test_path, f"{key}.test_path") or section.split
        return train, _source(section.test_path, split, section, f"{key}.test_path", streaming)
    local = _is_local(section.path) and not is_saved(Path(section.path).expanduser())
    inside = held_out_split(section.path, f"{key}.path", split) if local else split
    if split is not None and inside is None:
        raise UserError(
            f"{key}.test_split is {split!r}, but {key}.path {section.path!r} is a local path "
            f"whose files have no splits; give the held-out rows as {key}.test_path, or null as "
            f"{key}.test_split to hold out data.test_fraction of the rows."
        )
    if inside is None:
        return train, None
    return train, _source(section.path, inside, section, f"{key}.path", streaming)


def _source(path: str, split: str, section: OneSource, key: str, streaming: bool) -> Source:
    where, hidden, named = f"{key} {path!r}", 0, path
    _no_address(path, where)
    if section.revision is not None and _is_local(path):
        raise UserError(
            f"{where} is a local path, and revision is for hub data sets; remove "
            f"{key.rpartition('.')[0]}.revision."
        )
    files: list[Path] = []
    found: Any = ()
    with readable(where):
        saved = _saved(Path(path).expanduser(), split, where)
    if saved is not None:
        import datasets

        if section.name is not None:
            raise UserError(f"{where} was saved by datasets, without configurations; remove name.")
        with readable(where):
            found = datasets.load_from_disk(str(saved)).with_format(None)
            stored = sorted(saved.glob("*.arrow"))
            fingerprints = {file.name: _fingerprint(file, streaming) for file in stored}
    elif _is_local(path):
        with readable(where):
            files, hidden, several = data_files(Path(path).expanduser(), key, split)
        if section.name is not None or (split != "train" and not several):
            raise UserError(
                f"{where} is a local path, which has no configurations and no splits; remove "
                f"{key.rpartition('.')[0]}.name and split, or give the id of a hub data set."
            )
        if streaming and kind_of(files[0]) == ".json":
            raise UserError(
                f"{where}: a list of JSON objects cannot be streamed; write one object a line "
                "(.jsonl), or turn streaming off."
            )
        named = f"{path} ({split})" if several else path
        parts = 1 if len({file.parent for file in files}) < 2 else 2  # files may have one name
        with readable(where):
            fingerprints = {"/".join(f.parts[-parts:]): _fingerprint(f, streaming) for f in files}
    else:
        found = _load_hub(path, split, section, key, streaming)
        fingerprints = {path: "streamed" if streaming else found._fingerprint}
        if (commit := _commit(found)) is not None:
            fingerprints[f"{path}, commit"] = commit

    def a_pass() -> Iterator[Row]:
        row = None
        with readable(where):
            read = (Row(*each) for file in files for each in READERS[kind_of(file)](file))
            sent = (Row(f"{path} ({split}), row {i}", dict(x)) for i, x in enumerate(found, 1))
            for row in islice(chain(read, sent), section.limit):
                yield row
        if row is None:
            raise UserError(f"{where} holds no rows; give a source with at least one row.")

    return Source(named, fingerprints, a_pass, hidden)


def _no_address(path: str, where: str) -> None:
    if "://" in path:
        raise UserError(
            f"{where} is an address, from which nothing is fetched; download the file, or give the "
            "id of a data set on the Hugging Face hub (owner/name)."
        )


def prompts_of(text: Row, what: str) -> list[Row]:
    """Of a text file the prompts, one a line; empty lines are none. UserError if it has none."""
    file, found = text.where.rpartition(":")[0], re.split(r"\r\n?|\n", text.columns["text"])
    rows = [Row(f"{file}:{i}", {"prompt": x.strip()}) for i, x in enumerate(found, 1) if x.strip()]
    if not rows:
        raise UserError(f"{what}: holds no prompt; write one a line.")
    return rows


def _saved(path: Path, split: str, where: str) -> Path | None:
    """The folder of a split that `datasets` has saved (`save_to_disk`); None for any other path."""
    if (path / "dataset_dict.json").is_file():
        if not (path / split / "state.json").is_file():
            found = sorted(folder.parent.name for folder in path.glob("*/state.json"))
            raise UserError(
                f"{where} was saved by datasets with the splits {', '.join(found) or '(none)'}, "
                f"not {split!r}; set split to one of them."
            )
        return path / split
    if is_saved(path) and split != "train":
        raise UserError(f"{where} was saved by datasets without splits, so there is no {split!r}.")
    return path if is_saved(path) else None


def _is_local(path: str) -> bool:
    """Hub ids are `name` or `owner/name`: whatever cannot be one, or exists, is a local path."""
    if kind_of(Path(path)) in READERS or path.startswith((".", "/", "~")):
        return True
    return path.count("/") > 1 or os.path.lexists(path)


def _fingerprint(file: Path, streaming: bool) -> str:
    if streaming:  # a digest would read the whole of a set that is streamed because it is large
        return f"{file.stat().st_size} bytes"
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _commit(found: Any) -> str | None:
    """The commit that a hub data set was read at, as its files' addresses in the cache tell it."""
    files = getattr(getattr(found, "info", None), "download_checksums", None) or {}
    commits = {match[1] for file in files if (match := COMMIT.search(str(file)))}
    return commits.pop() if len(commits) == 1 else None


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
            HfApi().dataset_info(path, revision=section.revision, timeout=HUB_TIMEOUT)
        return datasets.load_dataset(
            path, section.name, split=split, streaming=streaming, revision=section.revision
        )
    except (HTTPError, OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise UserError(
            f"{key} {path!r} (split {split!r}) is no local file or folder and could not be fetched "
            f"from the Hugging Face hub: {reason}. Give a local file with the same columns "
            f"({key if '[' in key else f'--{key}'} FILE), or fetch the data set once on a machine "
            "with access and set HF_HUB_OFFLINE=1 to use its cache."
        ) from error
