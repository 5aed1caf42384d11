"""What the screen says, kept in log.txt as well. No line ends a run because it cannot be shown."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


class Screen:
    """Stands in for stdout or stderr: a terminal that is closed, or cannot write a character, is
    no reason to stop."""

    def __init__(self, stream: TextIO, log: "Log") -> None:
        self.stream = stream
        self.log = log

    def write(self, text: str) -> int:
        """As a text stream's."""
        self.log.add(text)
        erase()
        with contextlib.suppress(OSError, ValueError):  # closed, or its reader is gone
            encoding = getattr(self.stream, "encoding", None) or "utf-8"
            self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """As a text stream's."""
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def isatty(self) -> bool:
        """Whether it is a terminal; what user code has closed is none."""
        return not self.stream.closed and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Log:
    """Everything said, from before there is a file for it."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.path: Path | None = None
        self.quotes = True
        """Whether what may quote prompts or replies is kept (`logging.samples`)."""

    def add(self, text: str) -> None:
        """Keep a text. A log that cannot be written is left: the run's own files tell of a full
        disk."""
        if self.path is None:
            self.waiting.append(text)
            return
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(text.encode("utf-8", "backslashreplace").decode("utf-8"))

    def attach(self, path: Path | None) -> None:
        """From here on to `path`, what waited first; None: to nowhere."""
        self.path = path
        if path is not None:
            self.add("".join(self.waiting))
        self.waiting = []

    @contextlib.contextmanager
    def quoting(self) -> Iterator[None]:
        """What is said within may quote prompts or replies: kept only where `quotes` says so."""
        path, waiting = self.path, self.waiting
        if not self.quotes:
            self.path, self.waiting = None, []
        try:
            yield
        finally:
            self.path, self.waiting = path, waiting


LOG = Log()


DRAWN: list[TextIO] = []
"""The stream with a line that the next one replaces, if there is any."""


def draw(text: str) -> None:
    """A line on the terminal that the next one replaces; no log has it."""
    erase()
    stream = getattr(sys.stdout, "stream", sys.stdout)
    with contextlib.suppress(OSError, ValueError):
        stream.write(text)
        stream.flush()
        DRAWN.append(stream)


def erase() -> None:
    """Take away what was drawn."""
    while DRAWN:
        with contextlib.suppress(OSError, ValueError):
            DRAWN.pop().write("\r\x1b[K")


def show_everything() -> None:
    """Put screens before stdout and stderr, once."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if not isinstance(stream, Screen):
            setattr(sys, name, Screen(stream, LOG))
