"""The data of each stage: read -> conversations -> segments -> ids, split, truncated, counted.

In memory, or for texts of stage 1 read while training (`stream.StreamedData`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cores.config.data import OneSource, SourceSection
from cores.config.schema import Config
from cores.data.columns import columns_of, renaming, require_read, standard
from cores.data.files import kind_of
from cores.data.formats import LISTS, Example, Reader, Stage
from cores.data.images import by_images, shown
from cores.data.mixture import Rows, held_out, interleave, mix, require, tokens_in
from cores.data.presets import converted
from cores.data.ratings import RatingReader
from cores.data.report import DataReport, MixtureReport, SplitReport
from cores.data.rows import RowMaker
from cores.data.sides import TEXT, Inputs
from cores.data.sources import Row, Source, prompts_of, sources
from cores.data.stream import Part, StreamedData, TextStream
from cores.data.transcripts import first_user_turn
from cores.errors import UserError

TEST_ROWS = 1000
"""Held-out rows of a stream kept at most: their mean loss is then known to a few percent."""


@dataclass(frozen=True)
class StageData:
    """What a stage trains and is judged on."""

    train: Rows
    """Of the form that `sft_data`, `preference_data` and `prompt_data` tell."""
    test: Rows
    """Rows of the same form; empty if nothing is held out."""
    report: DataReport | MixtureReport
    """Where they came from, and what was left out."""


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


def preference_data(
    config: Config, tokenizer: PreTrainedTokenizerBase, inputs: Inputs = TEXT
) -> StageData:
    """Pairs: rows {"chosen_ids": list[int], "rejected_ids": list[int], "prompt_length": int,
    "margin": float}. Of reward.kind pointwise and binned: rows {"ids": list[int],
    "prompt_length": int, "score": float}, of the latter "class": int from 0 too.

    All ids end with the reply's stop token (or are cut before it), never with what a chat
    template writes after it: stage 3 scores replies that end there. margin is in units of score,
    0 where the row has none. Of an encoder-decoder the first prompt_length ids are the encoder's,
    the rest the decoder's. Raises as `sft_data`.
    """
    return _build(config, tokenizer, "reward", "data.preference", config.data.preference, inputs)


def prompt_data(
    config: Config, tokenizer: PreTrainedTokenizerBase, inputs: Inputs = TEXT
) -> StageData:
    """Prompts: rows {"input_ids": list[int], "prompt": str, "turns": list[Turn], "row": dict}.

    prompt is the text as rendered, turns what was rendered. row is the row as it was read: a reward
    function may need more than the prompt, such as the answer. The ids begin the stage-1 and
    stage-2 rows with the same prompt. Of a text without turns the prompt is its first
    `prompt_tokens` tokens. Raises as `sft_data`.
    """
    return _build(config, tokenizer, "ppo", "data.prompts", config.data.prompts, inputs)


def _build(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    stage: Stage,
    key: str,
    section: SourceSection,
    inputs: Inputs,
) -> StageData:
    """Of the one source of `section`, which stands at `key`, or of several with weights."""
    items = section.items(key)
    parts = [_one(config, tokenizer, stage, place, source, inputs) for place, source in items]
    if not section.sources:
        return StageData(*parts[0])
    trains, tests, reports = zip(*parts, strict=True)
    mixture, marked = _mixture(section, reports)
    if marked:
        trains = tuple([{**row, "part": i} for row in part] for i, part in enumerate(trains))
    by_tokens = mixture.tokens is not None
    train, mixed = mix(trains, mixture.weights, config.seed, by_tokens)
    mixture.counts[:] = [len(part) for part in mixed]
    if mixture.tokens is not None:
        mixture.tokens[:] = [tokens_in(part) for part in mixed]
    for (place, source), weight, count in zip(items, mixture.weights, mixture.counts, strict=True):
        if not count:
            raise UserError(
                f"{place}.weight: {weight:g} of {sum(mixture.weights):g} in all is none of the "
                f"{len(train)} training rows, so nothing of {source.path!r} would be used. Raise "
                "the weight, give more rows, or remove the item."
            )
    return StageData(train, interleave(tests), mixture)


def _streamed(config: Config, tokenizer: PreTrainedTokenizerBase) -> StreamedData:
    """The texts of stage 1; UserError for rows further on comes later."""
    section = config.data.sft
    each = [_stream(config, tokenizer, *item) for item in section.items("data.sft")]
    parts, tests, reports = zip(*each, strict=True)
    if not section.sources:
        return StreamedData(TextStream([*parts]), tests[0], reports[0])
    mixture, marked = _mixture(section, reports)
    return StreamedData(TextStream([*parts], mixture, marked), interleave(tests), mixture)


def _mixture(section: SourceSection, reports: Iterable[DataReport]) -> tuple[MixtureReport, bool]:
    """With nothing counted; and whether rows say of which source they are."""
    weights = [source.weight for source in section.sources]
    tokens = [0] * len(weights) if section.weigh == "tokens" else None
    marked = any(source.loss_weight is not None for source in section.sources)
    return MixtureReport([*reports], weights, [0] * len(weights), tokens), marked


Fitted = tuple[Reader, dict[str, str], list[Row], Counter[str] | None]
"""A reader, the file's columns to the standard ones, rows as it takes them, what a preset made."""


