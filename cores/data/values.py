"""Values of a row, checked: text, turns, replies, numbers. Every mistake names the row."""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from cores.config.nodes import checked
from cores.data.files import LONGEST
from cores.data.sources import Row
from cores.errors import UserError

Turn = dict[str, str]
"""`role` and `content`, and `untrained` where it is not to be learned. Roles are system, user,
assistant, tool (the result of one), thoughts and commands (of the assistant, before its reply), and
`text` for a text without turns."""

SPEAKERS = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "chatgpt", "bot", "model", "ai", "bard", "bing"), "assistant"
    ),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    "thoughts": "thoughts",
    **dict.fromkeys(("commands", "function_call"), "commands"),
}
"""Names of speakers and their roles: those of chat templates, of ShareGPT's many hands, of OASST's
rows, of LLaMA-Factory's."""

MEANING = {
    "tool_calls": "calls of tools",
    "function_call": "a call of a function",
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
    "thinking": "reasoning",
    "images": "images",
    "audio": "sound",
    "refusal": "a refusal",
    "weight": "a weight",
    "train": "whether it is trained on",
    "loss": "whether it is trained on",
}
"""Keys of a turn that change what it says or whether it is learned."""
SWITCHES = ("weight", "train", "loss")
"""Those of them that say by 0 or false that it is not, in the lists of turns of stage 1."""
FORMS = (("role", "content"), ("from", "value"))
"""Keys of a turn that are read: OpenAI's, or else ShareGPT's."""
NEUTRAL: tuple[Any, ...] = (None, "", [], {}, 1, 1.0, True)
"""Values that say nothing more than the turn does without them."""


@dataclass(frozen=True)
class Ignored:
    """What a source leaves out knowingly."""

    names: Collection[str] = ()
    """Its `ignore`."""
    key: str = "data.SOURCE"
    """The dotted key of its section."""
    obeyed: bool = False
    """Turns may say that they are not to be learned."""
    learned: bool = True
    """What turns say is learned somewhere."""
    unread: set[str] = field(default_factory=set)
    """Keys of turns that say something and are not read."""

    def advice(self, name: str) -> str:
        """How `name` is added to it."""
        listed = f"{self.key}.ignore: [{name}]"  # items of a list have no option of their own
        return listed if "]" in self.key else f"--{self.key}.ignore '[\"{name}\"]'"

    def free(self, role: str) -> bool:
        """Whether a turn of `role` may say that it is not learned."""
        return self.obeyed or (role in ("system", "user", "tool") and not self.learned)


NOTHING = Ignored()

OPENS, CLOSES = re.compile(r"\s*\[\s*\{"), re.compile(r"\}\s*\]\s*\Z")
SPEAKS = re.compile(r"['\"](role|from)['\"]\s*:")
"""Of the text of a list of turns, as JSON or as Python writes it."""

LARGEST_MARGIN = 1e6
"""Scores lie within a few units; fp32 still tells one of these from the next."""


def value_of(row: Row, column: str) -> Any:
    """The value as it was read."""
    if column not in row.columns:
        found = ", ".join(row.columns) or "none"
        raise UserError(
            f"{row.where}: column {column!r} is missing (columns of this row: {found})."
        )
    return row.columns[column]


def text_of(row: Row, column: str) -> str:
    """The column as text; null is empty."""
    return _text(value_of(row, column), row, f"column {column!r}")


def words_of(row: Row, column: str) -> str:
    """The column as what somebody says; UserError for the text of a list of turns."""
    text = text_of(row, column)
    closed = OPENS.match(text) and CLOSES.search(text, max(0, len(text) - 100))
    if closed and SPEAKS.search(text):
        raise UserError(
            f"{row.where}: column {column!r} holds the text of a list of turns ({short(text)}), as "
            "exports write it; convert it into a list (JSON Lines), or take what is said out of it."
        )
    return text


def said(value: Any) -> bool:
    """Whether a value says anything."""
    return not any(type(value) is type(none) and value == none for none in NEUTRAL)


def turns_of(row: Row, column: str, ignore: Ignored = NOTHING) -> list[Turn]:
    """The column as turns, in OpenAI's form or ShareGPT's; of other keys those in MEANING are
    refused but where `ignore` names them."""
    value = value_of(row, column)
    if value is None:
        return []
    if isinstance(value, str):
        words_of(row, column)  # says so of the text of a list
    if not isinstance(value, list):
        raise UserError(
            f"{row.where}: column {column!r} must be a list of {{role, content}} or {{from, value}}"
            f" objects, but holds {short(value)}."
        )
    return [_turn(turn, row, f"turn {n} of {column!r}", ignore) for n, turn in enumerate(value, 1)]


def reply_of(row: Row, column: str, ignore: Ignored = NOTHING) -> str:
    """A reply given as text, as one turn, or as a list of it alone."""
    value = value_of(row, column)
    if isinstance(value, dict):
        turns = [_turn(value, row, f"column {column!r}", ignore)]
    elif isinstance(value, list):
        turns = turns_of(row, column, ignore)
    else:
        return words_of(row, column)
    if not turns or turns[-1]["role"] != "assistant":
        raise UserError(f"{row.where}: the messages of {column!r} must end with an assistant turn.")
    if len(turns) > 1:
        raise UserError(
            f"{row.where}: column {column!r} holds {len(turns)} turns beside a column for the "
            "prompt, so that it is unclear what was asked; give the reply alone, or the whole "
            "conversation as messages (both sides of a pair as whole conversations)."
        )
    return turns[-1]["content"]


