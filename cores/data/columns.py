"""Columns under the names that formats know, and rows of other shapes as turns.

`columns` of a source says what its file calls them; three shapes are known without it: lists of
questions and of their replies (Chinese-Vicuna's chats), a list of what is said in turn (LIMA's),
and a dict of turns (MOSS's). What columns tell of the rows that hold them is advice for errors.
"""

import difflib
import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import cycle
from typing import Any

from cores.config.data import Format
from cores.data.files import separator_hint
from cores.data.sources import Row
from cores.data.values import SWITCHES, Ignored, Turn, short, text_of
from cores.errors import UserError

NAMES = (
    "prompt", "reply", "history", "system", "input", "messages", "text", "chosen", "rejected",
    "score", "margin", "label", "image",
)  # fmt: skip
"""What `columns` may name; prompt and reply have two standard names, the others are their own."""

PARALLEL = (("input", "output"), ("instruction", "output"), ("prompt", "completion"))
"""Columns that are questions and their replies where both are lists of texts."""

LISTS = {"messages", "conversations"}
"""Columns of turns."""

MOSS = {
    "Human": "user",
    "Inner Thoughts": "thoughts",
    "Commands": "commands",
    "Tool Responses": "tool",
    "MOSS": "assistant",
}
"""Parts of a turn in MOSS's rows, in their order, and their roles
(https://github.com/OpenLMLab/MOSS)."""
ROUND = re.compile(r"turn_([1-9][0-9]*)")


