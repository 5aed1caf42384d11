"""The data of each stage: read -> conversations -> segments -> ids, split, truncated, counted.

In memory, or for texts of stage 1 read while training (`StreamedData`).
"""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerBase

from cores.config.data import OneSource, SourceSection
from cores.config.schema import Config
from cores.data.columns import columns_of, renaming, require_read, standard
from cores.data.formats import NO_TURN, Example, Reader, Stage
from cores.data.images import by_images, shown
from cores.data.mixture import interleave, mix
from cores.data.presets import converted
from cores.data.ratings import RatingReader
from cores.data.report import DataReport, MixtureReport, SplitReport
from cores.data.rows import RowMaker
from cores.data.sides import TEXT, Inputs
from cores.data.sources import Source, sources
from cores.errors import UserError

BUFFER = 1000
"""Rows that wait to be drawn at random: far rows of a file meet, and a thousand texts are small."""

TEST_ROWS = 1000
"""Held-out rows of a stream kept at most: their mean loss is then known to a few percent."""

KEY = "data.sft"
"""Section of the rows that may be streamed."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class StageData:
    """What a stage trains and is judged on."""

    train: Rows
    """Of the form that `sft_data`, `preference_data` and `prompt_data` tell."""
    test: Rows
    """Rows of the same form; empty if nothing is held out."""
    report: DataReport | MixtureReport
    """Where they came from, and what was left out."""


@dataclass(frozen=True)
class StreamedData:
    """As `StageData`, with training rows that come one by one and never end."""

    train: "TextStream"
    test: Rows
    report: DataReport
    """Its counts grow while `train` is read."""


def sft_data(
    config: Config, tokenizer: PreTrainedTokenizerBase, inputs: Inputs = TEXT
) -> StageData | StreamedData:
    """Demonstrations: rows {"input_ids": list[int], "labels": list[int]}, -100 where untrained.

    With model.attention prefix a reply a row, and "prompt_length": int. Of an encoder-decoder rows
    of `sides.sided_row`. Of a base that reads images they have "images": list[str], the files in
    the order of their tokens, and "where": str, which names the row.

    Raises UserError for anything wrong with the source, or if no row is left to train on.
    """
    if config.data.sft.streaming:
        return _streamed(config, tokenizer)
    return _build(config, tokenizer, "sft", "data.sft", config.data.sft, inputs)


def preference_data(config: Config, tokenizer: PreTrainedTokenizerBase) -> StageData:
    """Pairs: rows {"chosen_ids": list[int], "rejected_ids": list[int], "prompt_length": int,
    "margin": float}. Of reward.kind pointwise and binned: rows {"ids": list[int],
    "prompt_length": int, "score": float}.

    All ids end with the reply's stop token (or are cut before it), never with what a chat
    template writes after it: stage 3 scores replies that end there. margin is in units of score,
    0 where the row has none. Raises as `sft_data`.
    """
    return _build(config, tokenizer, "reward", "data.preference", config.data.preference)


def prompt_data(config: Config, tokenizer: PreTrainedTokenizerBase) -> StageData:
    """Prompts: rows {"input_ids": list[int], "prompt": str, "turns": list[Turn], "row": dict}.

    prompt is the text as rendered, turns what was rendered. row is the row as it was read: a reward
    function may need more than the prompt, such as the answer. The ids begin the stage-1 and
    stage-2 rows with the same prompt. Of a text without turns the prompt is its first
    `prompt_tokens` tokens. Raises as `sft_data`.
    """
    return _build(config, tokenizer, "ppo", "data.prompts", config.data.prompts)


def _build(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    stage: Stage,
    key: str,
    section: SourceSection,
    inputs: Inputs = TEXT,
) -> StageData:
    """Of the one source of `section`, which stands at `key`, or of several with weights."""
    if not section.sources:
        return StageData(*_one(config, tokenizer, stage, key, section, inputs))
    parts = [
        _one(config, tokenizer, stage, f"{key}.sources[{i}]", source, inputs)
        for i, source in enumerate(section.sources)
    ]
    trains, tests, reports = zip(*parts, strict=True)
    weights = [source.weight for source in section.sources]
    train, counts = mix(trains, weights, config.seed)
    for i, source in enumerate(section.sources):
        if not counts[i]:
            raise UserError(
                f"{key}.sources[{i}].weight: {source.weight:g} of {sum(weights):g} in all is none "
                f"of the {len(train)} training rows, so nothing of {source.path!r} would be used. "
                "Raise the weight, give more rows, or remove the item."
            )
    return StageData(train, interleave(tests), MixtureReport(list(reports), weights, counts))


def _one(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    stage: Stage,
    key: str,
    section: OneSource,
    inputs: Inputs,
) -> tuple[Rows, Rows, DataReport]:
    """Training rows, held-out rows and counts of one source."""

    rated = stage == "reward" and config.reward.kind != "pairwise"
    kind = RatingReader if rated else Reader

    def read(source: Source) -> tuple[Reader, list[Example], Counter[str] | None]:
        rows = list(source.open())
        names = renaming(section.columns, columns_of(rows), source.path, key)
        rows = [standard(row, names) for row in rows]
        rows, fitted, counts = converted(rows, section, config, stage, key)
        rows, fitted = shown(config, fitted, source.path, rows, key, inputs.images is not None)
        reader = kind(config, fitted, columns_of(rows), source.path, stage, key)
        if stage != "ppo":  # reward functions get them all
            require_read(names, reader.unread, reader.format, key)
        return reader, [by_images(reader.read(row)) for row in rows], counts

    def made(
        source: Source, reader: Reader, examples: list[Example], counts: Counter[str] | None = None
    ) -> tuple[Rows, SplitReport]:
        report = SplitReport(
            source.path,
            source.fingerprints,
            reader.format,
            hidden=source.hidden,
            unread=reader.unread,
            preset=counts,
        )
        maker = RowMaker(config, tokenizer, section, reader, inputs)
        return list(maker.rows(examples, report)), report

    source, other = sources(section, key)
    reader, examples, counts = read(source)
    fraction = config.data.test_fraction
    sides: tuple[list[Example], list[Example]] = (examples, [])
    if other is None:
        sides = ([], [])
        for example in examples:
            sides[held_out(example.key, fraction)].append(example)
        if not sides[0]:
            raise UserError(
                f"{key}.path {section.path!r}: all {len(examples)} rows fall into the held-out "
                f"share data.test_fraction {fraction}; give more rows, or lower it (0: none)."
            )
    train, report = made(source, reader, sides[0], counts)
    if other is None:
        test, test_report = made(source, reader, sides[1])
    else:
        test, test_report = made(other, *read(other))
        require(test, test_report, "held-out row", key)
    require(train, report, "row", key)
    return train, test, DataReport(report, test_report if other or fraction else None)


def held_out(key: str, fraction: float) -> bool:
    """Whether rows with this first user turn are held out: by its sha256, mapped to 0..1."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


