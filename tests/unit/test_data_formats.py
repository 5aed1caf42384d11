"""Every format, what decides between them, every malformed value and every reason to drop."""

from typing import Any

import pytest

from cores.config.schema import Format
from cores.data.formats import Example, Stage, choose_format, read_example
from cores.data.sources import Row, Source
from cores.errors import UserError

USER = {"role": "user", "content": "Q"}
REPLY = {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def read(row: dict[str, Any], stage: Stage, wanted: Format | None = None) -> Example:
    source = Source("rows.jsonl", [Row("rows.jsonl:1", row)], {})
    name = choose_format(source, stage, "data.x", wanted)
    return read_example(source.rows[0], name, stage, set(source.columns()), "\n")


def chosen_format(columns: str, stage: Stage, wanted: Format | None = None) -> str:
    row = Row("rows.jsonl:1", dict.fromkeys(columns.split(), ""))
    return choose_format(Source("rows.jsonl", [row], {}), stage, "data.x", wanted)


@pytest.mark.parametrize(
    ("stage", "row", "conversations"),
    [
        ("sft", {"instruction": "Q", "input": "I", "output": "A"}, [[said("user", "Q\nI"), REPLY]]),
        ("sft", {"instruction": "Q", "input": "", "output": "A"}, [[USER, REPLY]]),
        ("sft", {"instruction": "Q", "input": None, "output": "A"}, [[USER, REPLY]]),
        ("sft", {"instruction": "Q", "output": "A"}, [[USER, REPLY]]),
        ("sft", {"prompt": "Q", "completion": "A", "x": 3}, [[USER, REPLY]]),
        ("sft", {"messages": [SYSTEM, USER, REPLY]}, [[SYSTEM, USER, REPLY]]),
        ("sft", {"text": "T", "label": 1}, [[said("text", "T")]]),
        ("sft", {"prompt": "Q", "chosen": "A", "rejected": "B"}, [[USER, REPLY]]),
        ("sft", {"messages": [USER], "chosen": "A", "rejected": "B"}, [[USER, REPLY]]),
        (
            "reward",
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            [[USER, REPLY], [USER, said("assistant", "B")]],
        ),
        (
            "reward",
            {"instruction": "Q", "input": "I", "output": "O", "chosen": "A", "rejected": "B"},
            [[said("user", "Q\nI"), REPLY], [said("user", "Q\nI"), said("assistant", "B")]],
        ),
        (
            "reward",
            {"messages": [SYSTEM, USER], "chosen": [REPLY], "rejected": "B"},
            [[SYSTEM, USER, REPLY], [SYSTEM, USER, said("assistant", "B")]],
        ),
        (
            "reward",
            {"prompt": "Q", "chosen": [USER, REPLY], "rejected": [USER, said("assistant", "B")]},
            [[USER, REPLY], [USER, said("assistant", "B")]],
        ),
        ("ppo", {"prompt": "Q", "act": "x"}, [[USER]]),
        ("ppo", {"instruction": "Q", "input": "I"}, [[said("user", "Q\nI")]]),
        ("ppo", {"messages": [USER, REPLY, USER, REPLY, REPLY]}, [[USER, REPLY, USER]]),
        ("ppo", {"prompt": "Q", "chosen": "A", "rejected": "B"}, [[USER]]),
    ],
)
def test_each_format(
    stage: Stage, row: dict[str, Any], conversations: list[list[dict[str, str]]]
) -> None:
    example = read(row, stage)
    assert example.dropped is None
    assert list(example.conversations) == conversations


@pytest.mark.parametrize(
    ("columns", "stage", "wanted", "format_"),
    [
        ("messages instruction output prompt completion text", "sft", None, "messages"),
        ("instruction output prompt completion text", "sft", None, "instruction"),
        ("prompt completion text instruction", "sft", None, "completion"),
        ("text prompt chosen rejected", "sft", None, "text"),
        ("instruction input output chosen rejected", "sft", None, "instruction"),
        ("instruction input output chosen rejected", "sft", "preference", "preference"),
        ("messages chosen rejected", "sft", None, "preference"),
        ("messages chosen rejected", "sft", "messages", "messages"),
        ("messages text", "sft", "text", "text"),
        ("instruction output chosen rejected", "reward", None, "preference"),
        ("prompt instruction messages", "ppo", None, "prompt"),
        ("prompt instruction messages", "ppo", "messages", "messages"),
        ("instruction output", "ppo", "instruction", "instruction"),
        ("prompt completion", "ppo", "completion", "completion"),
    ],
)
def test_the_stage_decides_and_format_overrides(
    columns: str, stage: Stage, wanted: Format | None, format_: str
) -> None:
    assert chosen_format(columns, stage, wanted) == format_


def test_prompts_of_several_columns() -> None:
    row = {"prompt": "P", "instruction": "I", "messages": [USER]}
    assert read(row, "ppo").key == "P"
    assert read(row, "ppo", "instruction").key == "I"
    assert read(row, "ppo", "messages").key == "Q"


@pytest.mark.parametrize(
    ("columns", "stage", "wanted", "parts"),
    [
        ("question answer", "sft", None, ["question, answer", "instruction + output", "text"]),
        ("prompt chosen", "reward", None, ["prompt, chosen", "prompt + chosen + rejected"]),
        ("text", "ppo", None, ["columns text", "prompt or instruction or messages"]),
        ("text", "sft", "messages", ["columns text", "messages: messages"]),
        ("text", "reward", "text", ["data.x.format is 'text'", "preference"]),
        ("text", "ppo", "text", ["data.x.format is 'text'", "prompt"]),
        ("prompt", "sft", "prompt", ["data.x.format is 'prompt'", "completion"]),
    ],
)
def test_columns_that_do_not_fit(
    columns: str, stage: Stage, wanted: Format | None, parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        chosen_format(columns, stage, wanted)
    for part in ["data.x", *parts]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("stage", "row", "reason"),
    [
        ("reward", {"prompt": "Q", "chosen": 5, "rejected": "B"}, "'chosen' must be text"),
        ("sft", {"prompt": ["Q"], "completion": "A"}, "'prompt' must be text"),
        ("sft", {"instruction": "Q", "input": 3, "output": "A"}, "'input' must be text"),
        ("sft", {"messages": "hi"}, "'messages' must be a list"),
        ("sft", {"messages": [USER, "hi"]}, "turn 2 of 'messages' must be an object"),
        ("sft", {"messages": [{"role": "user"}]}, "turn 1 of 'messages' must be an object"),
        ("sft", {"messages": [said("tool", "x")]}, "role str 'tool'"),
        ("sft", {"messages": [said("user", [{"type": "text"}])]}, "must be text"),
        ("sft", {"text": "bad \ud800 half"}, "surrogate"),
        ("reward", {"prompt": "Q", "chosen": [USER], "rejected": "B"}, "end with an assistant"),
        ("reward", {"prompt": "Q", "chosen": [], "rejected": "B"}, "end with an assistant"),
    ],
)
def test_malformed_values_name_the_row(stage: Stage, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError) as caught:
        read(row, stage)
    assert str(caught.value).startswith("rows.jsonl:1: ")
    assert reason in str(caught.value)


def test_a_row_without_the_others_column() -> None:
    rows = [Row("f:1", {"prompt": "Q", "completion": "A"}), Row("f:2", {"prompt": "Q"})]
    source = Source("f", rows, {})
    assert choose_format(source, "sft", "data.sft", None) == "completion"
    with pytest.raises(UserError, match="f:2: column 'completion' is missing"):
        read_example(rows[1], "completion", "sft", {"prompt", "completion"}, "\n")


@pytest.mark.parametrize(
    ("stage", "row", "reason"),
    [
        ("sft", {"prompt": " \n", "completion": "A"}, "empty prompt"),
        ("sft", {"prompt": None, "completion": "A"}, "empty prompt"),
        ("sft", {"prompt": "Q", "completion": ""}, "empty reply"),
        ("sft", {"text": " "}, "empty text"),
        ("sft", {"messages": []}, "no assistant turn"),
        ("sft", {"messages": None}, "no assistant turn"),
        ("sft", {"messages": [USER]}, "no assistant turn"),
        ("sft", {"messages": [SYSTEM, REPLY]}, "empty prompt"),
        ("sft", {"messages": [USER, said("assistant", "")]}, "empty reply"),
        ("sft", {"messages": [USER, said("assistant", ""), USER, REPLY]}, "empty turn"),
        ("reward", {"prompt": "", "chosen": "A", "rejected": "B"}, "empty prompt"),
        ("reward", {"prompt": "Q", "chosen": "A", "rejected": " "}, "empty reply"),
        ("ppo", {"prompt": ""}, "empty prompt"),
        ("ppo", {"messages": [REPLY]}, "empty prompt"),
    ],
)
def test_dropped_with_a_reason(stage: Stage, row: dict[str, Any], reason: str) -> None:
    assert read(row, stage).dropped == reason


def test_turns_after_the_last_reply_are_cut() -> None:
    example = read({"messages": [USER, REPLY, said("user", "thanks")]}, "sft")
    assert example.conversations == ([USER, REPLY],)
    assert example.trimmed
    assert not read({"messages": [USER, REPLY]}, "sft").trimmed


def test_the_key_is_the_first_user_turn_in_every_stage() -> None:
    row = {"instruction": "Q", "input": "I", "output": "A", "chosen": "A", "rejected": "B"}
    assert {read(row, stage).key for stage in ("sft", "reward", "ppo")} == {"Q\nI"}
    row = {"messages": [SYSTEM, USER, REPLY, said("user", "R")], "chosen": "A", "rejected": "B"}
    assert {read(row, stage).key for stage in ("sft", "reward", "ppo")} == {"Q"}
    assert read({"text": "T"}, "sft").key == "T"
