"""Texts of stage 1 that are read while training, for sets that do not fit in memory."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import IterableDataset

from cores.data.formats import Example
from cores.data.mixture import Rows, require, tokens_in
from cores.data.report import DataReport, MixtureReport, SplitReport
from cores.data.rows import RowMaker

BUFFER = 1000
"""Rows that wait to be drawn at random: far rows of a file meet, and a thousand texts are small."""


@dataclass(frozen=True)
class StreamedData:
    """As `StageData`, with training rows that come one by one and never end."""

    train: "TextStream"
    test: Rows
    report: DataReport | MixtureReport
    """Its counts grow while `train` is read."""


@dataclass
class Part:
    """The rows of one source, pass after pass, each row once in each."""

    maker: RowMaker
    examples: Callable[[], Iterator[Example]]
    """Those of one pass."""
    report: SplitReport
    seed: int
    key: str
    """The source's, for errors."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """From the beginning. UserError for a malformed row, or if no row can be used."""
        draw = random.Random(self.seed)
        self.report.clear()
        while True:
            used = self.report.used
            for row, truncated in self._one_pass(draw):
                self.report.used += 1
                self.report.truncated += truncated
                self.report.read = self.report.used + self.report.dropped.total()
                yield row
            if self.report.used == used:
                self.report.read = self.report.dropped.total()
                require([], self.report, "row", self.key)
            self.report.passes = (self.report.passes or 0) + 1

    def _one_pass(self, draw: random.Random) -> Iterator[tuple[dict[str, Any], int]]:
        """Each row, and whether it was truncated."""
        ahead = SplitReport(self.report.path, {}, self.report.format, dropped=self.report.dropped)
        buffer: list[tuple[dict[str, Any], int]] = []
        truncated = 0
        for row in self.maker.rows(self.examples(), ahead):
            buffer.append((row, ahead.truncated - truncated))
            truncated = ahead.truncated
            if len(buffer) > BUFFER:
                yield buffer.pop(draw.randrange(len(buffer)))
        draw.shuffle(buffer)
        yield from buffer


@dataclass(eq=False)
class TextStream(IterableDataset[dict[str, Any]]):
    """Rows {"input_ids", "labels"} without end, of one source or several.

    Rows are shuffled within a buffer by the seed, and of several sources the next row is of the one
    that is furthest behind its share, so that every process sees the same order and can take its
    own part of it, and a run that goes on sees what it would have seen.
    """

    parts: list[Part]
    mixture: MixtureReport | None = None
    """Of several sources: their weights, and counts that grow."""
    marked: bool = False
    """Rows say of which source they are, by its number in `part`."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """From the beginning; raises as the parts."""
        rows = [part.rows() for part in self.parts]
        if self.mixture is None:
            yield from rows[0]
            return
        weights, counts, tokens = self.mixture.weights, self.mixture.counts, self.mixture.tokens
        for amounts in (counts, tokens or []):
            amounts[:] = [0] * len(amounts)
        given = counts if tokens is None else tokens
        while True:
            i = min(range(len(rows)), key=lambda i: (given[i] + 1) / weights[i])
            row = next(rows[i])
            counts[i] += 1
            if tokens is not None:
                tokens[i] += tokens_in([row])
            yield {**row, "part": i} if self.marked else row
