"""Worker processes that the user's code starts: they obey signals, and end with the run.

A fork inherits what a stage does about signals: handlers that do nothing, and a pipe that tells the
parent to end.
"""

import ctypes
import os
import signal
import sys
import threading

import psutil

GRACE = 2.0
"""Seconds between asking children to end and killing them."""
TRACKER = "multiprocessing.resource_tracker"
"""In the command line of Python's own cleaner, which ends by itself, and last."""
ENDED: list[bool] = []
"""Something, once the end has begun: whoever is forked from then on ends at once."""
PR_SET_PDEATHSIG = 1
"""prctl(2)."""


def free_children() -> None:
    """From now on, forked children end at a signal as a fresh process does, and where they were
    forked by the calling thread, the main one, with this process. To be called once."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    main = threading.get_ident()

    def in_child() -> None:
        if ENDED:  # by a pool's thread, which replaces its workers to the last
            os._exit(0)
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if callable(signal.getsignal(number)):  # what is ignored (nohup) stays so
                # A terminal's Ctrl-C and hang-up reach children too, while the run finishes its
                # step with them.
                ends = number == signal.SIGTERM
                signal.signal(number, signal.SIG_DFL if ends else signal.SIG_IGN)
        # The signal comes when the thread that forked ends, so a pool's own threads are no parents.
        if prctl is not None and threading.get_ident() == main:
            prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)

    os.register_at_fork(after_in_child=in_child)


def end_children(grace: float = GRACE) -> None:
    """Ask all processes that descend from this one to end, and kill those that still are there
    after `grace` seconds."""
    ENDED.append(True)
    running = _descendants()
    for child in running:
        _tell(child, signal.SIGTERM)
    _, running = psutil.wait_procs(running, timeout=grace)
    for child in [*running, *_descendants()]:  # a pool replaces workers that have ended
        _tell(child, signal.SIGKILL)


def _descendants() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if not any(TRACKER in word for word in child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended, or is a zombie
            continue
    return found


def _tell(child: psutil.Process, number: signal.Signals) -> None:
    try:
        child.send_signal(number)
    except psutil.NoSuchProcess:
        return
