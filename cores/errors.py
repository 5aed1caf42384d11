"""The one exception whose text is shown to users without a traceback."""


class UserError(ValueError):
    """Something the user gave is wrong: the message says what, where, and what to do about it."""


class ElsewhereError(UserError):
    """Another rank has something to say; this one only ends."""
