"""How a stage script begins and ends: a user's mistake is one paragraph on stderr and exit status
1, a stopped run a sentence and 75.

Of several ranks one speaks: torch's launcher ends all of them when the first exits, and most other
ranks fail only because that one did.
"""

import contextlib
import logging
import os
import re
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Mapping

import psutil

from cores.errors import ANEW, ElsewhereError, UserError
from cores.runtime.machines import MACHINES
from cores.runtime.ranks import WATCH, Board
from cores.runtime.screen import show_everything
from cores.runtime.stop import STOP, STOPPED, Stopped, end_children, free_children

RANK_0_SPEAKS_FIRST = 3.0
"""Seconds that another rank leaves to rank 0, which nearly always sees the same mistake."""
CAUSE_SPEAKS_FIRST = 1.0
"""Seconds that rank 0 leaves to the cause of its own crash: another rank's death breaks the
connection, and the launcher, who knows of it, then ends this rank."""
ENDING = threading.RLock()
"""Held by the thread that says why this process ends, until it has."""
SPEAKER_ENDS = 0.5
"""Seconds in which the speaking rank finishes its sentence."""
RANKS = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK",
)  # fmt: skip
SIZES = (
    "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
)  # fmt: skip
OTHERS = (
    "MASTER_PORT", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE",
    "OMP_NUM_THREADS", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "HF_HUB_DOWNLOAD_TIMEOUT",
    "HF_HUB_ETAG_TIMEOUT",
)  # fmt: skip
"""Numbers that accelerate and torch read as well."""
JOINING = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
"""What `accelerate launch` says of a launch that shards: there must be one."""
BOOLEANS = "y yes t true on 1 n no f false off 0".split()
LAUNCHERS = re.compile(
    r"(torchrun|accelerate|deepspeed|mpi\w*|orted|prte\w*|hydra\w*|slurm\w*|srun)"
)
"""Programs and modules that start several processes."""


