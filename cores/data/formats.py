"""Formats: a row's columns become the conversation that a stage trains on or asks about."""

from dataclasses import dataclass
from typing import Any, Literal

from cores.config.schema import Format
from cores.data.sources import Row, Source
from cores.errors import UserError

Stage = Literal["sft", "reward", "ppo"]
Turn = dict[str, str]
"""`role` and `content`: system, user or assistant, or `text` for a text without turns."""
ROLES = ("system", "user", "assistant")

ORDER: dict[Stage, tuple[Format, ...]] = {
    "sft": ("messages", "instruction", "completion", "text", "preference"),
    "reward": ("preference",),
    "ppo": ("prompt",),
}
"""Which format a stage takes where the columns fit several."""

PROMPTS = ("prompt", "instruction", "messages")
"""Columns that hold a prompt, in order of preference."""

NEEDS: dict[Format, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "instruction": (("instruction", "output"),),
    "completion": (("prompt", "completion"),),
    "text": (("text",),),
    "preference": tuple((prompt, "chosen", "rejected") for prompt in PROMPTS),
    "prompt": tuple((prompt,) for prompt in PROMPTS),
}
"""Columns of which one group must be there."""

PROMPT_OF: dict[Format, tuple[tuple[str, ...], ...]] = {
    "messages": (("messages",),),
    "instruction": (("instruction",),),
    "completion": (("prompt",),),
    "preference": NEEDS["prompt"],
    "prompt": NEEDS["prompt"],
}
"""The column of which a format's prompt is read: stage 3 takes the prompt of any format."""


@dataclass(frozen=True)
class Example:
    """One row, read."""

    where: str
    """For error messages."""
    key: str
    """First user turn (or the text): decides the side of the train/test split."""
    conversations: tuple[list[Turn], ...]
    """sft: one, with its reply. reward: chosen and rejected. ppo: one, ending before the reply."""
    dropped: str | None = None
    """Why the row cannot be used; None: it can."""
    trimmed: bool = False
    """Turns after the last reply were cut off."""


def choose_format(source: Source, stage: Stage, key: str, wanted: Format | None) -> Format:
    """The format that the columns fit, or `wanted`; UserError names the columns if none fits."""
    columns = source.columns()
    candidates = ORDER[stage] if wanted is None else (wanted,)
    for candidate in candidates:
        groups = _needs(stage, candidate)
        if not groups:
            takes = sorted({*ORDER[stage], *(PROMPT_OF if stage == "ppo" else ())})
            raise UserError(
                f"{key}.format is {candidate!r}, which this stage cannot use; it takes one of: "
                f"{', '.join(takes)}."
            )
        # messages beside a pair are its prompt, so they demonstrate nothing by themselves
        paired = candidate == "messages" and {"chosen", "rejected"} <= set(columns)
        if wanted is None and stage == "sft" and paired:
            continue
        if any(set(group) <= set(columns) for group in groups):
            return candidate
    fits = "; ".join(
        f"{candidate}: " + " or ".join(" + ".join(group) for group in _needs(stage, candidate))
        for candidate in candidates
    )
    raise UserError(
        f"{key}.path {source.path!r} has the columns {', '.join(columns) or '(none)'}, which do "
        f"not fit; needed are {fits}. Rename the columns (docs/data.md shows each format)."
    )


def _needs(stage: Stage, name: Format) -> tuple[tuple[str, ...], ...]:
    if stage == "ppo":
        return PROMPT_OF.get(name, ())
    return NEEDS[name] if name in ORDER[stage] else ()


def read_example(
    row: Row, name: Format, stage: Stage, columns: set[str], separator: str
) -> Example:
    """`row` under the format `name`; `columns` are the source's.

    Empty prompts and replies are dropped with their reason; a value of the wrong type raises
    UserError.
    """
    if name == "text":
        text = _text(row, "text")
        dropped = None if text.strip() else "empty text"
        return Example(row.where, text, ([{"role": "text", "content": text}],), dropped)
    if name == "messages" and stage == "sft":
        return _demonstration(row)
    column = next(group[0] for group in PROMPT_OF[name] if group[0] in columns)
    prompt = _prompt(row, column, separator)
    replies = _replies(row, name, stage)
    conversations = tuple([*prompt, {"role": "assistant", "content": reply}] for reply in replies)
    users = [turn["content"] for turn in prompt if turn["role"] == "user"]
    dropped = _problem(prompt)
    if dropped is None and any(not reply.strip() for reply in replies):
        dropped = "empty reply"
    return Example(row.where, users[0] if users else "", conversations or (prompt,), dropped)


