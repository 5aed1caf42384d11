"""Texts of stage 1 that are read while training, for sets that do not fit in memory."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from cores.config.data import OneSource
from cores.config.schema import Config
from cores.data.columns import columns_of, renaming, standard
from cores.data.formats import Example, Reader
from cores.data.images import shown
from cores.data.mixture import Rows, held_out, interleave, require, tokens_in
from cores.data.report import DataReport, MixtureReport, SplitReport
from cores.data.rows import RowMaker
from cores.data.sources import Source, sources
from cores.errors import UserError

BUFFER = 1000
"""Rows that wait to be drawn at random: far rows of a file meet, and a thousand texts are small."""

TEST_ROWS = 1000
"""Held-out rows of a stream kept at most: their mean loss is then known to a few percent."""

KEY = "data.sft"
"""Section of the rows that may be streamed."""


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


def streamed(config: Config, tokenizer: PreTrainedTokenizerBase) -> StreamedData:
    """The texts of stage 1. UserError as `sft_data`, and for options of images; for rows further
    on, later."""
    section = config.data.sft
    if not section.sources:
        part, kept, report = _one(config, tokenizer, section, KEY)
        return StreamedData(TextStream([part]), kept, report)
    several = enumerate(section.sources)
    each = [_one(config, tokenizer, source, f"{KEY}.sources[{i}]") for i, source in several]
    parts, tests, reports = zip(*each, strict=True)
    weights, none = [source.weight for source in section.sources], [0] * len(parts)
    tokens = [*none] if section.weigh == "tokens" else None
    mixture = MixtureReport(list(reports), weights, none, tokens)
    marked = any(source.loss_weight is not None for source in section.sources)
    return StreamedData(TextStream(list(parts), mixture, marked), interleave(tests), mixture)


def _one(
    config: Config, tokenizer: PreTrainedTokenizerBase, section: OneSource, key: str
) -> tuple[Part, Rows, DataReport]:
    """Training rows, held-out rows and counts of one source."""
    fraction = config.data.test_fraction
    source, other = sources(section, key, streaming=True)
    shown(config, section, source.path, [], key, reads=False)
    source, other = _renamed(source, section, key), other and _renamed(other, section, key)
    reader = _text_reader(config, section, source, key)
    maker = RowMaker(config, tokenizer, section, reader)
    known = {"text", *reader.unread}
    """Columns; what comes with a later row is refused or named as if it were in the first."""

    def examples(held: bool) -> Iterator[Example]:
        for row in (other if other and held else source).open():
            reader.unread += [name for name in row.columns if name not in known]
            known.update(row.columns)
            example = reader.read(row)
            if other or held_out(example.key, fraction) == held:
                yield example

    def counts(source: Source, passes: int | None) -> SplitReport:
        told = (source.path, source.fingerprints, reader.format)
        return SplitReport(*told, hidden=source.hidden, passes=passes, unread=reader.unread)

    report = counts(source, 0)
    part = Part(maker, lambda: examples(False), report, config.seed, key)
    next(part.rows())  # mistakes at the beginning are told before a model is loaded
    report.clear()
    if not other and not fraction:
        return part, [], DataReport(report, None)
    if other:
        _text_reader(config, section, other, key)  # its columns fit too
    test_report = counts(other or source, None)
    kept = list(maker.rows(islice(examples(True), TEST_ROWS), test_report))
    if other:
        require(kept, test_report, "held-out row", key)
    return part, kept, DataReport(report, test_report)


def _renamed(source: Source, section: OneSource, key: str) -> Source:
    """The columns are those of the first row."""
    names = renaming(section.columns, columns_of([next(source.open())]), source.path, key)
    return replace(source, open=lambda: (standard([row], names)[0] for row in source.open()))


def _text_reader(config: Config, section: OneSource, source: Source, key: str) -> Reader:
    columns = next(source.open()).columns.keys()
    later = [name for name in section.ignore if name not in columns]
    reader = Reader(config, section, [*columns, *later], source.path, "sft", key)
    if reader.format != "text":
        raise UserError(
            f"{KEY}.streaming reads rows of format text, but {source.path!r} is of format "
            f"{reader.format}; turn streaming off, or set {key}.format to text if it has a column "
            "text."
        )
    if lost := sorted(section.columns.keys() - {"text"}):
        raise UserError(
            f"{key}.columns: names {', '.join(lost)}, of which a stream reads nothing; name the "
            "text alone."
        )
    return reader
