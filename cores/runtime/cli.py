"""How a stage script ends: a user's mistake is one paragraph on stderr and exit status 1."""

import os
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
    try:
        main(sys.argv[1:])
    except UserError as error:
        rank = int(os.environ.get("RANK", "0"))
        if rank:
            time.sleep(RANK_0_SPEAKS_FIRST)
        who = f"error (rank {rank}): " if rank else "error: "
        sys.stderr.write(textwrap.fill(who + str(error), 100, break_long_words=False) + "\n")
        sys.stderr.flush()
        _leave(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        _leave(130)


def _leave(status: int) -> None:
    """Exit without waiting for other ranks, who may be waiting for this one."""
    sys.stdout.flush()
    if "RANK" in os.environ:
        os._exit(status)
    sys.exit(status)
