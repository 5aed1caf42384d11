"""How a stage script ends: a user's mistake is one paragraph on stderr and exit status 1."""

import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable

from cores.errors import UserError

RANK_0_SPEAKS_FIRST = 5.0
"""Seconds the other ranks wait before they report: a launcher ends all ranks at the first exit, and
rank 0, which nearly always sees the same mistake, must not be cut off in mid-sentence."""


def guarded(main: Callable[[list[str]], None]) -> None:
    """Run `main` on the command line's arguments; errors in the program itself keep a traceback."""
    if "RANK" not in os.environ:  # launchers end their ranks, which may wait in C++, themselves
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        main(sys.argv[1:])
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            time.sleep(RANK_0_SPEAKS_FIRST)
        who = f"error (rank {rank}): " if rank else "error: "
        sys.stderr.write(_paragraph(who, str(error)) + "\n")
        sys.stderr.flush()
        _leave(1)
    except KeyboardInterrupt as stop:
        sys.stderr.write("interrupted\n")
        _leave(128 + (stop.args[0] if stop.args else signal.SIGINT))


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends a stage as Ctrl-C does, so that no partial folder stays behind."""
    raise KeyboardInterrupt(number)


def _paragraph(who: str, text: str) -> str:
    """Lines of at most 100 columns; paths and options stay whole, to be copied."""
    return textwrap.fill(
        text, 100, initial_indent=who, break_long_words=False, break_on_hyphens=False
    )


def _leave(status: int) -> None:
    """Exit without waiting for other ranks, who may be waiting for this one."""
    sys.stdout.flush()
    if "RANK" in os.environ:
        os._exit(status)
    sys.exit(status)
