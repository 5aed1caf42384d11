"""Templates: a conversation becomes segments, whose texts in a row are what the model reads."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from cores.config.template import RoleTemplate, TemplateSection
from cores.data.rendering import marked, rendered
from cores.data.roles import Segment, replaced, written
from cores.data.values import Turn, with_system
from cores.errors import UserError

BARE = RoleTemplate()
"""Nothing around a turn."""


class Template:
    """One `TemplateSection` with one tokenizer.

    Raises UserError if the two do not fit. The stop token is the tokenizer's end-of-sequence token.
    """

    def __init__(self, section: TemplateSection, tokenizer: PreTrainedTokenizerBase) -> None:
        self.section = section
        self.tokenizer = tokenizer
        if tokenizer.eos_token is None:
            raise UserError(
                "The tokenizer has no end-of-sequence token, so no reply could ever end; give its "
                "folder an eos_token (tokenizer_config.json)."
            )
        self.eos: str = tokenizer.eos_token
        if _ids(tokenizer, self.eos) != [tokenizer.eos_token_id]:
            raise UserError(
                f"The tokenizer does not read its end-of-sequence token {self.eos!r} as one id; "
                "mark it as a special token in the tokenizer's files."
            )

    @cached_property
    def bos(self) -> str | None:
        """The token that the tokenizer begins a text with; None where it puts none."""
        bos: str | None = self.tokenizer.bos_token
        if bos in (None, self.eos):
            return None
        return bos if leading_ids(self.tokenizer) == [self.tokenizer.bos_token_id] else None

    def segments(self, turns: list[Turn], where: str) -> list[Segment]:
        """Segments of one conversation, every reply's `train` on; `where` names it in errors.

        A conversation that does not end with a reply ends where the reply would begin. Where a chat
        template rewrites earlier turns (it takes reasoning out of them, say) earlier replies are
        part of the prompt.
        """
        if turns[0]["role"] == "text":
            return [Segment("text", replaced(turns[0]["content"], self.section) + self.eos, True)]
        turns = with_system(turns, self.section.system_prompt)
        self._placed(turns, where)
        if self.section.kind != "chat":
            bos = self.bos if self.section.bos and not self.section.marked else None
            return begun_once(written(turns, self.section, self.eos), bos)
        try:
            return self._chat(turns, where)
        except Rewritten:
            return self._last(turns, where)

    def framed(self, turns: list[Turn], segments: list[Segment]) -> bool:
        """Whether the last question ends with what `segments`, the row's, put behind it, or it or
        the last reply begins with its prefix: a template wrote it before."""
        said = {turn["role"]: turn["content"].strip() for turn in turns}
        if "user" not in said:  # a text without turns
            return False
        given = "".join(segment.text for segment in segments if segment.role == "prompt")
        behind = given.rpartition(said["user"])[2].strip()
        framed = _speaks(behind) and said["user"].endswith(behind)
        opened = self.section.kind == "roles" and not self.section.marked
        for role in {"user", "assistant"} & said.keys() if opened else ():
            mark = getattr(self.section, role).prefix.strip()
            framed = framed or (_speaks(mark) and said[role].startswith(mark))
        return framed

    def _placed(self, turns: list[Turn], where: str) -> None:
        """UserError for a turn that would run into its neighbours, or that a chat template does
        not know."""
        kind = self.section.kind
        if kind == "none" or self.section.marked:
            return
        spoken = {turn["role"] for turn in turns}
        for role in ("thoughts", "commands", *(() if kind == "chat" else ("tool",))):
            if role not in spoken or (kind == "roles" and getattr(self.section, role) != BARE):
                continue
            why = (
                f"template.{role} puts nothing around it, so that it would run into the turns "
                "beside it; "
            )
            if kind == "chat":
                why = (
                    "chat templates know none; write it into the assistant's turn as the model's "
                    "template has it there, or set template.kind to roles and "
                )
            train = "" if role == "tool" else f" (template.{role}.train: content, if it is learned)"
            raise UserError(
                f"{where}: has a turn of the role {role}, and {why}set template.{role}.prefix or "
                f"suffix{train}, or leave the row out."
            )

    def demonstrations(self, turns: list[Turn], where: str, one: bool) -> list[list[Segment]]:
        """The rows in which a conversation is learned: one, always if `one`; or where its chat
        template rewrites earlier turns one for each reply, with what stood before it then."""
        turns = with_system(turns, self.section.system_prompt)
        self._placed(turns, where)
        chat = self.section.kind == "chat" and turns[0]["role"] != "text"
        if chat and (found := marked(self._ready(), turns, where)):
            if any("untrained" in turn for turn in turns):
                raise UserError(
                    f"{where}: a turn says that it is not to be learned (weight, train or loss), "
                    "but the chat template says by {% generation %} what is; take those marks out "
                    "of it, set template.kind to roles, or leave the row out."
                )
            return [self._spans(*found, where)]
        segments = self.segments(turns, where)
        shown = [i for i, turn in enumerate(turns) if i and turn["role"] == "assistant"]
        told = sum(segment.role == "assistant" for segment in segments)
        if one or not chat or told == len(shown):
            return [segments]
        return [self.segments(turns[: i + 1], where) for i in shown]

    def _chat(self, turns: list[Turn], where: str) -> list[Segment]:
        """Kind chat: the conversation is rendered up to each reply and up to each reply's end."""
        self._ready()
        segments: list[Segment] = []
        done = ""
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant" or i == 0:
                continue  # templates do not render nothing: a greeting is part of the first prompt
            prompt = self._added(turns[:i], True, done, where)
            reply = self._added(turns[: i + 1], False, done + prompt, where)
            self._check_bos(prompt, "" if done else prompt, where)
            segments += self._parted(prompt, reply, turn, where)
            done += prompt + reply
        if turns[-1]["role"] != "assistant":
            prompt = self._added(turns, True, done, where)
            self._check_bos(prompt, "" if done else prompt, where)
            segments.append(Segment("prompt", prompt, False))
        return segments

    def _check_bos(self, text: str, first: str, where: str) -> None:
        """UserError for a chat template that writes the first token twice in a row in `text`, or
        twice in `first`, what stands before the first reply."""
        if self.bos and (self.bos * 2 in text or first.count(self.bos) > 1):
            raise UserError(
                f"{where}: the tokenizer's chat template writes the beginning-of-sequence token "
                f"{self.bos!r} twice before a reply, as no model has seen it; take one out of its "
                "chat_template, or set template.kind to roles."
            )

    def _ready(self) -> PreTrainedTokenizerBase:
        """The tokenizer, if it has a chat template."""
        if self.tokenizer.chat_template is None:
            raise UserError(
                "template.kind is chat, but the tokenizer has no chat template; give one as "
                "template.chat_template, or set template.kind to roles (texts of your own around "
                "each turn) or none (verbatim)."
            )
        return self.tokenizer

    def _spans(self, text: str, spans: list[tuple[int, int]], where: str) -> list[Segment]:
        """A conversation whose template marks what is learned."""
        if not spans or self.eos not in text[slice(*spans[-1])]:
            raise UserError(
                f"{where}: the part of the last reply that the chat template marks with "
                f"{{% generation %}} does not hold the end-of-sequence token {self.eos!r}, so that "
                "the model would never learn to stop; move the end of the mark behind it."
            )
        segments, done = [], 0
        for start, end in spans:
            segments.append(Segment("prompt", text[done:start], False))
            segments.append(Segment("assistant", text[start:end], True))
            done = end
        return [*segments, Segment("prompt", text[done:], False)]

    def _last(self, turns: list[Turn], where: str) -> list[Segment]:
        """The last reply behind all that is before it as one prompt, or that prompt alone."""
        turn = turns[-1]
        if turn["role"] != "assistant":
            return [Segment("prompt", rendered(self.tokenizer, turns, True, where), False)]
        prompt = rendered(self.tokenizer, turns[:-1], True, where)
        whole = rendered(self.tokenizer, turns, False, where)
        if whole.startswith(prompt):
            return self._parted(prompt, whole[len(prompt) :], turn, where)
        # The template opens the reply with more than it shows of one: what is written follows.
        both = enumerate(zip(prompt, whole, strict=False))
        alike = next((i for i, (a, b) in both if a != b), len(whole))
        opened, reply = prompt[alike:].strip(), turn["content"]
        if opened and reply.lstrip().startswith(opened):  # the row has it as well
            reply = reply.lstrip().removeprefix(opened).lstrip()
        return self._parted(prompt, reply + self.eos, turn, where)

    def _parted(self, prompt: str, reply: str, turn: Turn, where: str) -> list[Segment]:
        """The prompt, the reply up to its first stop token, and what the template writes behind it;
        nothing where that would be the token once more, as at the end of Phi-3's conversations."""
        end = reply.find(self.eos)
        if end < 0:
            raise UserError(
                f"{where}: the tokenizer's chat template does not end a reply with its "
                f"end-of-sequence token {self.eos!r}, so that the model would never learn to "
                "stop; set the tokenizer's eos_token to the one its template writes, or "
                "template.kind to roles."
            )
        rest = reply[end + len(self.eos) :]
        if rest.startswith(self.eos) and not turn["content"].endswith(self.eos):
            raise UserError(
                f"{where}: the tokenizer's chat template writes the end-of-sequence token "
                f"{self.eos!r} twice behind a reply, which ends at the first; take one out of "
                "its chat_template, or set template.kind to roles."
            )
        return [
            Segment("prompt", prompt, False),
            Segment("assistant", reply[:end] + self.eos, "untrained" not in turn),
            Segment("prompt", "" if self.eos in rest else rest, False),
        ]

    def _added(self, turns: Sequence[Turn], open_: bool, done: str, where: str) -> str:
        """What the rendering of `turns` adds to `done`; open_: the beginning of a reply too."""
        text = rendered(self.tokenizer, list(turns), open_, where)
        if not text.startswith(done):
            raise Rewritten
        return text[len(done) :]


