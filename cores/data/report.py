"""What was read, used, truncated and dropped: for the terminal and for stage.json."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

FRAMED = "in the template's frame already"
"""Why rows are left out whose prompt or reply a template has written before."""


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
    begun: int = 0
    """Rows that lost an assistant's turns before the first user turn (template.alternate)."""
    alike: int = 0
    """Rows a turn of which holds "Human:" or "Assistant:" behind an empty line."""
    whole: bool = False
    """The base reads prompts as a whole (an encoder, attention both ways)."""
    over: bool = False
    """The template is the configuration's, though the tokenizer has one of its own."""
    passes: int | None = None
    """Complete passes over rows that are streamed; None for others. Counts are of all passes."""
    hidden: int = 0
    """Hidden files of the folder, which were left out."""
    divided: int = 0
    """Rows more than were read: one a reply where a chat template rewrites earlier turns, or where
    prompts are read as a whole."""
    unread: list[str] = field(default_factory=list)
    """Columns that the stage does not read; reward functions of stage 3 get them."""
    repeated: int = 0
    """Rows that begin with a user turn of a row before them."""
    trained_on: int = 0
    """Held-out rows of a file of their own whose first user turn is among the training rows too."""
    preset: Counter[str] | None = None
    """What a preset of `format` read, made and left out, held-out rows among it; None without."""

    def clear(self) -> None:
        """Count from the beginning."""
        self.read = self.used = self.truncated = self.trimmed = self.divided = 0
        self.begun = self.alike = 0
        self.dropped.clear()
        self.passes = None if self.passes is None else 0

    def line(self, name: str) -> str:
        """One line for the terminal."""
        if self.passes is not None and not self.read:
            return f"{name}: rows of {self.path} ({self.format}), streamed while training"
        text = f"{name}: {self.used} of {self.read} rows of {self.path} ({self.format})"
        if self.passes is not None:
            text += f", streamed ({self.passes} whole passes)"
        rewrites = "the chat template rewrites earlier turns"
        why = "the prompt is read as a whole" if self.whole else rewrites
        for told, note in (
            (self.dropped, f"dropped: {self.reasons()}"),
            (self.truncated, f"truncated: {self.truncated}"),
            (self.trimmed, f"lost turns after the last reply: {self.trimmed}"),
            (self.trained_on, f"with a first user turn that is trained on: {self.trained_on}"),
            (self.begun, f"lost turns before the first user turn: {self.begun}"),
            (
                self.alike,
                f"with turns inside a turn, taken apart by transcripts: true: {self.alike}",
            ),
            (self.over, "not in the tokenizer's own chat template (template.kind roles)"),
            (self.hidden, f"hidden files left out: {self.hidden}"),
            (self.divided, f"{self.divided} of them more than conversations, one a reply: {why}"),
            (self.preset, ", ".join(f"{what}: {n}" for what, n in (self.preset or {}).items())),
            (self.unread, f"columns not read: {', '.join(self.unread)}"),
        ):
            text += f"; {note}" if told else ""
        return text

    def reasons(self) -> str:
        """Why rows were left out, the most frequent first."""
        return ", ".join(f"{n} {reason}" for reason, n in self.dropped.most_common())


@dataclass(frozen=True)
class DataReport:
    """Both splits of one source."""

    train: SplitReport
    test: SplitReport | None
    """None: nothing is held out."""

    def splits(self) -> dict[str, SplitReport]:
        """The splits there are, by name."""
        return {"train": self.train} | ({"test": self.test} if self.test else {})

    def to_json(self) -> dict[str, Any]:
        """For stage.json: split name to its fields."""
        return {
            name: {k: v for k, v in vars(split).items() if v is not None}
            | {"dropped": dict(split.dropped)}
            for name, split in self.splits().items()
        }

    def lines(self) -> list[str]:
        """For the terminal: a line a split."""
        lines = [split.line(name) for name, split in self.splits().items()]
        if self.test is not None and self.test.passes is None and not self.test.used:
            lines.append(
                "note: no row is held out, so nothing is measured on unseen rows; raise "
                "data.test_fraction, or give the source a test_path"
            )
        return lines


@dataclass(frozen=True)
class MixtureReport:
    """Several sources."""

    sources: list[DataReport]
    """In the order of the configuration."""
    weights: list[float]
    """As configured."""
    counts: list[int]
    """Training rows of each in the mixture, repetitions included; of a stream those read."""
    tokens: list[int] | None = None
    """Their tokens, where weights are shares of tokens."""

    def to_json(self) -> dict[str, Any]:
        """For stage.json: an entry a source, in `sources`."""
        return {
            "sources": [
                {"weight": weight, "share": share} | amounts | source.to_json()
                for source, weight, amounts, share in self._entries()
            ]
        }

    def lines(self) -> list[str]:
        """For the terminal: a line a source and split."""
        lines = []
        for source, weight, amounts, share in self._entries():
            first, *rest = source.lines()
            told = ", ".join(f"{count} {name}" for name, count in amounts.items())
            told = f": {told}, {share:.2%} of all" if any(self.counts) else ""
            lines += [f"{first}; weight {weight:g}{told}", *rest]
        return lines

    def _entries(self) -> Iterator[tuple[DataReport, float, dict[str, int], float]]:
        weighed = self.tokens or self.counts
        shares = [amount / (sum(weighed) or 1) for amount in weighed]
        amounts = [{"rows": count} for count in self.counts]
        for each, tokens in zip(amounts, self.tokens or [], strict=False):
            each["tokens"] = tokens
        return zip(self.sources, self.weights, amounts, shares, strict=True)
