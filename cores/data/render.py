"""Rendering with the chat template of a folder: a program of somebody else's, kept in bounds.

transformers runs it in jinja's sandbox, where it reads and writes nothing, but may loop for ever.
"""

import resource
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import psutil
from transformers import PreTrainedTokenizerBase

from cores.data.files import LONGEST
from cores.data.values import Turn
from cores.errors import UserError

SECONDS = 10.0
"""For one conversation; templates take milliseconds."""
MEMORY = 4 * 2**30
"""Bytes beside those in use."""


@lru_cache(maxsize=1)
def _room(second: int) -> int:
    """Address space that may be used in this second: asking at every row takes longer than it."""
    return int(psutil.Process().memory_info().vms) + MEMORY


def rendered(tokenizer: PreTrainedTokenizerBase, turns: list[Turn], open_: bool, where: str) -> str:
    """The text of `turns`; open_: with the beginning of a reply. UserError naming the row `where`
    for a template that fails, takes too long, or writes nothing or too much."""
    try:
        with _bounds():
            text: Any = tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=open_
            )
    except Exception as error:  # whatever a foreign program raises
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
    """TimeoutError and MemoryError for what goes on too long; signals reach the main thread."""
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
    raise TimeoutError(f"it takes more than {SECONDS:g} seconds")
