"""Folders that are whole or absent, on the disk and under their name."""

import ctypes
import os
import shutil
from pathlib import Path

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