def guarded(main: Callable[[list[str]], None]) -> None:
    """Run `main` on the command line's arguments; errors in the program itself keep a traceback."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch, not imported yet, then sees no GPU
    # Where it is installed, peft imports it, and it warns of a faster kernel that is not.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    show_everything()
    board = Board()
    if problem := environment_problem(os.environ):
        _end(board, _paragraph("error: ", problem), 1, tell=False)
    board.arrive()
    STOP.leave = lambda text, status: _end(board, text, status)
    STOP.bereft = lambda: bool(board.killed())
    MACHINES.end = lambda text: _end(board, _paragraph("error: ", text), 1, tell=False)
    STOP.watch(launched=board.folder is not None)
    free_children()
    WATCH.start(board)
    try:
        main(sys.argv[1:])
    except SystemExit as end:  # --help
        _leave(board, end.code if isinstance(end.code, int) else int(end.code is not None))
    except Stopped as stopped:
        said, _, command = str(stopped).partition("\n")  # folded, it could not be copied
        _end(board, _paragraph("", said) + f"{command}\n", STOPPED, tell=False)
    except UserError as error:
        who = f"error on {MACHINES.rank}: " if board.rank or MACHINES.hosts else "error: "
        patience = RANK_0_SPEAKS_FIRST if board.rank else 0.0
        if isinstance(error, ElsewhereError):
            patience = MACHINES.doubt(RANK_0_SPEAKS_FIRST)
        _end(board, _paragraph(who, str(error)), 1, patience)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        text = (
            f"{where}{error.strerror or error}. Mend this (space, permissions, the folder itself); "
            "the same command then goes on from the last checkpoint, if there is one."
        )
        _end(board, _paragraph("error: ", text), 1, CAUSE_SPEAKS_FIRST)
    except Exception:  # whatever it is: shown, and the process ended without its destructors
        text = f"error on {MACHINES.rank}:\n" if "RANK" in os.environ else ""
        patience = RANK_0_SPEAKS_FIRST if board.rank else CAUSE_SPEAKS_FIRST
        _end(board, text + traceback.format_exc(), 1, MACHINES.doubt(patience))
    _leave(board, 0)


def _end(board: Board, text: str, status: int, patience: float = 0.0, tell: bool = True) -> None:
    """Say why, if no other rank has, and end. Another rank's death is the reason of whatever its
    absence brought about here. `tell`: other machines do not know by themselves."""
    speaks = board.may_speak(patience)
    killed = [] if text.startswith("error") and "Traceback" not in text else board.killed()
    if speaks:
        with ENDING:
            text = _killed(killed) if killed else text
            sys.stderr.write(text)
            if tell:
                why = text.splitlines()[-1] if "Traceback" in text else " ".join(text.split())
                MACHINES.tell(re.sub(r"^error.*?: ", "", why))
    else:
        time.sleep(SPEAKER_ENDS)
    _leave(board, 1 if killed else status)


def _killed(ranks: list[int]) -> str:
    who = "rank " + " and rank ".join(map(str, ranks))
    return _paragraph(
        "error: ",
        f"{who} ended without a word: killed from outside, or crashed in a library. Most often "
        "the machine ran out of memory (then `dmesg` says so). The same command goes on from the "
        "last checkpoint, with fewer processes too. Or lower microbatch_size or max_length, "
        f"{ANEW}.",
    )


def _paragraph(who: str, text: str) -> str:
    """Lines of at most 100 columns; no word is broken."""
    lines = textwrap.fill(
        text, 100, initial_indent=who, break_long_words=False, break_on_hyphens=False
    )
    return lines + "\n"


def _leave(board: Board, status: int) -> None:
    """Exit without waiting for other ranks, who may be waiting for this one."""
    ENDING.acquire()
    board.leave()
    end_children()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a function may have replaced them
            stream.flush()
    os._exit(status)


def environment_problem(env: Mapping[str, str]) -> str | None:
    """What is wrong with the working directory or the variables of launchers in `env`, and what to
    do about it.

    One that an earlier job left behind makes a lone process one of several: it would wait for
    others that never come.
    """
    try:
        os.getcwd()
    except OSError as error:
        return f"the folder that this was started in is gone ({error.strerror}). Go to another one."
    if sys.flags.optimize > 1:
        return (
            "python -OO (PYTHONOPTIMIZE) drops docstrings, which transformers reads. Leave it out."
        )
    for name in (*RANKS, *SIZES, *OTHERS):
        form = r"-?\d{1,9}|auto" if name in OTHERS else r"-?\d{1,9}"
        if name in env and not re.fullmatch(form, env[name]):
            return _unset([name], f"is {env[name]!r}, which is no number")
    for name, value in env.items():
        if name.startswith("ACCELERATE_USE_") and value.lower() not in BOOLEANS:
            return _unset([name], f"is {value!r}, which is neither true nor false")
    several = [name for name in SIZES if int(env.get(name, 1)) > 1]
    several += [name for name in RANKS if int(env.get(name, -1)) >= 0]
    several += [name for name in JOINING if env.get(name, "").lower() in ("true", "1")]
    if several and not launched():
        return _unset(
            several,
            "would make this process wait for others that no launcher started with it, left over "
            "from another job perhaps",
        )
    return None


def launched() -> bool:
    """Whether a launcher is among the processes above this one."""
    try:
        words = [word for parent in psutil.Process().parents() for word in parent.cmdline()]
    except psutil.Error:
        return False
    names = {part for word in words for part in re.split(r"\W+", os.path.basename(word))}
    return "torch.distributed.run" in words or any(map(LAUNCHERS.fullmatch, names))


def _unset(names: list[str], problem: str) -> str:
    return (
        f"the environment variable {' and '.join(names)} {problem}. Run `unset {' '.join(names)}`, "
        "or start several processes with accelerate launch or torchrun."
    )
