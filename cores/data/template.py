"""Templates: a conversation becomes segments, whose texts in a row are what the model reads."""

import resource
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import psutil
from transformers import PreTrainedTokenizerBase

from cores.config.template import RoleTemplate, TemplateSection
from cores.data.files import LONGEST
from cores.data.values import Turn
from cores.errors import UserError

SECONDS = 10.0
"""For rendering one conversation; chat templates take milliseconds."""
MEMORY = 4 * 2**30
"""Bytes for it beside those in use."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a row's text."""

    role: Literal["prompt", "assistant", "text"]
    """prompt: what the model is given. assistant: what it replies, its stop token included.
    text: a text without turns, stop token included."""
    text: str
    """Verbatim, special tokens written out."""
    train: bool
    """Its tokens carry loss."""


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

    def segments(self, turns: list[Turn], where: str) -> list[Segment]:
        """Segments of one conversation, every reply's `train` on; `where` names it in errors.

        A conversation that does not end with a reply ends where the reply would begin. Where a chat
        template rewrites earlier turns (it takes reasoning out of them, say) earlier replies are
        part of the prompt.
        """
        if turns[0]["role"] == "text":
            return [Segment("text", turns[0]["content"] + self.eos, True)]
        turns = with_system(turns, self.section.system_prompt)
        if self.section.kind != "chat":
            return self._written(turns)
        try:
            return self._chat(turns, where)
        except Rewritten:
            return self._last(turns, where)

    def demonstrations(self, turns: list[Turn], where: str, one: bool) -> list[list[Segment]]:
        """The rows in which a conversation is learned: one, always if `one`; or where its chat
        template rewrites earlier turns one for each reply, with what stood before it then."""
        turns = with_system(turns, self.section.system_prompt)
        segments = self.segments(turns, where)
        shown = [i for i, turn in enumerate(turns) if i and turn["role"] == "assistant"]
        told = sum(segment.role == "assistant" for segment in segments)
        if one or self.section.kind != "chat" or told == len(shown):
            return [segments]
        return [self.segments(turns[: i + 1], where) for i in shown]

    def _written(self, turns: list[Turn]) -> list[Segment]:
        """Kinds roles and none: texts around each turn, the stop token after each reply."""
        segments: list[Segment] = []
        for turn in turns:
            around = self._around(turn["role"])
            if turn["role"] == "assistant":
                segments.append(Segment("prompt", around.prefix, False))
                text = turn["content"] + around.suffix + self.eos
                segments.append(Segment("assistant", text, True))
            else:
                text = around.prefix + turn["content"] + around.suffix
                segments.append(Segment("prompt", text, False))
        if turns[-1]["role"] != "assistant":
            segments.append(Segment("prompt", self._around("assistant").prefix, False))
        return segments

    def _around(self, role: str) -> RoleTemplate:
        if self.section.kind == "none":
            return RoleTemplate()
        around: RoleTemplate = getattr(self.section, role)
        return around

    def _chat(self, turns: list[Turn], where: str) -> list[Segment]:
        """Kind chat: the conversation is rendered up to each reply and up to each reply's end."""
        if self.tokenizer.chat_template is None:
            raise UserError(
                "template.kind is chat, but the tokenizer has no chat template; set template.kind "
                "to roles (texts of your own around each turn) or none (verbatim)."
            )
        segments: list[Segment] = []
        done = ""
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant" or i == 0:
                continue  # templates do not render nothing: a greeting is part of the first prompt
            prompt = self._added(turns[:i], True, done, where)
            reply = self._added(turns[: i + 1], False, done + prompt, where)
            segments += self._parted(prompt, reply, turn, where)
            done += prompt + reply
        if turns[-1]["role"] != "assistant":
            segments.append(Segment("prompt", self._added(turns, True, done, where), False))
        return segments

    def _last(self, turns: list[Turn], where: str) -> list[Segment]:
        """The last reply behind all that is before it as one prompt, or that prompt alone."""
        turn = turns[-1]
        if turn["role"] != "assistant":
            return [Segment("prompt", rendered(self.tokenizer, turns, True, where), False)]
        prompt = rendered(self.tokenizer, turns[:-1], True, where)
        whole = rendered(self.tokenizer, turns, False, where)
        # A template that opens the reply with more than it shows of one: what is written follows.
        follows = whole.startswith(prompt)
        reply = whole[len(prompt) :] if follows else turn["content"] + self.eos
        return self._parted(prompt, reply, turn, where)

    def _parted(self, prompt: str, reply: str, turn: Turn, where: str) -> list[Segment]:
        """The prompt, the reply up to its stop token, and what the template writes behind it."""
        end = reply.rfind(self.eos)
        if end < 0:
            raise UserError(
                f"{where}: the tokenizer's chat template does not end a reply with its "
                f"end-of-sequence token {self.eos!r}, so that the model would never learn to "
                "stop; set the tokenizer's eos_token to the one its template writes, or "
                "template.kind to roles."
            )
        if reply[:end].endswith(self.eos) and not turn["content"].endswith(self.eos):
            raise UserError(
                f"{where}: the tokenizer's chat template writes the end-of-sequence token "
                f"{self.eos!r} twice behind a reply, which ends at the first; take one out of "
                "its chat_template, or set template.kind to roles."
            )
        end += len(self.eos)
        return [
            Segment("prompt", prompt, False),
            Segment("assistant", reply[:end], True),
            Segment("prompt", reply[end:], False),
        ]

    def _added(self, turns: Sequence[Turn], open_: bool, done: str, where: str) -> str:
        """What the rendering of `turns` adds to `done`; open_: the beginning of a reply too."""
        text = rendered(self.tokenizer, list(turns), open_, where)
        if not text.startswith(done):
            raise Rewritten
        return text[len(done) :]


