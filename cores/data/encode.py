"""Encoding: segments become ids and labels together, in one tokenization.

Prompts are prefixes by construction. The text is cut where a reply begins and ends, and where what
is learned changes. The ids up to a cut are the tokenization of the whole text up to there if that
continues the ids up to the cut before, else those ids followed by the tokenization of the text
between. Either way they depend on the text before the cut only, so that a prompt of stage 3, which
ends at a cut, has the same ids as the beginning of the stage-1 and stage-2 rows with that prompt.

Added tokens part a text for the tokenizer, so that what stands between two of them is tokenized
once, however many turns come behind it.
"""

import re
import reprlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from cores.data.roles import Segment
from cores.errors import UserError

IGNORED = -100
"""Label of a token without loss: torch's cross_entropy ignores it."""

CHUNK = 1000
"""Rows tokenized in one call: enough to make the call's own cost small."""

LossOn = Literal["assistant", "last", "all"]


@dataclass(frozen=True)
class Encoded:
    """One row of T tokens."""

    ids: list[int]
    """(T,)"""
    labels: list[int]
    """(T,): the id where the token carries loss, IGNORED elsewhere."""
    prompt_length: int
    """Tokens before the last reply; T for a row without one, 0 for a text without turns."""
    reply_end: int
    """Tokens up to the end of the last reply, its stop token included; T for a row without one."""
    merged: bool
    """At some cut the tokenization of the whole text has a token that spans it, so that `ids` are
    not that tokenization but one with the same text."""


Table = dict[str, list[int]]
"""Text to its ids."""


def encode_rows(
    rows: Sequence[list[Segment]],
    tokenizer: PreTrainedTokenizerBase,
    leading: list[int],
    loss_on: LossOn = "assistant",
) -> Iterator[Encoded]:
    """Encode each row; `leading` ids (BOS or none) go before each. UserError for a text that the
    tokenizer cannot encode."""
    parting = _parting(tokenizer)
    for start in range(0, len(rows), CHUNK):
        chunk = [_Row(row, parting) for row in rows[start : start + CHUNK]]
        texts = dict.fromkeys(text for row in chunk for text in row.texts())
        table = _tokenize(list(texts), tokenizer)
        for row in chunk:
            yield _encode(row, tokenizer, leading, loss_on, table)


def _parting(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the added tokens before which the tokenizer parts a text, whatever stands there."""
    added = tokenizer.added_tokens_decoder.values()
    found = [t.content for t in added if not (t.lstrip or t.single_word or t.normalized)]
    tokens = "|".join(map(re.escape, sorted(filter(None, found), key=len, reverse=True)))
    return re.compile(tokens) if tokens else None


class _Row:
    """A row's text, where it is cut, and the pieces in which it is tokenized."""

    def __init__(self, segments: list[Segment], parting: re.Pattern[str] | None) -> None:
        self.text = "".join(segment.text for segment in segments)
        self.runs: list[tuple[int, int, Segment]] = []
        """Begin and end in characters of each reply, and of what is given and learned alike."""
        end = 0
        for segment in segments:
            begin, end = end, end + len(segment.text)
            if self.runs and segment.role == "prompt":
                first, _, last = self.runs[-1]
                if (last.role, last.train) == ("prompt", segment.train):
                    self.runs[-1] = (first, end, last)
                    continue
            self.runs.append((begin, end, segment))
        begins = [m.start() for m in parting.finditer(self.text)] if parting else []
        parts = sorted({0, *begins, len(self.text)})
        cuts = sorted({end for _, end, _ in self.runs})
        self.pieces: list[tuple[int, list[int]]] = []
        """Where each begins, and up to where it is tokenized: to the cuts in it, to its end."""
        for low, high in pairwise(parts):
            inside = cuts[bisect_right(cuts, low) : bisect_left(cuts, high)]
            self.pieces.append((low, [*inside, high]))

    def texts(self) -> Iterator[str]:
        """What has to be tokenized."""
        return (self.text[low:end] for low, ends in self.pieces for end in ends)


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Table:
    if not texts:
        return {}
    try:
        found: Any = tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # rows longer than the model are truncated or dropped later
        )
    except Exception as error:  # tokenizers has no class of its own for them
        if len(texts) > 1:  # which of them it is
            return {k: v for text in texts for k, v in _tokenize([text], tokenizer).items()}
        raise UserError(
            f"the tokenizer cannot encode the text {reprlib.repr(texts[0])} ({error}). Correct it, "
            "or give a model whose tokenizer has an unknown token or knows every byte."
        ) from None
    return dict(zip(texts, found["input_ids"], strict=True))


