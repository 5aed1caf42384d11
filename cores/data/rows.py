"""Rows of a stage: examples become segments, then ids, or are dropped with their reason."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.config.schema import Config
from cores.config.sources import OneSource
from cores.data.encode import CHUNK, Encoded, encode_rows
from cores.data.formats import Example, Reader
from cores.data.report import SplitReport
from cores.data.template import Segment, Template, leading_ids
from cores.data.values import Turn

MERGED = "prompt and reply merge into one token under the chat template"
PAD_INSIDE = "contains the pad token"
CONTROL = "holds the control token {}"

Outcome = tuple[dict[str, Any] | None, str, bool]
"""A row for the stage, or None and the reason; whether it was truncated."""


@dataclass(frozen=True)
class Piece:
    """One example, encoded: what a stage makes its row of."""

    example: Example
    rows: list[Encoded]
    """One a conversation: two for a pair."""
    texts: list[list[Segment]]
    """Their segments."""
    leading: int
    """Tokens put before the text (BOS or none)."""
    source: OneSource


class RowMaker:
    """Turns the examples of one source into a stage's rows, with counts.

    Raises UserError if template and tokenizer do not fit.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: PreTrainedTokenizerBase,
        source: OneSource,
        reader: Reader,
        finish: Callable[[Piece], Outcome],
    ) -> None:
        self.tokenizer = tokenizer
        self.source = source
        self.finish = finish
        self.loss_on = config.sft.loss_on  # labels matter in stage 1 only
        self.template = Template(config.template, tokenizer)
        self.by_template = config.template.kind == "chat" and not reader.plain
        self.verbatim = config.template.kind == "none"
        self.controls = control_tokens(tokenizer)
        self.leading = [] if self.by_template else leading_ids(tokenizer)

    def rows(self, examples: Iterable[Example], report: SplitReport) -> Iterator[dict[str, Any]]:
        """Rows for the stage; `report` counts them as they come."""
        left = iter(examples)
        while chunk := list(islice(left, CHUNK)):
            report.read += len(chunk)
            for piece in self._encode(chunk, report):
                row, reason, truncated = self.finish(piece)
                if row is None:
                    report.dropped[reason] += 1
                    continue
                report.used += 1
                report.truncated += truncated
                report.trimmed += piece.example.trimmed
                yield row

    def _encode(self, examples: list[Example], report: SplitReport) -> Iterator[Piece]:
        """Encode what can be used."""
        examples = [self._checked(example) for example in examples]
        report.dropped.update(e.dropped for e in examples if e.dropped is not None)
        usable = [example for example in examples if example.dropped is None]
        texts = [
            [self.template.segments(turns, example.row.where) for turns in example.conversations]
            for example in usable
        ]
        flat = [segments for row in texts for segments in row]
        encoded = encode_rows(flat, self.tokenizer, self.leading, self.loss_on)
        for example, segments in zip(usable, texts, strict=True):
            rows = [next(encoded) for _ in segments]
            if self.by_template and any(row.merged for row in rows):
                report.dropped[MERGED] += 1
            elif any(self._has_pad(row.ids) for row in rows):
                report.dropped[PAD_INSIDE] += 1
            else:
                yield Piece(example, rows, segments, len(self.leading), self.source)

    def _checked(self, example: Example) -> Example:
        """Dropped if a turn holds a control token, which would be read as one: a stop token that a
        user typed would end his turn.

        A verbatim text or reply may bring the stop token at its own end, where it is put anyway.
        """
        if example.dropped is not None:
            return example
        conversations = tuple(self._ended_once(turns) for turns in example.conversations)
        example = replace(example, conversations=conversations)
        for content in {turn["content"] for turns in conversations for turn in turns}:
            for token in self.controls.findall(content) if self.controls else ():
                ids = self.tokenizer(content, add_special_tokens=False)["input_ids"]
                if self.tokenizer.convert_tokens_to_ids(token) in ids:
                    return replace(example, dropped=CONTROL.format(token))
        return example

    def _ended_once(self, turns: list[Turn]) -> list[Turn]:
        *before, last = turns
        rest = last["content"].removesuffix(self.template.eos)
        own = last["role"] == "text" or (last["role"] == "assistant" and self.verbatim)
        return [*before, {**last, "content": rest}] if own and rest.strip() else turns

    def _has_pad(self, ids: list[int]) -> bool:
        """The stock classification head reads the last id that is not pad, so none may be inside.

        A pad that is also the stop token is in every row, and stage 1 replaces it.
        """
        pad = self.tokenizer.pad_token_id
        return pad is not None and pad != self.tokenizer.eos_token_id and pad in ids


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the tokenizer's special tokens in a text, longest first; pad has a rule of its own."""
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = {*tokenizer.all_special_tokens, *(token.content for token in added), ""} - {""}
    if tokenizer.pad_token != tokenizer.eos_token:
        tokens.discard(tokenizer.pad_token)
    found = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return re.compile(found) if found else None
