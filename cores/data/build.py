"""The data of each stage: read -> conversations -> segments -> ids, split, truncated, counted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.config.schema import Config
from cores.config.sources import OneSource, SourceSection
from cores.data.encode import IGNORED
from cores.data.formats import Example, Reader, Stage
from cores.data.mixture import interleave, mix
from cores.data.report import DataReport, MixtureReport, SplitReport
from cores.data.rows import Outcome, Piece, RowMaker
from cores.data.sources import Source, held_out_source, train_source
from cores.data.split import held_out, require
from cores.data.stream import StreamedData, stream_data
from cores.data.template import with_system
from cores.errors import UserError


@dataclass(frozen=True)
class StageData:
    """What a stage trains and is judged on."""

    train: list[dict[str, Any]]
    """sft: input_ids, labels. reward: chosen_ids, rejected_ids, prompt_length, margin. ppo:
    input_ids, prompt, turns, row."""
    test: list[dict[str, Any]]
    """Rows of the same form; empty if nothing is held out."""
    report: DataReport | MixtureReport
    """Where they came from, and what was left out."""


def sft_data(config: Config, tokenizer: PreTrainedTokenizerBase) -> StageData | StreamedData:
    """Demonstrations: rows {"input_ids": list[int], "labels": list[int]}, -100 where untrained.

    Raises UserError for anything wrong with the source, or if no row is left to train on.
    """
    limit = config.sft.max_length

    def finish(piece: Piece) -> Outcome:
        (row,) = piece.rows
        labels = row.labels[:limit]
        if all(label == IGNORED for label in labels[1:]):  # nothing predicts the first token
            return None, "no trained token within sft.max_length", False
        return {"input_ids": row.ids[:limit], "labels": labels}, "", len(row.ids) > limit

    if config.data.sft.streaming:
        return stream_data(config, tokenizer, config.data.sft, "data.sft", finish)
    return _build(config, tokenizer, "sft", finish)


def preference_data(config: Config, tokenizer: PreTrainedTokenizerBase) -> StageData:
    """Pairs: rows {"chosen_ids": list[int], "rejected_ids": list[int], "prompt_length": int,
    "margin": float}.

    Both sides end with the reply's stop token (or are cut before it), never with what a chat
    template writes after it: stage 3 scores replies that end there. margin is in units of score,
    0 where the row has none. Raises as `sft_data`.
    """
    limit = config.reward.max_length

    def finish(piece: Piece) -> Outcome:
        chosen, rejected = (row.ids[: row.reply_end] for row in piece.rows)
        prompt_length = piece.rows[0].prompt_length
        if chosen == rejected:
            return None, "chosen equals rejected", False
        if prompt_length >= limit:
            return None, "prompt as long as reward.max_length", False
        if chosen[:limit] == rejected[:limit]:
            return None, "equal after truncation to reward.max_length", False
        row = {
            "chosen_ids": chosen[:limit],
            "rejected_ids": rejected[:limit],
            "prompt_length": prompt_length,
            "margin": piece.example.margin,
        }
        return row, "", max(len(chosen), len(rejected)) > limit

    return _build(config, tokenizer, "reward", finish)


def prompt_data(config: Config, tokenizer: PreTrainedTokenizerBase) -> StageData:
    """Prompts: rows {"input_ids": list[int], "prompt": str, "turns": list[Turn], "row": dict}.

    prompt is the text as rendered, turns what was rendered. row is the row as it was read: a reward
    function may need more than the prompt, such as the answer. The ids begin the stage-1 and
    stage-2 rows with the same prompt. Of a text without turns the prompt is its first
    `prompt_tokens` tokens. Raises as `sft_data`.
    """
    limit = config.ppo.max_prompt_length

    def finish(piece: Piece) -> Outcome:
        ids = piece.rows[0].ids
        prompt = "".join(segment.text for segment in piece.texts[0])
        if piece.texts[0][0].role == "text":
            length = beginning(tokenizer, ids, piece.leading, piece.source.prompt_tokens)
            if length >= len(ids) - 1:  # nothing before the stop token is left to write
                return None, "text not longer than prompt_tokens", False
            ids = ids[:length]
            prompt = _decoded(tokenizer, ids[piece.leading :])
        if len(ids) > limit:
            return None, "prompt longer than ppo.max_prompt_length", False
        turns = with_system(piece.example.conversations[0], config.template.system_prompt)
        columns = piece.example.row.columns
        row = {"input_ids": ids, "prompt": prompt, "turns": turns, "row": columns}
        return row, "", False

    return _build(config, tokenizer, "ppo", finish)


def beginning(tokenizer: PreTrainedTokenizerBase, ids: list[int], leading: int, tokens: int) -> int:
    """Length of the beginning of `ids` that holds `tokens` tokens after the `leading` ones, or as
    many more as a character takes whose bytes are spread over several."""
    whole = _decoded(tokenizer, ids[leading:])
    for length in range(leading + tokens, len(ids)):
        if whole.startswith(_decoded(tokenizer, ids[leading:length])):
            return length
    return len(ids)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _build(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    stage: Stage,
    finish: Callable[[Piece], Outcome],
) -> StageData:
    name = {"sft": "sft", "reward": "preference", "ppo": "prompts"}[stage]
    section: SourceSection = getattr(config.data, name)
    key = f"data.{name}"
    if not section.sources:
        return StageData(*_one(config, tokenizer, stage, section, key, finish))
    parts = [
        _one(config, tokenizer, stage, source, f"{key}.sources[{i}]", finish)
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
    section: OneSource,
    key: str,
    finish: Callable[[Piece], Outcome],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], DataReport]:
    """Training rows, held-out rows and counts of one source, which stands at `key`."""

    def used(
        source: Source, reader: Reader, examples: list[Example]
    ) -> tuple[list[dict[str, Any]], SplitReport]:
        report = SplitReport(source.path, source.fingerprints, reader.format, hidden=source.hidden)
        maker = RowMaker(config, tokenizer, section, reader, finish)
        return list(maker.rows(examples, report)), report

    def read(source: Source) -> tuple[Reader, list[Example]]:
        rows = list(source.open())
        columns = list(dict.fromkeys(name for row in rows for name in row.columns))
        reader = Reader.of(config, section, columns, source.path, stage, key)
        return reader, [reader.read(row) for row in rows]

    source, held = train_source(section, key), held_out_source(section, key)
    reader, examples = read(source)
    fraction = config.data.test_fraction
    if held is not None:
        train, report = used(source, reader, examples)
        test, test_report = used(held, *read(held))
        require(test, test_report, "held-out row", key)
        reports = DataReport(report, test_report)
    else:
        sides: tuple[list[Example], list[Example]] = ([], [])
        for example in examples:
            sides[held_out(example.key, fraction)].append(example)
        if not sides[0]:
            raise UserError(
                f"{key}.path {section.path!r}: all {len(examples)} rows fall into the held-out "
                f"share data.test_fraction {fraction}; give more rows, or lower it (0: none)."
            )
        train, report = used(source, reader, sides[0])
        test, test_report = used(source, reader, sides[1])
        reports = DataReport(report, test_report if fraction else None)
    require(train, report, "row", key)
    return train, test, reports
