"""How a stage script ends: a user's mistake is one paragraph on stderr and exit status 1.

Of several ranks one speaks: torch's launcher ends all of them when the first exits, and most other
ranks fail only because that one did.
"""

import logging
import os
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable

from cores.errors import UserError
from cores.runtime.environment import environment_problem
from cores.runtime.ranks import Board

RANK_0_SPEAKS_FIRST = 3.0
"""Seconds that another rank leaves to rank 0, which nearly always sees the same mistake."""
CAUSE_SPEAKS_FIRST = 1.0
"""Seconds that rank 0 leaves to the cause of its own crash: another rank's death breaks the
connection, and the launcher, who knows of it, then ends this rank."""
SPEAKER_ENDS = 0.5
"""Seconds in which the speaking rank finishes its sentence."""
ON_STOP: list[Callable[[], None]] = []
"""What a rank clears away when it is told to end."""


def guarded(main: Callable[[list[str]], None]) -> None:
    """Run `main` on the command line's arguments; errors in the program itself keep a traceback."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch, not imported yet, then sees no GPU
    # Where it is installed, peft imports it, and it warns of a faster kernel that is not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if problem := environment_problem(os.environ):
        sys.stderr.write(_paragraph("error: ", problem))
        sys.exit(1)
    if "RANK" in os.environ:
        return _one_of_many(main, Board())
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(_paragraph("error: ", str(error)))
        sys.exit(1)
    except KeyboardInterrupt as stop:
        sys.stderr.write("interrupted\n")
        sys.exit(128 + (stop.args[0] if stop.args else signal.SIGINT))


def _interrupt(number: int, frame: object) -> None:
    """SIGTERM ends a stage as Ctrl-C does, so that no partial folder stays behind."""
    raise KeyboardInterrupt(number)


def _one_of_many(main: Callable[[list[str]], None], board: Board) -> None:
    board.arrive()
    _obey(board)
    rank = board.rank
    try:
        main(sys.argv[1:])
    except UserError as error:
        who = f"error on rank {rank}: " if rank else "error: "
        _fail(board, _paragraph(who, str(error)), RANK_0_SPEAKS_FIRST if rank else 0.0)
    except Exception:  # whatever it is: shown, and the process ended without its destructors
        text = f"error on rank {rank}:\n{traceback.format_exc()}"
        _fail(board, text, RANK_0_SPEAKS_FIRST if rank else CAUSE_SPEAKS_FIRST)
    board.leave()


def _fail(board: Board, text: str, patience: float) -> None:
    if board.may_speak(patience):
        sys.stderr.write(text)
    else:
        time.sleep(SPEAKER_ENDS)
    _leave(board, 1)


def _obey(board: Board) -> None:
    """End this rank at SIGTERM or Ctrl-C even while it waits in C++ for another rank.

    Python's own handlers would wait for that call to return; a thread need not.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer)
    threading.Thread(target=_end_when_told, args=(board, reader), daemon=True).start()


def _end_when_told(board: Board, reader: int) -> None:
    number = 0
    while number not in (signal.SIGTERM, signal.SIGINT):  # libraries may handle other signals
        number = os.read(reader, 1)[0]
    for action in ON_STOP:
        action()
    killed = board.killed()
    if board.may_speak():
        sys.stderr.write(_killed(killed) if killed else "interrupted\n")
    _leave(board, 128 + number)


def _killed(ranks: list[int]) -> str:
    who = "rank " + " and rank ".join(map(str, ranks))
    return _paragraph(
        "error: ",
        f"{who} ended without a word: killed from outside, or crashed in a library. Most often "
        "the machine ran out of memory (then `dmesg` says so): lower microbatch_size or "
        "max_length, or start fewer processes.",
    )


def _paragraph(who: str, text: str) -> str:
    """Lines of at most 100 columns; paths and options stay whole, to be copied."""
    lines = textwrap.fill(
        text, 100, initial_indent=who, break_long_words=False, break_on_hyphens=False
    )
    return lines + "\n"


def _leave(board: Board, status: int) -> None:
    """Exit without waiting for other ranks, who may be waiting for this one."""
    board.leave()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
