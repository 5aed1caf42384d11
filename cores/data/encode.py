"""Encoding: segments become ids and labels together, in one tokenization.

Prompts are prefixes by construction. The text is cut where each reply begins. The ids up to a cut
are the tokenization of the whole text up to there if that continues the ids up to the cut before,
else those ids followed by the tokenization of the text between. Either way they depend on the text
before the cut only, so that a prompt of stage 3, which ends at a cut, has the same ids as the
beginning of the stage-1 and stage-2 rows with that prompt.
"""

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from cores.data.template import Segment
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


Pieces = dict[str, tuple[list[int], list[int]]]
"""Text to its ids and, for each, the character at which it begins."""


def encode_rows(
    rows: Sequence[list[Segment]],
    tokenizer: PreTrainedTokenizerBase,
    leading: list[int],
    loss_on: LossOn = "assistant",
) -> Iterator[Encoded]:
    """Encode each row; `leading` ids (BOS or none) go before each.

    Raises UserError for a tokenizer without offsets (a "slow" one).
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not report which characters a token covers; convert "
            "it to a fast tokenizer (a folder with tokenizer.json)."
        )
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start : start + CHUNK]
        texts = dict.fromkeys(prefix for row in chunk for prefix in _prefixes(row))
        pieces = _tokenize(list(texts), tokenizer)
        for row in chunk:
            yield _encode(row, tokenizer, leading, loss_on, pieces)


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Pieces:
    if not texts:
        return {}
    try:
        found: Any = tokenizer(
            texts,
            add_special_tokens=False,
            return_offsets_mapping=True,
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
    starts = ([start for start, _ in offsets] for offsets in found["offset_mapping"])
    return dict(zip(texts, zip(found["input_ids"], starts, strict=True), strict=True))


def _prefixes(row: list[Segment]) -> list[str]:
    """The text before each reply, and the whole."""
    text, found = "", []
    for segment in row:
        if segment.role != "prompt":
            found.append(text)
        text += segment.text
    return [*found, text]


def _encode(
    row: list[Segment],
    tokenizer: PreTrainedTokenizerBase,
    leading: list[int],
    loss_on: LossOn,
    pieces: Pieces,
) -> Encoded:
    prefixes = _prefixes(row)
    lengths = []  # tokens before each cut
    ids: list[int] = []
    starts: list[int] = []
    merged = False
    before = 0
    for prefix in prefixes:
        new_ids, new_starts = pieces[prefix]
        if new_ids[: len(ids)] == ids:
            ids, starts = new_ids, new_starts
        else:
            merged = True
            piece = prefix[before:]
            new_ids, new_starts = _tokenize([piece], tokenizer)[piece]
            ids, starts = ids + new_ids, starts + [before + start for start in new_starts]
        lengths.append(len(ids))
        before = len(prefix)
    replies = [segment for segment in row if segment.role != "prompt"]
    reply_ends = [
        _first_at(starts, len(prefix) + len(reply.text), lengths[k], lengths[k + 1])
        for k, (prefix, reply) in enumerate(zip(prefixes, replies, strict=False))
    ]
    labels = [IGNORED] * len(ids)
    for k, reply in enumerate(replies):
        if reply.train and (loss_on != "last" or k == len(replies) - 1):
            labels[lengths[k] : reply_ends[k]] = ids[lengths[k] : reply_ends[k]]
    if ids[: len(leading)] == leading:
        leading = []  # the template's first text has it
    ids = leading + ids
    labels = list(ids) if loss_on == "all" else [IGNORED] * len(leading) + labels
    last = len(leading) + lengths[len(replies) - 1] if replies else len(ids)
    end = len(leading) + reply_ends[-1] if replies else len(ids)
    return Encoded(ids, labels, 0 if row[0].role == "text" else last, end, merged)


def _first_at(starts: list[int], character: int, low: int, high: int) -> int:
    """Index of the first of the tokens low..high-1 that begins at `character` or later, or high."""
    return next((i for i in range(low, high) if starts[i] >= character), high)