def begun_once(segments: list[Segment], bos: str | None) -> list[Segment]:
    """Before the first reply `bos` at the beginning alone, where one is put anyway; behind it never
    twice in a row: a prefix that begins each round with it has it once in the first one too,
    whatever stands before that round's question."""
    if bos is None:
        return segments
    found, before, replied = [], "", False
    for segment in segments:
        replied = replied or segment.role == "assistant"
        again = bos if replied else ""
        text = re.sub(f"(?:{re.escape(bos)})+", again, segment.text)
        if not before and segment.text.startswith(bos) and not replied:
            text = bos + text
        text = text.removeprefix(bos) if before.endswith(bos) else text
        before = text or before
        found.append(replace(segment, text=text))
    return found


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer puts before a text by default: [BOS] or none."""
    bare = _ids(tokenizer, "x")
    full = list(tokenizer("x", add_special_tokens=True)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Finds the tokenizer's special tokens in a text, longest first; pad has a rule of its own."""
    added = [token for token in tokenizer.added_tokens_decoder.values() if token.special]
    tokens = {*tokenizer.all_special_tokens, *(token.content for token in added), ""} - {""}
    if tokenizer.pad_token != tokenizer.eos_token:
        tokens.discard(tokenizer.pad_token)
    found = "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))
    return re.compile(found) if found else None


def _speaks(mark: str) -> bool:
    """Whether a text tells a speaker: what ends with a letter, or is one sign, may be a message."""
    return len(mark) > 1 and not mark[-1].isalnum()


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class Rewritten(Exception):  # noqa: N818  # no error: such templates are read another way
    """A chat template shows earlier turns otherwise once there is a later one."""
