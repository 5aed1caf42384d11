"""The data of each stage: read -> conversations -> segments -> ids, split, truncated, counted."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.config.schema import Config, SourceSection
from cores.data.encode import IGNORED, Encoded, encode_rows
from cores.data.formats import Example, Stage, choose_format, read_example
from cores.data.report import DataReport, SplitReport
from cores.data.sources import Source, read_test, read_train
from cores.data.template import Segment, Template, leading_ids
from cores.errors import UserError

MERGED = "prompt and reply merge into one token under the chat template"
PAD_INSIDE = "contains the pad token"

Outcome = tuple[dict[str, Any] | None, str, bool]
"""A row for the stage, or None and the reason; whether it was truncated."""


@dataclass(frozen=True)
class StageData:
    """What a stage trains and is judged on."""

    train: list[dict[str, Any]]
    """sft: input_ids, labels. reward: chosen_ids, rejected_ids, prompt_length. ppo: input_ids,
    prompt."""
    test: list[dict[str, Any]]
    """Rows of the same form; empty if nothing is held out."""
    report: DataReport
    """Where they came from, and what was left out."""


def sft_data(config: Config, tokenizer: PreTrainedTokenizerBase) -> StageData:
    """Demonstrations: rows {"input_ids": list[int], "labels": list[int]}, -100 where untrained.

    Raises UserError for anything wrong with the source, or if no row is left to train on.
    """
    limit = config.sft.max_length

    def finish(rows: list[Encoded], _: list[list[Segment]]) -> Outcome:
        (row,) = rows
        labels = row.labels[:limit]
        if all(label == IGNORED for label in labels[1:]):  # nothing predicts the first token
            return None, "no trained token within sft.max_length", False
        return {"input_ids": row.ids[:limit], "labels": labels}, "", len(row.ids) > limit

    return _build(config, tokenizer, "sft", "data.sft", finish)


def preference_data(config: Config, tokenizer: PreTrainedTokenizerBase) -> StageData:
    """Pairs: rows {"chosen_ids": list[int], "rejected_ids": list[int], "prompt_length": int}.

    Both sides end with the reply's stop token (or are cut before it), never with what a chat
    template writes after it: stage 3 scores replies that end there. Raises as `sft_data`.
    """
    limit = config.reward.max_length

    def finish(rows: list[Encoded], _: list[list[Segment]]) -> Outcome:
        chosen, rejected = (row.ids[: row.reply_end] for row in rows)
        prompt_length = rows[0].prompt_length
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
        }
        return row, "", max(len(chosen), len(rejected)) > limit

    return _build(config, tokenizer, "reward", "data.preference", finish)


def prompt_data(config: Config, tokenizer: PreTrainedTokenizerBase) -> StageData:
    """Prompts: rows {"input_ids": list[int], "prompt": str}, the text as rendered.

    The ids begin the stage-1 and stage-2 rows with the same prompt. Raises as `sft_data`.
    """
    limit = config.ppo.max_prompt_length

    def finish(rows: list[Encoded], texts: list[list[Segment]]) -> Outcome:
        if len(rows[0].ids) > limit:
            return None, "prompt longer than ppo.max_prompt_length", False
        prompt = "".join(segment.text for segment in texts[0])
        return {"input_ids": rows[0].ids, "prompt": prompt}, "", False

    return _build(config, tokenizer, "ppo", "data.prompts", finish)


def held_out(key: str, fraction: float) -> bool:
    """Whether rows with this first user turn are held out: by its sha256, mapped to 0..1."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


