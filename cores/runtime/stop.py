"""How a run is told to end: by signals, by its launcher's death, by the clock.

While steps are taken the first signal waits for the step's end, where the run saves and goes; a
second one ends it at once. Before and behind the steps nothing would be lost: one is enough.

Worker processes that the user's code starts obey signals as well, and end with the run. A fork
inherits what a stage does about signals: handlers that do nothing, and a pipe that tells the parent
to end.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import psutil

STOPPED = 75
"""Exit status of a run that can go on: EX_TEMPFAIL of BSD's sysexits.h, "try again"."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ECHO = 3.0
"""Seconds in which a launcher's signal is taken for the one that the terminal sent."""
LOOK = 1.0
"""Seconds between looks at whether the launcher still lives."""
GRACE = 2.0
"""Seconds between asking children to end and killing them."""
TRACKER = "multiprocessing.resource_tracker"
"""In the command line of Python's own cleaner, which ends by itself, and last."""
ENDED: list[bool] = []
"""Something, once the end has begun: whoever is forked from then on ends at once."""
PR_SET_PDEATHSIG = 1
"""prctl(2)."""


class Stopped(Exception):  # noqa: N818  # not an error: it ends as it should
    """The run has saved and ends; behind the first line of the text is the command to go on."""


class Stop:
    """What this process was told, and whether it is in the middle of something worth finishing."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.stepping = False
        """Steps are being taken: what was told waits for the end of one."""
        self.how = ""
        """The command to go on with, once there are steps."""
        self.leave: Callable[[str, int], None] = _leave
        """Ends the process: a word to say, and the exit status."""
        self.bereft: Callable[[], bool] = lambda: False
        """Whether another rank is gone, so that no step will end."""
        self.told_at = -ECHO
        self.echo = 0.0

    def tell(self, reason: str) -> None:
        """Ask for the end; called from a thread, whatever the main one waits for."""
        again, now = self.reason is not None, time.monotonic()
        if again and now - self.told_at < self.echo:
            return  # the terminal's Ctrl-C, and the launcher's word for it
        self.told_at = now
        if again:
            said = f"{reason}: ended at once; to go on from the newest checkpoint, if there is one:"
            self.leave(f"{said}\n{self.how}\n", 128 + signal.SIGTERM)
        self.reason = reason
        if not self.stepping or self.bereft():
            self.leave(f"{reason}: stopped; no step was under way, nothing is lost\n", STOPPED)
        sys.stderr.write(f"{reason}: stopping behind this step (once more: at once)\n")

    def watch(self, launched: bool) -> None:
        """Obey signals even while the main thread waits in C++ for another rank; where a launcher
        started this process, its death as well (nobody would end an orphan)."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup, or a job behind &
                signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writer)
        threading.Thread(target=self._signals, args=(reader,), daemon=True).start()
        if launched:
            self.echo = ECHO
            threading.Thread(target=self._orphaned, args=(os.getppid(),), daemon=True).start()

    def _signals(self, reader: int) -> None:
        while read := os.read(reader, 1):  # until somebody closes its other end
            if read[0] in SIGNALS:  # libraries may handle others
                self.tell(signal.Signals(read[0]).name)

    def _orphaned(self, parent: int) -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        if self.reason is None:
            self.tell("the launcher is gone")


def _leave(text: str, status: int) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
    os._exit(status)


STOP = Stop()


def free_children() -> None:
    """From now on, forked children end at a signal as a fresh process does, and where they were
    forked by the calling thread, the main one, with this process. To be called once."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    main = threading.get_ident()

    def in_child() -> None:
        if ENDED:  # by a pool's thread, which replaces its workers to the last
            os._exit(0)
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            if callable(signal.getsignal(number)):  # what is ignored (nohup) stays so
                # A terminal's Ctrl-C and hang-up reach children too, while the run finishes its
                # step with them.
                ends = number == signal.SIGTERM
                signal.signal(number, signal.SIG_DFL if ends else signal.SIG_IGN)
        # The signal comes when the thread that forked ends, so a pool's own threads are no parents.
        if prctl is not None and threading.get_ident() == main:
            prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        restore()

    masks = threading.local()

    def before() -> None:
        masks.kept = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def restore() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, masks.kept)

    # A child that is killed at once would else tell this process, whose pipe it still has.
    os.register_at_fork(before=before, after_in_parent=restore, after_in_child=in_child)


def end_children(grace: float = GRACE) -> None:
    """Ask all processes that descend from this one to end, and kill those that still are there
    after `grace` seconds."""
    ENDED.append(True)
    running = _descendants()
    for child in running:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    _, running = psutil.wait_procs(running, timeout=grace)
    for child in [*running, *_descendants()]:  # a pool replaces workers that have ended
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _descendants() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended, or is a zombie
            if not any(TRACKER in word for word in child.cmdline()):
                found.append(child)
    return found
