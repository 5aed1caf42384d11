"""Streaming: rows of format text, read while training and never all in memory."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from cores.config.schema import Config
from cores.config.sources import SourceSection
from cores.data.formats import Example, Reader
from cores.data.report import DataReport, SplitReport
from cores.data.rows import Outcome, Piece, RowMaker
from cores.data.sources import Source, held_out_source, train_source
from cores.data.split import held_out, require
from cores.errors import UserError

BUFFER = 1000
"""Rows that wait to be drawn at random: far rows of a file meet, and a thousand texts are small."""

TEST_ROWS = 1000
"""Held-out rows kept at most: the mean loss of so many is known to a few percent."""


@dataclass(frozen=True)
class StreamedData:
    """As `StageData`, with training rows that come one by one and never end."""

    train: "TextStream"
    test: list[dict[str, Any]]
    report: DataReport
    """Its counts grow while `train` is read."""


class TextStream(IterableDataset[dict[str, Any]]):
    """Rows {"input_ids", "labels"} without end: pass after pass, each row once in each.

    Rows are shuffled within a buffer by the seed, so that every process sees the same order and
    can take its own part of it.
    """

    def __init__(
        self,
        maker: RowMaker,
        examples: Callable[[], Iterator[Example]],
        report: SplitReport,
        key: str,
        seed: int,
    ) -> None:
        self.maker = maker
        self.examples = examples
        self.report = report
        self.key = key
        self.seed = seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
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


def stream_data(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    section: SourceSection,
    key: str,
    finish: Callable[[Piece], Outcome],
) -> StreamedData:
    """The texts of `section` for stage 1. UserError as `sft_data`; for rows further on, later."""
    fraction = config.data.test_fraction
    train, test = train_source(section, key, True), held_out_source(section, key, True)
    reader = _reader(config, section, train, key)
    maker = RowMaker(config, tokenizer, section, reader, finish)

    def examples(stream: Source, held: bool | None) -> Iterator[Example]:
        for example in map(reader.read, stream.open()):
            if held is None or held_out(example.key, fraction) == held:
                yield example

    split = None if test else False
    report = SplitReport(
        train.path, train.fingerprints, reader.format, hidden=train.hidden, passes=0
    )
    rows = TextStream(maker, lambda: examples(train, split), report, key, config.seed)
    next(iter(rows))  # mistakes at the beginning are told before a model is loaded
    report.clear()
    if not test and not fraction:
        return StreamedData(rows, [], DataReport(report, None))
    if test:
        _reader(config, section, test, key)  # its columns fit too
    held_examples = examples(test, None) if test else examples(train, True)
    source = test or train
    test_report = SplitReport(source.path, source.fingerprints, reader.format, hidden=source.hidden)
    kept = list(maker.rows(islice(held_examples, TEST_ROWS), test_report))
    if test:
        require(kept, test_report, "held-out row", key)
    return StreamedData(rows, kept, DataReport(report, test_report))


def _reader(config: Config, section: SourceSection, stream: Source, key: str) -> Reader:
    first = next(stream.open())
    reader = Reader.of(config, section, list(first.columns), stream.path, "sft", key)
    if reader.format != "text":
        raise UserError(
            f"{key}.streaming reads rows of format text, but {stream.path!r} is of format "
            f"{reader.format}; turn streaming off, or set {key}.format to text if it has a column "
            "text."
        )
    return reader