def _build(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    stage: Stage,
    key: str,
    finish: Callable[[list[Encoded], list[list[Segment]]], Outcome],
) -> StageData:
    name = {"sft": "sft", "reward": "preference", "ppo": "prompts"}[stage]
    section: SourceSection = getattr(config.data, name)
    maker = _RowMaker(config, tokenizer, stage, key, section, finish)
    source = read_train(section, key)
    test_source = read_test(section, key)
    examples, format_ = maker.examples(source)
    fraction = config.data.test_fraction
    if test_source is not None:
        train, train_report = maker.rows(examples, source, format_)
        test_examples, test_format = maker.examples(test_source)
        test, test_report = maker.rows(test_examples, test_source, test_format)
        _require(test, test_report, "held-out row", key)
        report = DataReport(train_report, test_report)
    else:
        sides: tuple[list[Example], list[Example]] = ([], [])
        for example in examples:
            sides[held_out(example.key, fraction)].append(example)
        train, train_report = maker.rows(sides[0], source, format_)
        test, test_report = maker.rows(sides[1], source, format_)
        report = DataReport(train_report, test_report if fraction else None)
        if not sides[0]:
            raise UserError(
                f"{key}.path {section.path!r}: all {len(examples)} rows fall into the held-out "
                f"share data.test_fraction {fraction}; give more rows, or lower it (0: none)."
            )
    _require(train, train_report, "row", key)
    return StageData(train, test, report)


def _require(rows: list[dict[str, Any]], report: SplitReport, what: str, key: str) -> None:
    if rows:
        return
    reasons = ", ".join(f"{n} {reason}" for reason, n in report.dropped.most_common())
    raise UserError(
        f"{key}: no {what} of {report.path!r} is left: {report.read} read as format "
        f"{report.format}, all dropped ({reasons}); correct the rows, raise the length limit named "
        f"if one is, or give another {key}.format."
    )


@dataclass(frozen=True)
class _RowMaker:
    """Turns a source's rows into a stage's, with counts."""

    config: Config
    tokenizer: PreTrainedTokenizerBase
    stage: Stage
    key: str
    section: SourceSection
    finish: Callable[[list[Encoded], list[list[Segment]]], Outcome]

    def examples(self, source: Source) -> tuple[list[Example], str]:
        """Each row read under the format that was chosen."""
        format_ = choose_format(source, self.stage, self.key, self.section.format)
        columns = set(source.columns())
        separator = self.config.template.separator
        return [
            read_example(row, format_, self.stage, columns, separator) for row in source.rows
        ], format_

    def rows(
        self, examples: list[Example], source: Source, format_: str
    ) -> tuple[list[dict[str, Any]], SplitReport]:
        """Rows for the stage out of one split's examples."""
        report = SplitReport(source.path, source.fingerprints, format_, read=len(examples))
        rows = []
        for example, encoded, texts in self._encode(examples, report, format_):
            row, reason, truncated = self.finish(encoded, texts)
            if row is None:
                report.dropped[reason] += 1
                continue
            rows.append(row)
            report.truncated += truncated
            report.trimmed += example.trimmed
        report.used = len(rows)
        return rows, report

    def _encode(
        self, examples: list[Example], report: SplitReport, format_: str
    ) -> Iterator[tuple[Example, list[Encoded], list[list[Segment]]]]:
        """Encode what can be used, one conversation or a pair at a time."""
        template = Template(self.config.template, self.tokenizer)
        by_template = self.config.template.kind == "chat" and format_ != "text"
        leading = [] if by_template else leading_ids(self.tokenizer)
        report.dropped.update(e.dropped for e in examples if e.dropped is not None)
        usable = [example for example in examples if example.dropped is None]
        texts = [
            [template.segments(turns, example.where) for turns in example.conversations]
            for example in usable
        ]
        flat = [segments for row in texts for segments in row]
        # labels matter in stage 1 only
        encoded = encode_rows(flat, self.tokenizer, leading, self.config.sft.loss_on)
        for example, segments in zip(usable, texts, strict=True):
            rows = [next(encoded) for _ in segments]
            if by_template and any(row.merged for row in rows):
                report.dropped[MERGED] += 1
            elif any(self._has_pad(row.ids) for row in rows):
                report.dropped[PAD_INSIDE] += 1
            else:
                yield example, rows, segments

    def _has_pad(self, ids: list[int]) -> bool:
        """The stock classification head reads the last id that is not pad, so none may be inside.

        A pad that is also the stop token is in every row, and stage 1 replaces it.
        """
        pad = self.tokenizer.pad_token_id
        return pad is not None and pad != self.tokenizer.eos_token_id and pad in ids
