"""The data of each stage: read -> conversations -> segments -> ids, split, truncated, counted.

In memory, or for texts of stage 1 read while training (`stream.StreamedData`).
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
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
from cores.data.sources import Row, Source, sources
from cores.data.stream import StreamedData, streamed
from cores.data.transcripts import first_user_turn
from cores.errors import UserError


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
        return streamed(config, tokenizer)
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
    by_tokens = section.weigh == "tokens"
    if any(source.loss_weight is not None for source in section.sources):
        trains = tuple([{**row, "part": i} for row in part] for i, part in enumerate(trains))
    train, mixed = mix(trains, weights, config.seed, by_tokens)
    counts, tokens = [len(part) for part in mixed], [tokens_in(part) for part in mixed]
    for i, source in enumerate(section.sources):
        if not counts[i]:
            raise UserError(
                f"{key}.sources[{i}].weight: {source.weight:g} of {sum(weights):g} in all is none "
                f"of the {len(train)} training rows, so nothing of {source.path!r} would be used. "
                "Raise the weight, give more rows, or remove the item."
            )
    return StageData(
        train,
        interleave(tests),
        MixtureReport(list(reports), weights, counts, tokens if by_tokens else None),
    )


def _read(
    config: Config, stage: Stage, key: str, section: OneSource, inputs: Inputs, source: Source
) -> tuple[Reader, list[Example], Counter[str] | None]:
    """The rows of a source under a reader that fits them, and what a preset made of what."""
    rated = stage == "reward" and config.reward.kind != "pairwise"
    kind = RatingReader if rated else Reader
    rows = list(source.open())
    if stage == "ppo" and section.format is None and kind_of(Path(source.path)) == ".txt":
        rows = _prompts(rows[0], f"{key}.path {source.path}")[: section.limit]
    names = renaming(section.columns, columns_of(rows), source.path, key)
    rows = standard(rows, names)
    rows, fitted, counts = converted(rows, section, config, stage, key)
    rows, fitted = shown(config, fitted, source.path, rows, key, inputs.images is not None)
    reader = kind(config, fitted, columns_of(rows), source.path, stage, key)
    check_options(section, stage, reader, key, source.path)
    if stage != "ppo":  # reward functions get them all
        require_read(names, reader.unread, reader.format, key)
    return reader, [by_images(reader.read(row)) for row in rows], counts


def _prompts(text: Row, what: str) -> list[Row]:
    """Of a text file the prompts, one a line; empty lines are none. UserError if it has none."""
    file, found = text.where.rpartition(":")[0], re.split(r"\r\n?|\n", text.columns["text"])
    rows = [Row(f"{file}:{i}", {"prompt": x.strip()}) for i, x in enumerate(found, 1) if x.strip()]
    if not rows:
        raise UserError(f"{what}: holds no prompt; write one a line.")
    return rows


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
    items: list[OneSource] = [*section.sources] or [section]
    asked: set[str] = set()
    for one in items:
        if config.reward.path or one.path is None or not Path(one.path).expanduser().exists():
            return []
        try:
            source, other = sources(one, key)
            examples = _read(config, "reward", key, one, inputs, source)[1]
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
    read = partial(_read, config, stage, key, section, inputs)

    def made(
        source: Source, reader: Reader, examples: list[Example], counts: Counter[str] | None = None
    ) -> tuple[Rows, SplitReport]:
        unread = [*reader.unread, *(f"{n} (of turns)" for n in sorted(reader.ignore.unread))]
        told = (source.path, source.fingerprints, reader.format)
        report = SplitReport(*told, hidden=source.hidden, unread=unread, preset=counts)
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
    report.repeated = len(sides[0]) - len({example.key for example in sides[0]})
    if other is None:
        test, test_report = made(source, reader, sides[1])
    else:
        other_reader, others, other_counts = read(other)
        test, test_report = made(other, other_reader, others, other_counts)
        require(test, test_report, "held-out row", key)
        known = {example.key for example in examples}
        test_report.trained_on = sum(e.key in known for e in others if e.dropped is None)
    require(train, report, "row", key)
    return train, test, DataReport(report, test_report if other or fraction else None)
