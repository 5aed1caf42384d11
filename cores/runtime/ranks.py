"""What the processes of one launch on one machine know of each other's end, by small files.

torch's launcher gives every rank the path of an error file below a folder of the launch, which it
deletes afterwards; the folder serves as a notice board. Other launchers have none, and then every
rank speaks for itself.
"""

import os
import time
from pathlib import Path

SPOKEN = "spoken"
"""File that the first rank with something to say creates."""
BETWEEN_LOOKS = 0.1
"""Seconds."""


class Board:
    """The notice board as one rank sees it."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        """Of this process, over all machines."""
        error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
        self.folder = Path(error_file).parents[1] if error_file else None

    def arrive(self) -> None:
        """Note that this rank lives, until `leave`."""
        if self.folder is not None:
            (self.folder / f"rank_{self.rank}").write_text(str(os.getpid()), encoding="utf-8")

    def leave(self) -> None:
        """Note that this rank ends in a way that it knows of."""
        if self.folder is not None:
            (self.folder / f"rank_{self.rank}").unlink(missing_ok=True)

    def killed(self) -> list[int]:
        """Ranks of this machine that are gone and did not leave."""
        if self.folder is None:
            return []
        notes = {int(p.name.split("_")[1]): p for p in self.folder.glob("rank_*")}
        return sorted(rank for rank, note in notes.items() if _gone(note))

    def may_speak(self, patience: float = 0.0) -> bool:
        """Whether this rank is the first that asks, after it let others go first for so long.

        `patience` is in seconds. Returns as soon as another rank has spoken.
        """
        if self.folder is None:
            time.sleep(patience)
            return True
        until = time.monotonic() + patience
        while not (self.folder / SPOKEN).exists() and time.monotonic() < until:
            time.sleep(BETWEEN_LOOKS)
        try:
            (self.folder / SPOKEN).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def _gone(note: Path) -> bool:
    """Whether the process that wrote `note` has ended."""
    try:
        os.kill(int(note.read_text(encoding="utf-8")), 0)
    except (FileNotFoundError, ValueError):  # it is leaving, or just arriving
        return False
    except ProcessLookupError:
        return True
    return False
