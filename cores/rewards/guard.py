"""The user's code run: it leaves the process as it was, ends in time, and fails in a sentence."""

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import walk_stack, walk_tb
from types import FrameType
from typing import Any, TypeVar

import torch

from cores.draws import seeded
from cores.errors import UserError
from cores.runtime.stop import STOP

T = TypeVar("T")
INTERRUPT = signal.SIGVTALRM
"""Wakes code that takes too long. Not SIGALRM, which that code may have for itself."""
TRIES = 5
"""Interruptions, one a second, before the process is ended: code may catch what they raise, and C
may not come back to Python."""
LONGEST = 1e9
"""Seconds: more are none."""
SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_default_device, lambda _: torch.set_default_device(None)),  # we set none
    (torch.get_num_threads, torch.set_num_threads),
    (lambda: (sys.stdout, sys.stderr), lambda x: vars(sys).update(stdout=x[0], stderr=x[1])),
)


class OutOfTime(BaseException):
    """No Exception, which code may catch to go on."""


def own_file(path: str) -> Path:
    """The absolute path; of links those among its folders are followed, as `import` does."""
    given = Path(path).expanduser()
    return given.parent.resolve() / given.name


def run(call: Callable[[], T], what: str, path: str, limit: float | None, purpose: str) -> T:
    """`call()`, code of the file `path`, with random numbers of `purpose` and `limit` seconds.

    Raises UserError, which begins with `what`, for all that the code raises. Ctrl-C and SIGTERM get
    through whatever the code catches.
    """
    stops: list[BaseException] = []
    failure: BaseException | None = None

    def late(frame: FrameType | None) -> str:
        return (
            f"{what} {_place(path, walk_stack(frame))}: it takes longer than ppo.reward_timeout, "
            f"{limit:g} seconds; make it faster, or raise the limit (null: none) to go on."
        )

    try:
        with _unchanged(purpose):
            result = _limited(call, limit, late, stops)
    except BaseException as error:
        failure = error
    if stops and not isinstance(stops[0], OutOfTime):
        raise stops[0]
    if stops:
        raise UserError(str(stops[0])) from None
    if failure is not None:
        raise UserError(f"{what} {_cause(failure, path)}") from failure
    return result


def _limited(
    call: Callable[[], T],
    limit: float | None,
    late: Callable[[FrameType | None], str],
    stops: list[BaseException],
) -> T:
    """`call()`, in the main thread, with OutOfTime raised in it after `limit` seconds.

    Another thread wakes code that waits, and ends the process if it stays in C. A regular
    expression holds that thread up, but not the timer of the process's own work; C that does not
    even look for signals is left to faulthandler. What handlers raise is kept in `stops`: so Ctrl-C
    is told from the code's own KeyboardInterrupt.
    """
    seconds = min(limit or LONGEST, LONGEST)
    due, pid = time.monotonic() + seconds, os.getpid()
    done, main, armed = threading.Event(), threading.get_ident(), False

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            if number == INTERRUPT and armed and time.monotonic() >= due:
                raise OutOfTime(late(frame))
            if number != INTERRUPT:
                before[number](number, frame)
        except BaseException as stop:
            stops.append(stop)
            raise

    def watch() -> None:
        for wait in (seconds, *[1.0] * TRIES):
            if done.wait(wait):
                return
            signal.pthread_kill(main, INTERRUPT)
        # From here, the main thread being lost in C.
        STOP.leave(f"error: {late(sys._current_frames()[main])}\n", 1)

    with _signals() as before:
        for number, was in before.items():
            if callable(was) or number == INTERRUPT:
                signal.signal(number, handle)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)
        faulthandler.dump_traceback_later(seconds + 2 * TRIES + 1, exit=True, file=2)
        try:
            armed = True
            return call()
        finally:
            armed = False  # first of all: nothing interrupts what follows
            if os.getpid() != pid:
                os._exit(1)  # a child that the code forked came back here: the run is its parent's
            done.set()
            watcher.join()
            faulthandler.cancel_dump_traceback_later()
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@contextmanager
def _signals() -> Iterator[dict[int, Any]]:
    """The handlers that there are; afterwards all that is of signals is as before."""
    before: dict[int, Any] = {number: signal.getsignal(number) for number in signal.valid_signals()}
    alarm, wakeup = signal.getitimer(signal.ITIMER_REAL), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    try:
        yield before
    finally:
        signal.setitimer(signal.ITIMER_REAL, *alarm)
        signal.set_wakeup_fd(wakeup)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, was in before.items():
            if was is not None and signal.getsignal(number) != was:
                signal.signal(number, was)


@contextmanager
def _unchanged(purpose: str) -> Iterator[None]:
    """Working directory, SETTINGS and global random generators are then as before."""
    folder = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    settings = [get() for get, _ in SETTINGS]
    try:
        with seeded(0, purpose):
            yield
    finally:
        for value, (get, put) in zip(settings, SETTINGS, strict=True):
            if get() != value:
                put(value)
        os.fchdir(folder)
        os.close(folder)


def _place(path: str, frames: Iterable[tuple[FrameType, int]]) -> str:
    """Of frames, the innermost first, the first that is the file's own."""
    own = str(own_file(path))
    lines = [line for frame, line in frames if frame.f_code.co_filename == own]
    return f"at {path}:{lines[0]}" if lines else f"in {path}"


def _cause(error: BaseException, path: str) -> str:
    """`at file:line: Type: message`, on one line."""
    place = _place(path, reversed(list(walk_tb(error.__traceback__))))
    try:
        message = " ".join(str(error).split())[:300]
    except Exception:
        message = "(it cannot be shown)"
    if isinstance(error, SyntaxError) and error.lineno:
        place, message = f"at {error.filename}:{error.lineno}", error.msg
    return f"{place}: {type(error).__name__}: {message}".rstrip(": ")