def before_of(row: Row, columns: Collection[str], ignore: Ignored = NOTHING) -> list[Turn]:
    """What the columns `system` (text) and `history` (pairs of a question and its reply, as in the
    Alpaca form of LLaMA-Factory) say stood before the prompt; those of them in `columns`."""
    turns: list[Turn] = []
    if "system" in columns and row.columns.get("system"):
        turns.append({"role": "system", "content": text_of(row, "system")})
    history = row.columns.get("history") if "history" in columns else None
    if not isinstance(history, list):
        history = [] if history in (None, "", "[]") else [history]
    for number, pair in enumerate(history, 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError(
                f"{row.where}: round {number} of 'history' must be a list of a question and its "
                f"reply, but is {short(pair)}; correct it, or leave the column out "
                f"({ignore.advice('history')})."
            )
        asked, reply = (_text(text, row, f"round {number} of 'history'") for text in pair)
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    return turns


def with_system(turns: list[Turn], system: str | None) -> list[Turn]:
    """`turns` behind the system turn `system`, if they are a conversation without one."""
    if system is None or any(turn["role"] in ("system", "text") for turn in turns):
        return turns
    return [{"role": "system", "content": system}, *turns]


def margin_of(row: Row) -> float:
    """What the chosen side has to lead by, in units of score: 0 where none is given."""
    margin = number_of(row, "margin")
    if margin is not None and not 0 <= margin <= LARGEST_MARGIN:
        raise UserError(
            f"{row.where}: column 'margin' must be a number, 0 or above and at most "
            f"{LARGEST_MARGIN:g}, but holds {short(row.columns['margin'])}; correct the row (where "
            "the rejected side is the better one, exchange the two)."
        )
    return margin or 0.0


def number_of(row: Row, column: str) -> float | None:
    """None where nothing is given, NaN for what is no number. CSV holds numbers as text."""
    value = row.columns.get(column)
    if value is None or value == "":
        return None
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def role_of(turn: Any) -> str | None:
    """Of a turn in either form; None for what is none."""
    turn = turn if isinstance(turn, dict) else {}
    return SPEAKERS.get(str(turn.get("role") or turn.get("from")).lower())


def _turn(turn: Any, row: Row, what: str, ignore: Ignored) -> Turn:
    told = turn if isinstance(turn, dict) else {}
    names = next((n for n in FORMS if told.get(n[0]) is not None and n[1] in told), None)
    if names is None:
        raise UserError(
            f"{row.where}: {what} must be an object with role and content (or from and value), but "
            f"is {short(turn)}."
        )
    if (role := role_of(turn)) is None:
        raise UserError(
            f"{row.where}: {what} has the role {short(turn[names[0]])}; known are "
            f"{', '.join(SPEAKERS)}."
        )
    free, read = ignore.free(role), {*names}
    for key in [key for key in MEANING if key in turn and key not in ignore.names]:
        if key in SWITCHES and turn[key] in (0, False) and free:
            read.add(key)
        elif said(turn[key]):
            raise UserError(
                f"{row.where}: {what} has {key} ({MEANING[key]}: {short(turn[key])}), which is not "
                "read; write it into the content, leave the row out, or name it in the source's "
                f"`ignore` to train as if it were not there ({ignore.advice(key)})."
            )
    ignore.unread.update(key for key in turn.keys() - read if said(turn[key]))
    return {
        "role": role,
        "content": _content(turn[names[1]], row, f"the content of {what}"),
        **({"untrained": "yes"} if ignore.obeyed and len(read) > len(names) else {}),
    }


def _content(value: Any, row: Row, what: str) -> str:
    """The text of a turn, which may be in parts as for models that read images:
    [{"type": "text", "text": ...}, ...], joined with nothing between."""
    if not isinstance(value, list):
        return _text(value, row, what)
    texts = []
    for number, part in enumerate(value, 1):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or "text" not in part:
            raise UserError(
                f"{row.where}: part {number} of {what} must be an object with type text and its "
                f"text, but is {short(part)}; other parts are not read: leave them or the row out."
            )
        texts.append(_text(part["text"], row, f"part {number} of {what}"))
    return "".join(texts)


def _text(value: Any, row: Row, what: str) -> str:
    """`value` as text: null is empty; anything but text is an error."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{row.where}: {what} must be text, but holds {short(value)}; correct the row or "
            "choose another format (docs/data.md)."
        )
    if len(value) > LONGEST:
        raise UserError(
            f"{row.where}: {what} has {len(value)} characters, more than {LONGEST}; split the text "
            "into rows, or correct the quotes where a file was read as one row."
        )
    return checked(value, f"{row.where}: {what}")


def short(value: Any) -> str:
    """A value with its type, cut to one line."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