def with_system(turns: list[Turn], system: str | None) -> list[Turn]:
    """`turns` behind the system turn `system`, if they are a conversation without one."""
    if system is None or any(turn["role"] in ("system", "text") for turn in turns):
        return turns
    return [{"role": "system", "content": system}, *turns]


def leading_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the tokenizer puts before a text by default: [BOS] or none."""
    bare = _ids(tokenizer, "x")
    full = list(tokenizer("x", add_special_tokens=True)["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@lru_cache(maxsize=1)
def _room(second: int) -> int:
    """Address space that may be used in this second: asking at every row takes longer than it."""
    return int(psutil.Process().memory_info().vms) + MEMORY


class Rewritten(Exception):  # noqa: N818  # no error: such templates are read another way
    """A chat template shows earlier turns otherwise once there is a later one."""


class TooLong(BaseException):
    """No Exception: jinja, which computes constants when it compiles, passes over those, and would
    begin again."""


def rendered(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], open_: bool, where: str) -> str:
    """The text of `turns`; open_: with the beginning of a reply. UserError naming the row `where`
    for a template that fails, takes too long, or writes nothing or too much.

    It is a program of somebody else's: transformers runs it in jinja's sandbox, where it reads and
    writes nothing, but may loop for ever.
    """
    try:
        with _bounds():
            text: Any = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=open_
            )
    except (Exception, TooLong) as error:  # whatever a foreign program raises
        reason = " ".join((str(error) or type(error).__name__).split())[:300].rstrip(".")
        raise UserError(
            f"{where}: the tokenizer's chat template refuses this conversation ({reason}); "
            "change the row, or set template.kind to roles (for reward.path: give another model)."
        ) from error
    if not isinstance(text, str) or not text or len(text) > LONGEST:
        size = len(text) if isinstance(text, str) else 0
        raise UserError(
            f"{where}: the tokenizer's chat template makes {size} characters of this conversation, "
            f"where 1 to {LONGEST} can be used; set template.kind to roles."
        )
    return text


@contextmanager
def _bounds() -> Iterator[None]:
    """TooLong and MemoryError for what goes on too long; signals reach the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, _too_long)
    left, _ = signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        if limits[0] == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_AS, (_room(int(time.monotonic())), limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, left)
        signal.signal(signal.SIGALRM, before)


def _too_long(number: int, frame: object) -> None:
    raise TooLong(f"it takes more than {SECONDS:g} seconds")
