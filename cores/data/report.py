"""What was read, used, truncated and dropped: for the terminal and for stage.json."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class SplitReport:
    """Counts of one split. read = used + everything in `dropped`."""

    path: str
    """As configured."""
    fingerprints: dict[str, str]
    """sha256 by file name; for a hub data set `datasets`' fingerprint by its id."""
    format: str
    """How the rows were read."""
    read: int = 0
    """Rows that belong to this split."""
    used: int = 0
    """Rows that the stage gets."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows left out, by reason."""
    truncated: int = 0
    """Used rows that lost their end to the length limit."""
    trimmed: int = 0
    """Used rows that lost turns after their last reply."""

    def line(self, name: str) -> str:
        """One line for the terminal."""
        text = f"{name}: {self.used} of {self.read} rows of {self.path} ({self.format})"
        notes = [f"{n} {reason}" for reason, n in self.dropped.most_common()]
        if notes:
            text += f"; dropped: {', '.join(notes)}"
        if self.truncated:
            text += f"; truncated: {self.truncated}"
        if self.trimmed:
            text += f"; lost turns after the last reply: {self.trimmed}"
        return text


@dataclass(frozen=True)
class DataReport:
    """Both splits."""

    train: SplitReport
    test: SplitReport | None
    """None: nothing is held out."""

    def splits(self) -> dict[str, SplitReport]:
        """The splits there are, by name."""
        return {"train": self.train} | ({"test": self.test} if self.test else {})

    def to_json(self) -> dict[str, Any]:
        """For stage.json: split name to its fields."""
        return {
            name: {**vars(split), "dropped": dict(split.dropped)}
            for name, split in self.splits().items()
        }

    def lines(self) -> list[str]:
        """For the terminal: a line a split."""
        return [split.line(name) for name, split in self.splits().items()]
