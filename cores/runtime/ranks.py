"""What the processes of one launch on one machine know of each other, by small files.

torch's launcher gives every rank the path of an error file below a folder of the launch, which it
deletes afterwards; the folder serves as a notice board. Other launchers have none, and then every
rank speaks for itself.

One that is stopped, or stuck while others wait for it, is named within two minutes. Collectives
alone would say nothing for half an hour.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SPOKEN = "spoken"
"""File that the first rank with something to say creates."""
BETWEEN_LOOKS = 0.1
"""Seconds."""
BEAT = 5.0
"""Seconds between notes that a rank lives."""
SILENT = 60.0
"""Seconds without a note, or of one thing while another rank waits, before it is said."""
AGAIN = 300.0
"""Seconds before it is said again."""
WAITING = "waiting for other ranks"


class Board:
    """The notice board as one rank sees it."""

    def __init__(self) -> None:
        rank = os.environ.get("RANK", "")
        self.rank = int(rank) if rank.isdecimal() else 0  # others are refused, by the board's owner
        """Of this process, over all machines."""
        # A launch that is over leaves the variable behind, perhaps, but not its folder.
        own = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parent
        self.folder = own.parent if own.name and os.access(own, os.W_OK) else None

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
        notes = self.folder.glob("rank_*") if self.folder is not None else ()
        return sorted(int(note.name.split("_")[1]) for note in notes if _gone(note))

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


class Watch:
    """What this rank does, noted on the board by a thread, and what the notes of others tell."""

    def __init__(self) -> None:
        self.what, self.since = "starting", time.monotonic()
        self.said: dict[int, float] = {}

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Within it this rank does `what`."""
        before = self.what
        self.what, self.since = what, time.monotonic()
        try:
            yield
        finally:
            self.what, self.since = before, time.monotonic()

    def start(self, board: Board) -> None:
        """Watch from now on, where there is a board."""
        if board.folder is not None:
            threading.Thread(target=self._run, args=(board.folder, board.rank), daemon=True).start()

    def _run(self, folder: Path, rank: int) -> None:
        while True:
            own = {"what": self.what, "since": self.since, "at": time.monotonic()}
            try:
                aside = folder / f".beat_{rank}"
                aside.write_text(json.dumps(own), encoding="utf-8")
                aside.rename(folder / f"beat_{rank}")
                for line in self.look(folder, rank, time.monotonic()):
                    sys.stderr.write(line + "\n")
            except OSError:  # the launch is over, its folder gone
                return
            time.sleep(BEAT)

    def look(self, folder: Path, rank: int, now: float) -> list[str]:
        """What is to be said of other ranks, by the lowest of those that live."""
        notes = {int(p.name[5:]): p for p in folder.glob("beat_*")}
        beats = {r: json.loads(p.read_text(encoding="utf-8")) for r, p in notes.items()}
        live = [r for r, beat in beats.items() if now - beat["at"] < SILENT]
        if rank != min(live, default=rank):
            return []
        lines = []
        waits = self.what == WAITING and now - self.since > SILENT
        for other, beat in sorted(beats.items()):
            still, busy = now - beat["at"], now - beat["since"]
            if now - self.said.get(other, -AGAIN) < AGAIN or other == rank:
                continue
            if still > SILENT:
                lines.append(f"note: rank {other} has not moved for {still:.0f} s: its process is "
                             "stopped, or its machine hangs; the others wait for it")  # fmt: skip
            elif waits and busy > SILENT and beat["what"] != WAITING:
                lines.append(f"note: rank {other} has been at {beat['what']} for {busy:.0f} s; the "
                             "others wait for it")  # fmt: skip
            else:
                continue
            self.said[other] = now
        return lines


WATCH = Watch()
