"""Folders of data files: which of them hold the rows, and of which split."""

import re
from pathlib import Path

from cores.config.nodes import checked
from cores.data.files import PACKINGS, READERS, kind_of
from cores.errors import UserError, readable

POINTER = b"version https://git-lfs.github.com/spec/"
PACKED = (*PACKINGS, ".xz", ".zip")

ASIDE = re.compile(
    r"(readme|licen[cs]e|notice|changelog|requirements)\b.*"
    r"|(dataset_infos?|dataset_dict|state)\.json"
)
"""Names of files that stand beside data, in lower case: for readers, and of `datasets`."""

SPLITS = {
    "train": r"train(ing)?",
    "test": r"test(ing)?",
    "validation": r"val(id(ation)?)?",
    "dev": "dev",
    "eval": r"eval(uation)?",
}
"""How files are named by their split, as a word between other characters than letters."""


PART = re.compile(r"(.+)-\d{5}-of-\d{5}\b")
"""How the hub names the parts of a split's file."""


def data_files(path: Path, key: str, split: str) -> tuple[list[Path], int, bool]:
    """The file itself, or the data files of a folder, all of one kind; how many hidden ones it has,
    such as copies that editors and systems leave; and whether it has splits, so that those of
    `split` alone are given.

    A folder without data files stands for those inside it (a clone of a hub data set). UserError
    for what is missing or unclear; `key` is the dotted key of the path.
    """
    what = f"{key} {str(path)!r}"
    if not path.exists():
        raise UserError(
            f"{what} does not exist (looked in {Path.cwd()}); correct the path, or give the id of "
            "a data set on the Hugging Face hub (owner/name)."
        )
    files, hidden = _found(path, what)
    splits = _splits(path, files, what)
    if splits and split not in splits:
        raise UserError(
            f"{what} holds the splits {', '.join(sorted(splits))}, not {split!r}; set "
            f"{key.rpartition('.')[0]}.split (held-out rows: test_split) to one of them, or name "
            "a file."
        )
    files = splits.get(split, files)
    kinds = sorted({kind_of(file) for file in files})
    if len(kinds) > 1:
        raise UserError(
            f"{what} holds files of several kinds ({', '.join(kinds)}), perhaps the same rows "
            "twice; leave one kind in the folder, or name one file."
        )
    for file in files:
        checked(file.name, f"{what}: the name of {file.name!r}")
        if not file.is_file():  # a pipe would be waited for, a device never ends
            raise UserError(f"{key}: {file} is no regular file; remove it, or name another.")
        with file.open("rb") as handle:
            if handle.read(len(POINTER)) == POINTER:
                raise UserError(
                    f"{key}: {file} is a pointer of Git LFS, not the data; fetch it (git lfs pull "
                    "in its folder)."
                )
    return files, hidden, bool(splits)


def held_out_split(path: str, key: str, wanted: str | None = None) -> str | None:
    """The split of a folder that is held out: `wanted`, else the one that is not train's; None for
    a path that has no splits.

    UserError where it is unclear. `key` is the dotted key of the path.
    """
    folder, what = Path(path).expanduser(), f"{key} {path!r}"
    with readable(what):
        if not folder.is_dir():
            return None
        if is_saved(folder):
            splits = {part.parent.name for part in folder.glob("*/state.json")}
        else:
            splits = {*_splits(folder, _found(folder, what)[0], what)}
    others = sorted(splits - {"train"})
    if len(others) > 1 and wanted is None:
        raise UserError(
            f"{what} holds files of the splits {', '.join(others)}; set "
            f"{key.rpartition('.')[0]}.test_split to the one that is held out."
        )
    return (wanted or others[0]) if others else None


def is_saved(path: Path) -> bool:
    """Whether it is a folder that `datasets` has saved (`save_to_disk`), with splits or without."""
    one = all((path / name).is_file() for name in ("state.json", "dataset_info.json"))
    return one or (path / "dataset_dict.json").is_file()


def _found(path: Path, what: str) -> tuple[list[Path], int]:
    """Data files, by name, and how many are hidden."""
    found = list(path.iterdir()) if path.is_dir() else [path]
    if path.is_dir() and not any(_is_data(file) for file in found):
        inner = [f for f in found if f.is_dir() and not f.name.startswith(".")]
        found += [file for folder in inner for file in folder.iterdir()]
    files = sorted(f for f in found if kind_of(f) in READERS)
    shown = [f for f in files if f == path or _is_data(f)]
    if not shown:
        lacks = "is a folder without any data file" if path.is_dir() else "has no known suffix"
        raise UserError(
            f"{what} {lacks}; readable are: {', '.join(READERS)}, and texts packed as "
            f"{', '.join(PACKINGS)} (a.jsonl.gz)."
        )
    packed = [
        f.name
        for f in found
        if f.suffix.lower() in PACKED and Path(f.stem).suffix.lower() in READERS and f not in files
    ]
    if packed:
        raise UserError(
            f"{what} holds packed files ({', '.join(sorted(packed)[:3])}), whose rows would be "
            "missing; unpack them, or move them away."
        )
    folders = sorted({file.parent for file in shown})
    if len(folders) > 1 and not all(_split(folder.name) for folder in folders):
        raise UserError(
            f"{what} holds data files in several folders "
            f"({', '.join(folder.name for folder in folders)}); name the one that is meant."
        )
    return shown, sum(file.name.startswith(".") for file in files if file not in shown)


def _is_data(file: Path) -> bool:
    known = kind_of(file) in READERS and not file.name.startswith(".")
    return known and not ASIDE.fullmatch(file.name.lower())


def _splits(path: Path, files: list[Path], what: str) -> dict[str, list[Path]]:
    """Files by split, where some are held out by their name and others are not, or where the hub's
    parts of files are of several splits of one kind (train_sft, train_gen); else none."""
    told = {file: _split(str(file.relative_to(path)) if file != path else "") for file in files}
    own = {file: part[1] for file in files if told[file] and (part := PART.match(file.name))}
    if len({(told[file], name) for file, name in own.items()}) > len({told[f] for f in own}):
        told |= own
    found: dict[str | None, list[Path]] = {}
    for file in files:
        found.setdefault(told[file], []).append(file)
    if len(found) < 2 or not found.keys() - {None, "train"}:
        return {}
    if None in found:
        held = next(of for name, of in found.items() if name not in (None, "train"))
        raise UserError(
            f"{what} holds {held[0].name} beside {found[None][0].name}, so that held-out rows "
            "could be trained on; name the training files train, or give path and test_path."
        )
    return {name: of for name, of in found.items() if name is not None}


def _split(name: str) -> str | None:
    """The split that a name tells; None where it tells none, or several."""
    words = re.split(r"[^a-z]+", name.lower())
    told = {split for split, form in SPLITS.items() if any(re.fullmatch(form, w) for w in words)}
    return told.pop() if len(told) == 1 else None
