"""Rows of a stage: examples become segments, then ids, then what the stage reads, or are dropped
with their reason."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.config.data import OneSource
from cores.config.schema import Config
from cores.data.encode import CHUNK, IGNORED, Encoded, encode_rows, pieces, windows
from cores.data.formats import LISTS, Example, Reader
from cores.data.images import finished, with_images
from cores.data.ratings import RatingReader
from cores.data.report import FRAMED, SplitReport
from cores.data.roles import Segment, replaced
from cores.data.sides import (
    TEXT,
    Inputs,
    closing_ids,
    joined,
    reply_rows,
    sided_row,
    two_sides,
)  # fmt: skip
from cores.data.template import Template, control_tokens, leading_ids
from cores.data.transcripts import from_the_first_user, holds_turns, in_turn
from cores.data.values import Turn, with_system
from cores.errors import UserError

Texts = list[list[Segment]]
KEYS = {"sft": "data.sft", "reward": "data.preference", "ppo": "data.prompts"}
Outcome = tuple[dict[str, Any] | str, bool]
"""A row for the stage, or the reason why there is none; whether it was truncated."""


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
        inputs: Inputs = TEXT,
    ) -> None:
        self.config = config
        self.images = inputs.images
        self.tokenizer = tokenizer
        self.source = source
        made = {"sft": self._demonstration, "reward": self._pair, "ppo": self._prompt}
        rated = isinstance(reader, RatingReader)  # it reads as in stage 1
        self.made = self._rating if rated else made[reader.stage]
        self.demonstrates = self.made == self._demonstration
        self.template = Template(config.template, tokenizer)
        self.by_template = config.template.kind == "chat" and not reader.plain
        # Turns that bring their markers hold such tokens by right.
        self.controls = None if config.template.marked else control_tokens(tokenizer)
        self.joined = reader.plain and self.demonstrates and config.data.join is not None
        bare = self.by_template or not config.template.bos or self.joined
        self.leading = [] if bare else leading_ids(tokenizer)
        if self.demonstrates and not reader.plain:
            self._check_texts_alone(reader)
        self.encoder = inputs.encoder
        if self.encoder and reader.format == "text":
            raise UserError(
                f"{KEYS[reader.stage]}: a text without turns has no prompt for the encoder of "
                "model.path, and no reply for its decoder. Give rows that have both."
            )
        self.closing = closing_ids(tokenizer) if self.encoder else []
        self.whole_prompts = self.encoder or config.model.attention == "prefix"

    def rows(self, examples: Iterable[Example], report: SplitReport) -> Iterator[dict[str, Any]]:
        """Rows for the stage; `report` counts them as they come."""
        own = self.tokenizer.chat_template is not None and report.format != "text"
        report.whole = self.whole_prompts
        report.over = own and self.config.template.kind == "roles"
        rows = self._rows(examples, report)
        if self.joined:
            rows = self._windows(rows, report)
        if self.demonstrates and self.config.model.attention == "prefix":
            return ({"prompt_length": 0} | row for row in rows)  # of texts, and parts of them
        return rows

    def _windows(
        self, rows: Iterator[dict[str, Any]], report: SplitReport
    ) -> Iterator[dict[str, Any]]:
        """Texts as one, cut; UserError for an opening that leaves them little room."""
        data, width = self.config.data, self.config.sft.max_length
        opening = list(self.tokenizer(data.join_opening, add_special_tokens=False)["input_ids"])
        if len(opening) > width // 2:
            raise UserError(
                f"data.join_opening has {len(opening)} tokens, more than half of "
                f"sft.max_length {width}; shorten it, or raise that."
            )
        for row, lost in windows(rows, width, opening, data.overlap):
            report.truncated += lost
            yield row

    def _check_texts_alone(self, reader: Reader) -> None:
        """UserError for what would have no effect on conversations."""
        for key, wanted in (("join", self.config.data.join), ("too_long", "split")):
            if wanted is not None and getattr(self.config.data, key) == wanted:
                raise UserError(
                    f"data.{key}: is for texts without turns (format text), but the rows of stage "
                    f"1 are of format {reader.format}; remove it, or set data.sft.format to text."
                )

    def _rows(self, examples: Iterable[Example], report: SplitReport) -> Iterator[dict[str, Any]]:
        left = iter(examples)
        while chunk := [self._checked(example) for example in islice(left, CHUNK)]:
            report.read += len(chunk)
            report.begun += sum(example.begun for example in chunk)
            if self.config.template.kind != "none" and report.format not in LISTS:
                report.alike += sum(holds_turns(example.conversations[0]) for example in chunk)
            report.dropped.update(e.dropped for e in chunk if e.dropped is not None)
            usable = [example for example in chunk if example.dropped is None]
            made = [(e, texts) for e in usable for texts in self._texts(e)]
            report.read += len(made) - len(usable)
            report.divided += len(made) - len(usable)
            flat = [segments for _, texts in made for segments in texts]
            # Labels matter in stage 1 only.
            encoded = encode_rows(flat, self.tokenizer, self.leading, self.config.sft.loss_on)
            for example, segments in made:
                row, truncated = self._row(example, [next(encoded) for _ in segments], segments)
                if self.images is not None and not isinstance(row, str):
                    row = finished(row, example.row, self.images)
                if isinstance(row, str):
                    report.dropped[row] += 1
                    continue
                report.used += 1
                report.truncated += truncated
                report.trimmed += example.trimmed
                yield from self._parts(row, report)

    def _parts(self, row: dict[str, Any], report: SplitReport) -> Iterator[dict[str, Any]]:
        """The row, or where texts are split those that it becomes."""
        if not self.demonstrates or self.config.data.too_long != "split" or self.joined:
            return iter([row])
        return pieces(row, self.config.sft.max_length, self.config.data.overlap)

    def _texts(self, example: Example) -> list[Texts]:
        """Of each row that an example becomes, the segments of its conversations."""
        where, image = example.row.where, (self.images, self.config.template.image)
        if self.joined:
            (turn,) = example.conversations[0]
            text = (self.config.data.join or "") + replaced(turn["content"], self.config.template)
            return [[[Segment("text", text, True)]]]
        if not self.demonstrates:
            rows = [
                row
                for turns in example.conversations
                for row in with_images([self.template.segments(turns, where)], turns, where, *image)
            ]
            replied = self.made != self._prompt
            sides = [side for row in rows for side in two_sides(row, replied)]
            return [sides if self.encoder else rows]
        if self.whole_prompts and example.conversations[0][0]["role"] != "text":
            last = self.config.sft.loss_on == "last"
            rows = reply_rows(self.template, example.conversations[0], where, last)
            return [two_sides(row) if self.encoder else [row] for row in rows]
        # Where all is learned one row holds it all; the last reply alone is in one row as well.
        (turns,), one = example.conversations, self.config.sft.loss_on != "assistant"
        rows = self.template.demonstrations(turns, where, one)
        return [[row] for row in with_images(rows, turns, where, *image)]

    def _row(self, example: Example, rows: list[Encoded], texts: Texts) -> Outcome:
        """The stage's row of an example's conversations, each encoded and as segments."""
        if self.encoder and not self.demonstrates:
            rows = joined(rows, self.closing)
        if self.by_template and any(row.merged for row in rows):
            return "prompt and reply merge into one token under the chat template", False
        # The stock classification head reads the last id that is not pad, so none may be inside. A
        # pad that is also the stop token is in every row, and stage 1 replaces it.
        pad = self.tokenizer.pad_token_id
        if pad != self.tokenizer.eos_token_id and any(pad in row.ids for row in rows):
            return "contains the pad token", False
        if any(self.template.framed(turns, texts[0]) for turns in example.conversations):
            return FRAMED, False
        return self.made(example, rows, texts)

    def _demonstration(self, example: Example, rows: list[Encoded], texts: Texts) -> Outcome:
        *before, row = rows
        limit, too_long = self.config.sft.max_length, self.config.data.too_long
        if self.joined or too_long == "split":
            limit = len(row.ids)
        labels = row.labels[:limit]
        first = 0 if before else 1  # nothing predicts the first token, but behind an encoder
        if not self.joined and all(label == IGNORED for label in labels[first:]):
            return "no trained token within sft.max_length", False
        made: Outcome
        if before:
            made = sided_row(before[0], row, self.closing, limit)
        else:
            made = {"input_ids": row.ids[:limit], "labels": labels}, len(row.ids) > limit
            if self.whole_prompts and row.prompt_length:
                made[0]["prompt_length"] = row.prompt_length
        return ("longer than sft.max_length", False) if too_long == "drop" and made[1] else made

    def _pair(self, example: Example, rows: list[Encoded], texts: Texts) -> Outcome:
        chosen, rejected = (row.ids[: row.reply_end] for row in rows)
        prompt_length, limit = rows[0].prompt_length, self.config.reward.max_length
        if chosen == rejected:
            return "chosen equals rejected", False
        if prompt_length >= limit:
            return "prompt as long as reward.max_length", False
        if chosen[:limit] == rejected[:limit]:
            return "equal after truncation to reward.max_length", False
        row = {
            "chosen_ids": chosen[:limit],
            "rejected_ids": rejected[:limit],
            "prompt_length": prompt_length,
            "margin": example.margin,
        }
        return self._short(row, max(len(chosen), len(rejected)) > limit)

    def _short(self, row: dict[str, Any], longer: bool) -> Outcome:
        if longer and self.config.data.too_long == "drop":
            return "longer than reward.max_length", False
        return row, longer

    def _rating(self, example: Example, rows: list[Encoded], texts: Texts) -> Outcome:
        ids, limit = rows[0].ids[: rows[0].reply_end], self.config.reward.max_length
        if (prompt_length := rows[0].prompt_length) >= limit:
            return "prompt as long as reward.max_length", False
        row = {"ids": ids[:limit], "prompt_length": prompt_length, "score": example.score}
        if self.config.reward.kind == "binned":
            row["class"] = round(example.score) - 1
        return self._short(row, len(ids) > limit)

    def _prompt(self, example: Example, rows: list[Encoded], texts: Texts) -> Outcome:
        ids = rows[0].ids
        prompt = "".join(segment.text for segment in texts[0])
        if texts[0][0].role == "text":
            length = self._beginning(ids)
            if length >= len(ids) - 1:  # nothing before the stop token is left to write
                return "text not longer than prompt_tokens", False
            ids = ids[:length]
            prompt = self._decoded(ids)
        if len(ids) > self.config.ppo.max_prompt_length:
            return "prompt longer than ppo.max_prompt_length", False
        turns = with_system(example.conversations[0], self.config.template.system_prompt)
        return {
            "input_ids": ids,
            "prompt": prompt,
            "turns": turns,
            "row": example.row.columns,
        }, False

    def _beginning(self, ids: list[int]) -> int:
        """Length of the beginning of `ids` that holds `prompt_tokens` tokens after the leading
        ones, or as many more as a character takes whose bytes are spread over several."""
        whole = self._decoded(ids)
        for length in range(len(self.leading) + self.source.prompt_tokens, len(ids)):
            if whole.startswith(self._decoded(ids[:length])):
                return length
        return len(ids)

    def _decoded(self, ids: list[int]) -> str:
        own = ids[len(self.leading) :]
        return str(self.tokenizer.decode(own, clean_up_tokenization_spaces=False))

    def _checked(self, example: Example) -> Example:
        """Dropped if a turn holds a control token, which would be read as one: a stop token that a
        user typed would end his turn.

        A verbatim text may bring BOS at its beginning, and it or a verbatim reply the stop token at
        its end, where they are put anyway.
        """
        if example.dropped is not None:
            return example
        conversations = tuple(self._framed_once(turns) for turns in example.conversations)
        if self.config.template.alternate and conversations[0][0]["role"] != "text":
            before, conversations = conversations, tuple(map(from_the_first_user, conversations))
            if not all(map(in_turn, conversations)):
                return replace(example, dropped="turns do not alternate")
            example = replace(example, begun=len(conversations[0]) < len(before[0]))
        example = replace(example, conversations=conversations)
        for content in {turn["content"] for turns in conversations for turn in turns}:
            for token in self.controls.findall(content) if self.controls else ():
                ids = self.tokenizer(content, add_special_tokens=False)["input_ids"]
                if self.tokenizer.convert_tokens_to_ids(token) in ids:
                    return replace(example, dropped=f"holds the control token {token}")
        return example

    def _framed_once(self, turns: list[Turn]) -> list[Turn]:
        text, verbatim = turns[0]["role"] == "text", self.config.template.kind == "none"
        contents = [turn["content"] for turn in turns]
        if (text or verbatim) and self.leading:
            contents[0] = contents[0].removeprefix(self.template.bos or "")
        if text or (verbatim and turns[-1]["role"] == "assistant"):
            contents[-1] = contents[-1].removesuffix(self.template.eos)
        made = [{**turn, "content": c} for turn, c in zip(turns, contents, strict=True)]
        return made if contents[-1].strip() else turns