def _encode(
    row: _Row, tokenizer: PreTrainedTokenizerBase, leading: list[int], loss_on: LossOn, table: Table
) -> Encoded:
    ids: list[int] = []
    at, merged = {0: 0}, False  # tokens before a character
    for low, ends in row.pieces:
        own: list[int] = []
        before = low
        for end in ends:
            new = table[row.text[low:end]]
            if new[: len(own)] != own:
                merged = True
                piece = row.text[before:end]
                new = own + _tokenize([piece], tokenizer)[piece]
            own, before = new, end
            at[end] = len(ids) + len(own)
        ids = ids + own
    labels = [IGNORED] * len(ids)
    replies = [run for run in row.runs if run[2].role != "prompt"]
    for run in replies[-1:] if loss_on == "last" else row.runs:
        begin, end = at[run[0]], at[run[1]]
        if run[2].train:
            labels[begin:end] = ids[begin:end]
    if ids[: len(leading)] == leading:
        leading = []  # the template's first text has it
    ids = leading + ids
    labels = list(ids) if loss_on == "all" else [IGNORED] * len(leading) + labels
    last = len(leading) + at[replies[-1][0]] if replies else len(ids)
    end = len(leading) + at[replies[-1][1]] if replies else len(ids)
    return Encoded(ids, labels, 0 if row.runs[0][2].role == "text" else last, end, merged)


def windows(
    rows: Iterable[dict[str, Any]], width: int, opening: list[int], overlap: int = 0
) -> Iterator[tuple[dict[str, Any], bool]]:
    """The ids of `rows` as one endless row, cut into rows of `width` tokens that each repeat
    `overlap` tokens of the one before; all is learned once. Where each begins with `opening`, the
    one behind goes on with the next of `rows` instead, as no opening stands before the rest of one;
    beside a row whether it lost that. Of the last one a single token is left out: nothing predicts
    it."""
    buffer, seen = list(opening), 0
    for row in rows:
        buffer += row["input_ids"]
        while len(buffer) >= width:
            lost = bool(opening) and len(buffer) > width
            row = {"input_ids": buffer[:width], "labels": buffer[:width]}
            yield behind(seen, row), lost
            buffer = list(opening) if opening else buffer[width - overlap :]
            seen = overlap
    if len(buffer) > (seen or len(opening) or 1):
        yield behind(seen, {"input_ids": buffer, "labels": buffer}), False


def pieces(row: dict[str, list[int]], width: int, overlap: int) -> Iterator[dict[str, list[int]]]:
    """`row` as rows of `width` tokens that each repeat `overlap` tokens of the one before."""
    for start in range(0, len(row["input_ids"]), width - overlap):
        piece = {name: ids[start : start + width] for name, ids in row.items()}
        if start and len(piece["input_ids"]) <= max(overlap, 1):
            return  # nothing is left to learn, or nothing predicts its one token
        yield behind(overlap, piece) if start else piece


def behind(seen: int, row: dict[str, list[int]]) -> dict[str, list[int]]:
    """A row whose first `seen` tokens are context."""
    return {**row, "labels": [IGNORED] * seen + row["labels"][seen:]}