def _fitted(
    config: Config,
    stage: Stage,
    key: str,
    section: OneSource,
    inputs: Inputs,
    source: Source,
    first: int | None = None,
) -> Fitted:
    """For its rows, or its `first` ones; columns that `ignore` names may then come later."""
    kind = RatingReader if stage == "reward" and config.reward.kind != "pairwise" else Reader
    rows = list(islice(source.open(), first))
    if stage == "ppo" and section.format is None and kind_of(Path(source.path)) == ".txt":
        rows = prompts_of(rows[0], f"{key}.path {source.path}")[: section.limit]
    names = renaming(section.columns, columns_of(rows), source.path, key)
    rows = standard(rows, names)
    rows, fitted, counts = converted(rows, section, config, stage, key)
    rows, fitted = shown(config, fitted, source.path, rows, key, inputs.images is not None)
    columns = columns_of(rows)
    later = [] if first is None else [name for name in section.ignore if name not in columns]
    reader = kind(config, fitted, [*columns, *later], source.path, stage, key)
    check_options(section, stage, reader, key, source.path)
    if stage != "ppo":  # reward functions get them all
        require_read(names, reader.unread, reader.format, key)
    return reader, names, rows, counts


def check_options(section: OneSource, stage: Stage, reader: Reader, key: str, path: str) -> None:
    """UserError for options that do nothing on rows of the format that was found."""
    turns = reader.column in LISTS and reader.format != "preference"
    for name, nothing in (
        ("transcripts", turns),
        ("prompt_tokens", stage == "ppo" and not reader.plain),
    ):
        if nothing and getattr(section, name) != getattr(OneSource(), name):
            raise UserError(
                f"{key}.{name}: has no effect on the rows of {path!r}, which are of format "
                f"{reader.format}, read from the column {reader.column}; remove it."
            )


def overlap(config: Config, data: StageData, inputs: Inputs = TEXT) -> list[str]:
    """A line, if there is one to say: how many prompts of stage 3 are first user turns of the pairs
    that stage 2 was trained on, where these lie in files and no other model scores."""
    section, key = config.data.preference, "data.preference"
    asked: set[str] = set()
    for _, one in section.items(key):
        if config.reward.path or one.path is None or not Path(one.path).expanduser().exists():
            return []
        try:
            source, other = sources(one, key)
            reader, _, read, _ = _fitted(config, "reward", key, one, inputs, source)
            examples = [by_images(reader.read(row)) for row in read]
        except UserError as error:  # a file that has changed since is no mistake of this stage
            return [f"note: stage 2's pairs were not compared with the prompts: {error}"]
        fraction = 0.0 if other else config.data.test_fraction
        asked |= {example.key for example in examples if not held_out(example.key, fraction)}
    told = []
    for name, rows in (("prompts", data.train), ("held-out prompts", data.test)):
        count = sum(first_user_turn(row["turns"]) in asked for row in rows)
        told += [f"{count} of {len(rows)} {name}"] if count else []
    return [f"asked in stage 2's training pairs too: {', '.join(told)}"] if told else []


