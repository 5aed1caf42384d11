"""Folders that the main process has and another machine does not: read there from a copy.

So machines need no shared disk for what a run writes: rank 0's is the one that counts.
"""

import math
import secrets
import shutil
import socket
import tempfile
from pathlib import Path

from cores.errors import UserError
from cores.runtime.fingerprint import sha256_file
from cores.runtime.launch import Launch
from cores.runtime.machines import MACHINES

CHUNK = 64 * 2**20
"""Bytes sent at a time."""
KEPT = {"weights", "checkpoints"}
"""Folders within a stage that no reader of it needs."""


def borrowed(launch: Launch, folder: Path, mark: str) -> Path:
    """Where this machine finds `folder` as the main process has it: there, or in a copy among the
    machine's temporary files. Every rank calls it; `mark` is the file with the others' hashes.

    UserError on every rank if a copy has no room.
    """
    if not MACHINES.several:
        return folder
    own = sha256_file(folder / mark) if (folder / mark).is_file() else ""
    main, token = launch.shared((own, secrets.token_hex(4)))
    lacks = main not in ("", own)
    if not any(launch.agree(lacks)):
        return folder
    files = launch.shared(_files(folder))
    here = Path(tempfile.gettempdir(), f"tristage-{token}", folder.name) if lacks else folder
    receives, size = lacks and launch.is_local_main, sum(files.values())
    launch.together(lambda: _make_room(here, folder, size) if receives else None)
    launch.say(f"{folder}: sent to the machines that do not see it ({size / 1e6:.0f} MB)")
    for name, length in files.items():
        source = (folder / name).open("rb") if launch.is_main else None
        for _ in range(math.ceil(length / CHUNK) or 1):
            part = launch.shared(source.read(CHUNK) if source else b"")
            if receives:
                (here / name).parent.mkdir(parents=True, exist_ok=True)
                with (here / name).open("ab") as copy:
                    copy.write(part)
        if source:
            source.close()
    launch.agree(0)  # it is whole for this machine's other ranks
    return here


def _files(folder: Path) -> dict[str, int]:
    """Sizes of the files of a stage or checkpoint, by their path inside it."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = {path.relative_to(folder): path for path in paths}
    return {str(n): path.stat().st_size for n, path in names.items() if n.parts[0] not in KEPT}


def _make_room(here: Path, folder: Path, size: int) -> None:
    here.mkdir(parents=True)
    if (free := shutil.disk_usage(here).free) < size:
        here.rmdir()
        raise UserError(
            f"{socket.gethostname()}: does not see {folder}, and {here.parent} has no room for a "
            f"copy ({free / 1e6:.0f} of {size / 1e6:.0f} MB free). Set TMPDIR to a larger disk, or "
            "let output_dir be on a disk that all machines see."
        )