def _replies(row: Row, name: Format, stage: Stage) -> list[str]:
    """None for stage 3; chosen and rejected for stage 2; the reply to learn for stage 1."""
    if stage == "ppo":
        return []
    if name == "preference":
        sides = ("chosen",) if stage == "sft" else ("chosen", "rejected")
        return [_reply(row, side) for side in sides]
    return [_text(row, "output" if name == "instruction" else "completion")]


def _demonstration(row: Row) -> Example:
    """A conversation that is all shown, up to the last reply."""
    turns = _messages(row, "messages")
    replies = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    users = [turn["content"] for turn in turns if turn["role"] == "user"]
    key = users[0] if users else ""
    if not replies:
        return Example(row.where, key, (turns,), "no assistant turn")
    kept = turns[: replies[-1] + 1]
    dropped = _problem(kept[:-1])
    if dropped is None and not kept[-1]["content"].strip():
        dropped = "empty reply"
    return Example(row.where, key, (kept,), dropped, trimmed=len(kept) < len(turns))


def _problem(prompt: list[Turn]) -> str | None:
    """Why these turns are no prompt."""
    if not any(turn["role"] == "user" and turn["content"].strip() for turn in prompt):
        return "empty prompt"
    if any(turn["role"] != "system" and not turn["content"].strip() for turn in prompt):
        return "empty turn"
    return None


def _prompt(row: Row, column: str, separator: str) -> list[Turn]:
    """The turns before the reply."""
    if column == "messages":
        turns = _messages(row, "messages")
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        return turns
    text = _text(row, column)
    if column == "instruction" and row.columns.get("input"):
        text = text + separator + _text(row, "input")
    return [{"role": "user", "content": text}]


def _reply(row: Row, column: str) -> str:
    """A reply given as text, or as messages that end with it."""
    if not isinstance(_value(row, column), list):
        return _text(row, column)
    turns = _messages(row, column)
    if not turns or turns[-1]["role"] != "assistant":
        raise UserError(f"{row.where}: the messages of {column!r} must end with an assistant turn.")
    return turns[-1]["content"]


def _value(row: Row, column: str) -> Any:
    if column not in row.columns:
        found = ", ".join(row.columns) or "none"
        raise UserError(
            f"{row.where}: column {column!r} is missing (columns of this row: {found})."
        )
    return row.columns[column]


def _text(row: Row, column: str) -> str:
    return _checked(_value(row, column), row, f"column {column!r}")


def _checked(value: Any, row: Row, what: str) -> str:
    """`value` as text: null is empty; anything but text is an error."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{row.where}: {what} must be text, but holds {_short(value)}; correct the row or "
            "choose another format (docs/data.md)."
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{row.where}: {what} holds half a surrogate pair (\\u{ord(value[error.start]):04x}), "
            "which is no character; correct the row."
        ) from error
    return value


def _messages(row: Row, column: str) -> list[Turn]:
    """Turns in OpenAI form; keys other than role and content are ignored."""
    value = _value(row, column)
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(
            f"{row.where}: column {column!r} must be a list of {{role, content}} objects, but "
            f"holds {_short(value)}."
        )
    turns = []
    for number, turn in enumerate(value, 1):
        what = f"turn {number} of {column!r}"
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            raise UserError(
                f"{row.where}: {what} must be an object with role and content, but is "
                f"{_short(turn)}."
            )
        if turn["role"] not in ROLES:
            raise UserError(
                f"{row.where}: {what} has the role {_short(turn['role'])}; known are "
                f"{', '.join(ROLES)}."
            )
        content = _checked(turn["content"], row, f"the content of {what}")
        turns.append({"role": turn["role"], "content": content})
    return turns


def _short(value: Any) -> str:
    """A value with its type, cut to one line."""
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