def _one(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    stage: Stage,
    key: str,
    section: OneSource,
    inputs: Inputs,
) -> tuple[Rows, Rows, DataReport]:
    """Training rows, held-out rows and counts of one source."""

    def read(source: Source) -> tuple[Reader, list[Example], Counter[str] | None]:
        reader, _, rows, counts = _fitted(config, stage, key, section, inputs, source)
        return reader, [by_images(reader.read(row)) for row in rows], counts

    def made(
        source: Source, reader: Reader, examples: list[Example], counts: Counter[str] | None
    ) -> tuple[Rows, SplitReport]:
        unread = [*reader.unread, *(f"{n} (of turns)" for n in sorted(reader.ignore.unread))]
        told = (source.path, source.fingerprints, reader.format)
        report = SplitReport(*told, hidden=source.hidden, unread=unread, preset=counts)
        maker = RowMaker(config, tokenizer, section, reader, inputs)
        return list(maker.rows(examples, report)), report

    fraction = config.data.test_fraction
    source, other = sources(section, key)
    reader, examples, counts = read(source)
    test_reader, held, test_counts = read(other) if other else (reader, [], None)
    if other is None:
        held = [example for example in examples if held_out(example.key, fraction)]
        examples = [example for example in examples if not held_out(example.key, fraction)]
        if not examples:
            raise UserError(
                f"{key}.path {section.path!r}: all {len(held)} rows fall into the held-out "
                f"share data.test_fraction {fraction}; give more rows, or lower it (0: none)."
            )
    train, report = made(source, reader, examples, counts)
    test, test_report = made(other or source, test_reader, held, test_counts)
    known = {example.key for example in examples}
    report.repeated = len(examples) - len(known)
    test_report.trained_on = sum(e.key in known for e in held if e.dropped is None)
    if other is not None:
        require(test, test_report, "held-out row", key)
    require(train, report, "row", key)
    return train, test, DataReport(report, test_report if other or fraction else None)


def _stream(
    config: Config, tokenizer: PreTrainedTokenizerBase, key: str, section: OneSource
) -> tuple[Part, Rows, DataReport]:
    """As `_one`, of texts that are read while training."""
    fraction = config.data.test_fraction
    source, other = sources(section, key, streaming=True)
    fit = partial(_fitted, config, "sft", key, section, TEXT, first=1)
    fitted = [(each, fit(each)) for each in (source, other) if each is not None]
    for each, (reader, *_) in fitted:
        if reader.format != "text":
            raise UserError(
                f"data.sft.streaming reads rows of format text, but {each.path!r} is of format "
                f"{reader.format}; turn streaming off, or set {key}.format to text if it has a "
                "column text."
            )
    reader, names = fitted[0][1][:2]
    maker = RowMaker(config, tokenizer, section, reader)
    known = {"text", *reader.unread}
    """Columns; what comes with a later row is refused or named as if it were in the first."""

    def examples(held: bool) -> Iterator[Example]:
        for row in (other if other and held else source).open():
            (row,) = standard([row], names)
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
    test_report = counts(other or source, None)
    kept = list(maker.rows(islice(examples(True), TEST_ROWS), test_report))
    if other:
        require(kept, test_report, "held-out row", key)
    return part, kept, DataReport(report, test_report)
