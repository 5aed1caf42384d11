"""Rendering by chat templates: programs of somebody else's, within bounds of time and memory."""

import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

import psutil
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from cores.data.files import LONGEST
from cores.data.values import Turn
from cores.errors import UserError

SECONDS = 10.0
"""For rendering one conversation; chat templates take milliseconds."""
MEMORY = 4 * 2**30
"""Bytes for it beside those in use."""
TODAY = datetime(2024, 7, 26)
"""What templates that print the date are told, so that a prompt is the same in every stage: the
day that Llama 3's template takes where it knows none."""

MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")


@lru_cache(maxsize=1)
def _room(second: int) -> int:
    """Address space that may be used in this second: asking at every row takes longer than it."""
    return int(psutil.Process().memory_info().vms) + MEMORY


class TooLong(BaseException):
    """No Exception: jinja, which computes constants when it compiles, passes over those, and would
    begin again."""


def rendered(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], open_: bool, where: str) -> str:
    """The text of `turns`; open_: with the beginning of a reply. UserError naming the row `where`
    for a template that fails, takes too long, or writes nothing or too much.

    It is a program of somebody else's: transformers runs it in jinja's sandbox, where it reads and
    writes nothing, but may loop for ever.
    """
    return _bounded(
        lambda: tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_),
        tokenizer,
        where,
    )


def marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether its chat template says what of a conversation is learned ({% generation %})."""
    there = tokenizer.chat_template is not None
    return there and MARK.search(tokenizer.get_chat_template()) is not None


def marked(
    tokenizer: PreTrainedTokenizerBase, turns: list[Turn], where: str
) -> tuple[str, list[tuple[int, int]]] | None:
    """As `rendered`, with the spans of characters that the template marks as the assistant's
    ({% generation %}); None for a template that marks nothing."""
    if not marks(tokenizer):
        return None
    template = tokenizer.get_chat_template()
    spans: list[tuple[int, int]] = []

    def render() -> Any:
        names: dict[str, Any] = tokenizer.special_tokens_map
        found: Any = render_jinja_template(
            [turns], chat_template=template, return_assistant_tokens_mask=True, **names
        )
        spans.extend((start, end) for start, end in found[1][0])
        return found[0][0]

    return _bounded(render, tokenizer, where), spans


def _bounded(render: Callable[[], Any], tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    try:
        with _bounds():
            template = tokenizer.get_chat_template()
            if "strftime_now" in template:
                compiled = chat_template_utils._compile_jinja_template(template)
                compiled.globals["strftime_now"] = TODAY.strftime
            text = render()
    except (Exception, TooLong) as error:  # whatever a foreign program raises
        reason = " ".join((str(error) or type(error).__name__).split())[:300].rstrip(".")
        out = "--template.alternate true leaves out such rows; or " if "alternat" in reason else ""
        raise UserError(
            f"{where}: the tokenizer's chat template refuses this conversation ({reason}); {out}"
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
