"""One run at a time on a stage of an output_dir, by a lock of the operating system.

It ends with its process, however that ends, so none is ever stale; it is seen from other
containers, by other users and, where the file system is shared and has locks, on other machines.
"""

import contextlib
import errno
import fcntl
import getpass
import json
import os
import socket
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path

from cores.errors import UserError

HELD = (errno.EACCES, errno.EAGAIN)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Lock:
    """A file that this process holds. A record lock (fcntl): a forked child does not inherit it, so
    a reward function's worker that outlives the run holds nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number: int | None = None
        """Descriptor of the open file. Nothing else may open it here: closing would unlock."""
        self.made: list[Path] = []
        """Folders that had to be made for it, the innermost first."""

    def take(self) -> str | None:
        """Hold the lock; returns a note where the file system has none.

        UserError while another run holds it, or if the folder cannot be written.
        """
        folder = self.path.parent
        self.made = [place for place in (folder, *folder.parents) if not place.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            while self.number is None:
                self.number = self._try()
        except OSError as error:
            if error.errno in NO_LOCKS:
                return (
                    f"note: the file system of {folder} has no locks ({error.strerror}): a second "
                    "run on it would not be noticed"
                )
            file = next((place for place in self.path.parents if place.is_file()), None)
            if file is not None:
                problem = f"{file} is a file, not a folder. Choose another folder."
            else:
                problem = (
                    f"{folder} cannot be written: {error.strerror}. Give another --output_dir, or "
                    "make it writable."
                )
                if self.path.is_symlink() or self.path.is_dir():
                    problem = f"{self.path} is no regular file, as a lock has to be. Remove it."
            raise UserError(f"output_dir: {problem}") from None
        os.truncate(self.number, 0)
        os.write(self.number, json.dumps(_holder()).encode())
        return None

    def _try(self) -> int | None:
        """The descriptor, locked; None where its holder removed the file meanwhile."""
        # What a link leads to is not ours to write.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        number = os.open(self.path, flags, 0o666)
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise OSError(errno.EINVAL, f"{self.path.name} is no regular file")
        with contextlib.suppress(OSError):  # it is another user's
            os.fchmod(number, 0o666)  # who may write the folder may see who holds the stage
        try:
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(number).st_ino == os.stat(self.path).st_ino:
                return number
        except FileNotFoundError:
            pass
        except OSError as error:
            who = _who(number)
            os.close(number)
            if error.errno not in HELD:
                raise
            raise UserError(
                f"{self.path.with_name(self.path.stem[1:])}: {who} is writing this stage now. "
                "Wait for it, stop it, or give another --output_dir."
            ) from None
        os.close(number)
        return None

    def release(self) -> None:
        """Let go, and leave no empty folder that was made for it."""
        if self.number is not None:
            with contextlib.suppress(OSError):  # the lock ends with the descriptor all the same
                self.path.unlink(missing_ok=True)
            os.close(self.number)
            self.number = None
        for folder in self.made:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()


def _holder() -> dict[str, str]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        user = str(os.getuid())
    return {
        "process": str(os.getpid()),
        "host": socket.gethostname(),
        "user": user,
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv[:1]),
    }


def _who(number: int) -> str:
    """The holder as it says of itself; it may just be about to."""
    try:
        who = json.loads(os.pread(number, 4096, 0))
        process, since = f"process {who['process']} on {who['host']}", who["since"]
        return f"{process} (user {who['user']}, since {since})"
    except (ValueError, KeyError, TypeError, OSError):
        return "another run"