def columns_of(rows: Iterable[Row]) -> list[str]:
    """Names of the columns of all rows, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row.columns))


def renaming(wanted: dict[str, str], found: list[str], path: str, key: str) -> dict[str, str]:
    """The file's name to the standard one, for each column in `wanted` (`columns` of the source at
    `key`); `found` are the file's.

    A prompt is called `instruction` where an `input` goes with it, and its reply is that of the
    same format. UserError for a name that is unknown, not there, or used twice.
    """
    names: dict[str, str] = {}
    if "input" in wanted and "prompt" in found and "instruction" not in found:
        wanted = {"prompt": "prompt"} | wanted
    own = [name for name in found if name not in wanted.values()]
    with_input = "input" in wanted or "input" in own
    instructs = with_input if "prompt" in wanted else "instruction" in own
    standard = (
        {"prompt": "instruction", "reply": "output"} if instructs else {"reply": "completion"}
    )
    for name, column in wanted.items():
        place = f"{key}.columns.{name}"
        target = standard.get(name, name)
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UserError(f"{place}: is no known name; known are {', '.join(NAMES)}.{hint}")
        if column not in found:
            raise UserError(
                f"{place}: {path!r} has no column {column!r}; it has {', '.join(found)}. Name "
                f"one of these, or take {name} out of `columns`."
            )
        if column in names:
            raise UserError(f"{place}: {column!r} stands for another name as well; remove one.")
        if target in own:
            raise UserError(
                f"{place}: {path!r} has a column {target!r} beside {column!r}, and both would be "
                f"{target!r}; remove {name} from `columns`, or that column from the file."
            )
        names[column] = target
    return names


def require_read(names: dict[str, str], unread: Collection[str], form: str, key: str) -> None:
    """UserError for a column of `renaming` that the stage does not read under this format."""
    for column, target in names.items():
        if target in unread:
            raise UserError(
                f"{key}.columns: names the column {column!r} as {target!r}, which this stage does "
                f"not read in rows of format {form}; remove it there."
            )


def standard(rows: Iterable[Row], names: dict[str, str]) -> list[Row]:
    """The rows of a file with their columns renamed, their shape as turns in `messages` if it is
    one of those above."""
    renamed = [
        replace(row, columns={names.get(name, name): value for name, value in row.columns.items()})
        for row in rows
    ]
    lists = {pair: None for row in renamed if (pair := _parallel(row))}
    return [_shaped(row, next(iter(lists), None)) for row in renamed]


def _shaped(row: Row, pair: tuple[str, str] | None) -> Row:
    """`pair`: the columns that hold questions and replies in this file."""
    columns = row.columns
    if (spoken := columns.get("conversations")) and _texts(spoken):  # LIMA's rows
        roles = cycle(("user", "assistant"))
        turns = [{"role": role, "content": text} for role, text in zip(roles, spoken, strict=False)]
        return replace(row, columns={**columns, "conversations": turns})
    if _told(row):
        return row
    turns, read = (_asked(row, pair), pair) if pair else _rounds(row) or ([], ())
    if not read:
        return row
    rest = {name: value for name, value in columns.items() if name not in read}
    return replace(row, columns={"messages": turns, **rest})


def _told(row: Row) -> bool:
    """Whether other columns tell what was asked."""
    return bool(LISTS & row.columns.keys()) or {"input", "instruction"} <= row.columns.keys()


def _parallel(row: Row) -> tuple[str, str] | None:
    """The two columns of a row that are lists of texts, questions and replies."""
    if _told(row):
        return None
    lists = {name for name, value in row.columns.items() if _texts(value)}
    return next((pair for pair in PARALLEL if lists.issuperset(pair)), None)


def _asked(row: Row, pair: tuple[str, str]) -> list[Turn]:
    """Turns of the two; a text alone is a list of one."""
    values: list[Any] = [row.columns.get(name) for name in pair]
    asked, replies = ([value] if isinstance(value, str) else value for value in values)
    if not (_texts(asked) and _texts(replies)):
        raise UserError(
            f"{row.where}: {pair[0]!r} and {pair[1]!r} are lists of texts in this file, but hold "
            f"{short(values[0])} and {short(values[1])} here; correct the row."
        )
    if len(asked) != len(replies):
        raise UserError(
            f"{row.where}: {pair[0]!r} holds {len(asked)} texts and {pair[1]!r} {len(replies)}, so "
            "that it is unclear which is the reply to which; correct the row."
        )
    both = zip(asked, replies, strict=True)
    roles = ("user", "assistant")
    return [{"role": r, "content": t} for texts in both for r, t in zip(roles, texts, strict=True)]


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _rounds(row: Row) -> tuple[list[Turn], tuple[str, ...]] | None:
    """Turns of MOSS's rows, contents verbatim, and the columns that they are from; parts other than
    question and reply are left out where they are empty."""
    chat = row.columns.get("chat")
    if not isinstance(chat, dict) or not chat or not all(map(ROUND.fullmatch, chat)):
        return None
    rounds = {name: parts for name, parts in chat.items() if parts is not None}  # Parquet: null
    names = [f"turn_{number}" for number in range(1, len(rounds) + 1)]
    told = row.columns.get("num_turns", len(names))
    if set(names) != set(rounds) or str(told) != str(len(names)):
        raise UserError(
            f"{row.where}: 'chat' holds {', '.join(rounds)} where num_turns is {short(told)}; "
            "correct the row."
        )
    system = {"role": "system", "content": ""}
    if row.columns.get("meta_instruction"):
        system["content"] = text_of(row, "meta_instruction")
    turns = [system] if system["content"] else []
    for name in names:
        turns += _parts(rounds[name], f"{row.where}: {name} of 'chat'")
    return turns, ("chat", "num_turns", "meta_instruction")


def _parts(parts: Any, where: str) -> list[Turn]:
    """The turns of one round."""
    if not isinstance(parts, dict) or (unknown := sorted(parts.keys() - MOSS.keys())):
        what = f"has {', '.join(unknown)}" if isinstance(parts, dict) else f"is {short(parts)}"
        raise UserError(f"{where} {what}; known are {', '.join(MOSS)}. Correct the row.")
    turns = []
    for name, role in MOSS.items():
        content = parts.get(name) or ""
        if not isinstance(content, str):
            raise UserError(f"{where}: {name} must be text, but holds {short(content)}.")
        if content or role in ("user", "assistant"):
            turns.append({"role": role, "content": content})
    return turns


SIGNS: dict[tuple[str, ...], Format] = {
    ("prompt", "response", "helpfulness"): "helpsteer2",
    ("prompt", "response_1", "response_2", "preference_strength"): "helpsteer2",
    ("instruction", "completions"): "ultrafeedback",
    ("prompt", "answers"): "nectar",
    ("history", "human_ref_A", "human_ref_B", "labels"): "shp",
    ("prompt", "response_0", "response_1", "better_response_id"): "pku_saferlhf",
    ("question", "answer_0", "answer_1", "score_0", "score_1"): "webgpt",
    ("info", "summaries", "choice"): "summarize",
    ("message_tree_id", "prompt"): "oasst",
    ("input", "preferred_output", "non_preferred_output"): "openai_preference",
    ("data", "annotations"): "label_studio",
    ("prompt", "completion", "label"): "kto",
    ("messages", "label"): "kto",
    ("kto_tag",): "kto",
}
"""By which columns the rows of a preset are known (cores/data/presets.py)."""

WANTED = ("true", "false", "1", "0", "1.0", "0.0")
"""What a label says of a reply, as text in lower case."""
BESIDE = ("system", "history")
"""Columns that say what stood before the prompt, beside one that holds the last turn."""
LABELS = ("label", "kto_tag")
QUESTIONS = ("question", "query", "input")
"""Columns that hold the prompt in files that have no name of ours for it."""
REFUSED = {
    **dict.fromkeys(LABELS, "whether the reply is wanted; format kto reads it"),
    **dict.fromkeys(BESIDE, "what stood before the prompt"),
    **dict.fromkeys(QUESTIONS, "what was asked; columns {prompt: NAME} reads it"),
    "system_prompt": "what stood before the prompt; columns {system: system_prompt} reads it",
    "tools": "the tools that could be called",
    "images": "images",
    "image": "an image",
    "parent_id": "the message that it answers; format oasst reads it",
    "reasoning_content": "reasoning",
    "chat_template_kwargs": "what the chat template is told",
    "winner": "which reply is the better one",
    "weight": "a weight",
    "train": "whether it is trained on",
}
"""Columns that change what a row teaches where nothing reads them. Stage 3 hands them to reward
functions; a text's label is what it is about."""


def refuse(row: Row, lost: Iterable[str], form: Format, ignore: Ignored) -> None:
    """UserError for a column of `lost`, which nothing reads in rows of format `form`, that means
    something."""
    for name in lost:
        value = row.columns.get(name)
        text = str(value).lower()
        usual = name in SWITCHES and text in ("1", "1.0", "true")
        if name not in REFUSED or usual or text in ("none", "", "[]", "{}"):
            continue
        what = REFUSED[name].replace("NAME", name)
        if name in LABELS and (form == "preference" or text not in WANTED):
            what = "a label"  # no preset reads it
        raise UserError(
            f"{row.where}: column {name!r} ({what}: {short(value)}) is not read, and the row would "
            "be learned as if it were not there; make of it what this stage reads (docs/data.md), "
            f"or name the column in the source's `ignore` ({ignore.advice(name)})."
        )


def column_hints(columns: list[str], key: str) -> str:
    """Sentences on what may be wrong: the preset that reads such rows was not named, or columns are
    separated by another sign; empty if nothing is known."""
    found = next((name for signs, name in SIGNS.items() if set(signs) <= set(columns)), None)
    hint = "" if found is None else f" Perhaps these are rows for {key}.format {found}."
    if not hint and key.startswith("data.preference") and "score" in columns:
        hint = " Replies with a score each are for reward.kind pointwise or binned."
    return hint + separator_hint(columns)
