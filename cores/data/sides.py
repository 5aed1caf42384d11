"""Rows of models that read the prompt as a whole: every reply in a row of its own, behind all that
stood before it, whether that is read by an encoder or by attention both ways."""

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.data.encode import Encoded
from cores.data.images import ImageTokens
from cores.data.rendering import marks
from cores.data.roles import Segment
from cores.data.template import Template
from cores.data.values import Turn
from cores.errors import UserError


@dataclass(frozen=True)
class Inputs:
    """How the base of stage 1 takes a row."""

    encoder: bool = False
    """The prompt by an encoder; the reply is written by a decoder."""
    images: ImageTokens | None = None
    """Images, each as these tokens."""


TEXT = Inputs()


def inputs(base: Any, images: Any = None) -> Inputs:
    """How a base with this configuration, and this reader of images, takes a row."""
    tokens = None if images is None else ImageTokens(images.token, images.id, images.count)
    return Inputs(base.is_encoder_decoder, tokens)


def reply_rows(
    template: Template, turns: list[Turn], where: str, last: bool
) -> list[list[Segment]]:
    """Segments of the conversation up to each of its replies, that reply alone trained; `last`: up
    to the last one alone. UserError for a chat template that marks what is learned."""
    if template.section.kind == "chat" and marks(template.tokenizer):
        raise UserError(
            f"{where}: the chat template marks what is learned ({{% generation %}}), which is not "
            "looked at where prompts are read as a whole and a conversation becomes one reply a "
            "row. Take the marks out of it (template.chat_template), or set template.kind to roles."
        )
    ends = [i + 1 for i, turn in enumerate(turns) if i and turn["role"] == "assistant"]
    ends = (ends[-1:] if last else ends) or [len(turns)]
    rows = [template.segments(turns[:end], where) for end in ends]
    return [
        [replace(part, train=part.train and i >= last_reply(row)) for i, part in enumerate(row)]
        for row in rows
    ]


def last_reply(segments: list[Segment]) -> int:
    """Index of the segment."""
    replies = (i for i, segment in enumerate(segments) if segment.role == "assistant")
    return max(replies, default=0)


def two_sides(segments: list[Segment], replied: bool = True) -> list[list[Segment]]:
    """What an encoder reads, all before the last reply, and that reply, which the decoder writes:
    two texts, tokenised apart. Unless it is `replied` all is read."""
    at = last_reply(segments) if replied else len(segments)
    prompt = Segment("prompt", "".join(segment.text for segment in segments[:at]), False)
    return [[prompt], *([replace(part, role="text")] for part in segments[at : at + 1])]


def joined(sides: list[Encoded], closing: list[int]) -> list[Encoded]:
    """Of what an encoder reads and a decoder writes in turn, each pair as one row, as stages 2 and
    3 take it; or of a prompt alone that, with `closing` behind it."""
    rows = []
    for at in range(0, len(sides), 2):
        ids = sides[at].ids + closing
        whole = ids + [token for reply in sides[at + 1 : at + 2] for token in reply.ids]
        row = replace(sides[at], ids=whole, prompt_length=len(ids), reply_end=len(whole))
        rows.append(row)
    return rows


def sided_row(
    encoder: Encoded, reply: Encoded, closing: list[int], limit: int
) -> tuple[dict[str, list[int]], bool]:
    """{"encoder_ids", "input_ids", "labels"}, and whether a side was cut to `limit` tokens.

    encoder_ids end with `closing` even where they are cut; input_ids are the same, for whatever
    asks how long a row is. labels are the reply's ids, which are no continuation of the others.
    """
    room = limit - len(closing)
    ids = encoder.ids[:room] + closing
    cut = len(encoder.ids) > room or len(reply.labels) > limit
    return {"encoder_ids": ids, "input_ids": ids, "labels": reply.labels[:limit]}, cut


def closing_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer puts behind a text by default: T5's `</s>`, or none."""
    bare = list(tokenizer("x", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("x", add_special_tokens=True)["input_ids"])
    starts = (i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return full[next(starts, len(full)) + len(bare) :]