def require(rows: Rows, report: SplitReport, what: str, key: str) -> None:
    """UserError with the counts if nothing is left."""
    if rows:
        return
    reasons = ", ".join(f"{n} {reason}" for reason, n in report.dropped.most_common())
    remedy = f", or set {key}.transcripts to false" if NO_TURN in report.dropped else ""
    raise UserError(
        f"{key}: no {what} of {report.path!r} is left: {report.read} read as format "
        f"{report.format}, all dropped ({reasons}); correct the rows, raise the length limit named "
        f"if one is, or give another {key}.format{remedy}."
    )


@dataclass(eq=False)
class TextStream(IterableDataset[dict[str, Any]]):
    """Rows {"input_ids", "labels"} without end: pass after pass, each row once in each.

    Rows are shuffled within a buffer by the seed, so that every process sees the same order and
    can take its own part of it.
    """

    maker: RowMaker
    examples: Callable[[], Iterator[Example]]
    """Those of one pass."""
    report: SplitReport
    seed: int

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
                require([], self.report, "row", KEY)
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


def _streamed(config: Config, tokenizer: PreTrainedTokenizerBase) -> StreamedData:
    """The texts of stage 1. UserError as `sft_data`; for rows further on, later."""
    section, fraction = config.data.sft, config.data.test_fraction
    source, other = sources(section, KEY, streaming=True)
    source, other = _renamed(source, section), other and _renamed(other, section)
    reader = _text_reader(config, source)
    maker = RowMaker(config, tokenizer, section, reader)

    def examples(held: bool) -> Iterator[Example]:
        for example in map(reader.read, (other if other and held else source).open()):
            if other or held_out(example.key, fraction) == held:
                yield example

    def counts(source: Source, passes: int | None) -> SplitReport:
        return SplitReport(
            source.path,
            source.fingerprints,
            reader.format,
            hidden=source.hidden,
            passes=passes,
            unread=reader.unread,
        )

    report = counts(source, 0)
    rows = TextStream(maker, lambda: examples(False), report, config.seed)
    next(iter(rows))  # mistakes at the beginning are told before a model is loaded
    report.clear()
    if not other and not fraction:
        return StreamedData(rows, [], DataReport(report, None))
    if other:
        _text_reader(config, other)  # its columns fit too
    test_report = counts(other or source, None)
    kept = list(maker.rows(islice(examples(True), TEST_ROWS), test_report))
    if other:
        require(kept, test_report, "held-out row", KEY)
    return StreamedData(rows, kept, DataReport(report, test_report))


def _renamed(source: Source, section: OneSource) -> Source:
    """The columns are those of the first row."""
    names = renaming(section.columns, columns_of([next(source.open())]), source.path, KEY)
    return replace(source, open=lambda: (standard(row, names) for row in source.open()))


def _text_reader(config: Config, source: Source) -> Reader:
    columns = list(next(source.open()).columns)
    reader = Reader(config, config.data.sft, columns, source.path, "sft", KEY)
    if reader.format != "text":
        raise UserError(
            f"{KEY}.streaming reads rows of format text, but {source.path!r} is of format "
            f"{reader.format}; turn streaming off, or set {KEY}.format to text if it has a column "
            "text."
        )
    if lost := sorted(config.data.sft.columns.keys() - {"text"}):
        raise UserError(
            f"{KEY}.columns: names {', '.join(lost)}, of which a stream reads nothing; name the "
            "text alone."
        )
    return reader
