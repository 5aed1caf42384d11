"""The one exception whose text is shown to users without a traceback."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

ANEW = "which begins the run anew (--resume never)"
"""Behind advice to change what the steps depend on: no checkpoint goes on with it."""


class UserError(ValueError):
    """Something the user gave is wrong: the message says what, where, and what to do about it.

    It is one paragraph, whatever the names in it hold: what cannot be printed is escaped, and
    what is longer than a path or a line is cut.
    """

    everywhere = False
    """Every rank has raised one at the same place (`Launch.together`): none waits for another."""

    def __init__(self, text: str) -> None:
        text = text.replace("\n", " ")
        if not text.isprintable():
            text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        super().__init__(re.sub(r"(\S{200})\S{800,}", r"\1...", text))


class ElsewhereError(UserError):
    """Another rank has something to say; this one only ends."""

    everywhere = True


class NoRoomError(RuntimeError):
    """Memory ran out, here or on another rank, and every rank knows (`Launch.together`)."""


def out_of_memory(error: RuntimeError) -> bool:
    """Whether it says that a device has no memory left; torch has no class for it on the CPU."""
    return type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)


@contextmanager
def readable(what: str) -> Iterator[None]:
    """Within it the operating system's refusals become a UserError that begins with `what`."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{what} cannot be read: {error.strerror or error}. See that it is there, that you may "
            "read it, and that its disk answers."
        ) from error
