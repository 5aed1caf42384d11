"""Every format, what decides between them, every malformed value and every reason to drop."""

from collections.abc import Sequence
from typing import Any

import pytest

from cores.config.data import Format, SourceSection
from cores.config.schema import Config
from cores.config.template import TemplateSection
from cores.data.formats import Example, Reader, Stage, choose_format
from cores.data.sources import Row
from cores.errors import UserError

USER = {"role": "user", "content": "Q"}
REPLY = {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def read(
    row: dict[str, Any], stage: Stage, wanted: Format | None = None, kind: str = "chat",
    ignore: Sequence[str] = (),
) -> Example:  # fmt: skip
    template = TemplateSection(kind=kind)  # type: ignore[arg-type]
    source = SourceSection(format=wanted, ignore=list(ignore))
    reader = Reader(Config(template=template), source, list(row), "rows.jsonl", stage, "data.x")
    return reader.read(Row("rows.jsonl:1", row))


def chosen_format(columns: str, stage: Stage, wanted: Format | None = None) -> str:
    return choose_format(columns.split(), "rows.jsonl", stage, "data.x", wanted)


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
        ("label", "ppo", None, ["columns label", "prompt or instruction or messages"]),
        ("text;label", "sft", None, ["columns text;label", "separated by semicolons"]),
        ("text", "sft", "messages", ["columns text", "messages: messages"]),
        ("text", "reward", "text", ["data.x.format is 'text'", "preference"]),
        ("text", "reward", None, ["preference", "chosen + rejected"]),
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
        ("sft", {"prompt": 5, "completion": "A"}, "'prompt' must be text"),
        ("sft", {"prompt": ["Q"], "completion": "A"}, "turn 1 of 'prompt' must be an object"),
        ("ppo", {"conversations": [{"from": "narrator", "value": "x"}]}, "role str 'narrator'; kn"),
        ("ppo", {"conversations": [{"from": 3, "value": "x"}]}, "role int 3; known are system"),
        ("ppo", {"conversations": [{"from": "gpt", "content": "x"}]}, "from and value"),
        ("ppo", {"conversations": "你好，请问？"}, "holds str '你好，请问？'"),
        ("reward", {"prompt": "Q", "chosen": USER, "rejected": "B"}, "end with an assistant"),
        ("reward", {"chosen": [USER, REPLY], "rejected": "B"}, "both be whole conversations"),
        ("reward", {"chosen": "A", "rejected": "B"}, "transcripts: true"),
        ("sft", {"instruction": "Q", "input": 3, "output": "A"}, "'input' must be text"),
        ("sft", {"messages": "hi"}, "'messages' must be a list"),
        ("sft", {"messages": [USER, "hi"]}, "turn 2 of 'messages' must be an object"),
        ("sft", {"messages": [{"role": "user"}]}, "turn 1 of 'messages' must be an object"),
        (
            "sft",
            {"messages": [said("Narrator", "x")]},
            "role str 'Narrator'; known are system, dev",
        ),
        (
            "sft",
            {"messages": [said("user", [{"type": "text"}])]},
            "part 1 of the content of turn 1",
        ),
        ("sft", {"messages": [said("user", ["x"])]}, "type text and its text, but is str 'x'"),
        (
            "sft",
            {"messages": [said("user", [{"type": "text", "text": "x"}, {"type": "image"}])]},
            "part 2 of the content of turn 1 of 'messages' must be an object with type text",
        ),
        ("sft", {"messages": [said("user", [{"type": "text", "text": 3}])]}, "must be text"),
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
    columns = ["prompt", "completion"]
    reader = Reader(Config(), SourceSection(), columns, "f", "sft", "data.sft")
    assert reader.format == "completion"
    with pytest.raises(UserError, match="f:2: column 'completion' is missing"):
        reader.read(Row("f:2", {"prompt": "Q"}))


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


GREETED = [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}]


@pytest.mark.parametrize("reply", [{"from": "gpt", "value": "A"}, REPLY, [REPLY], "A"])
def test_conversations_of_the_sharegpt_form(reply: Any) -> None:
    """Each name of a speaker, and chosen and rejected as one turn, a list or a text."""
    rows = [*GREETED, {"from": "chatgpt", "value": "A"}, {"from": "user", "value": "Q2"}]
    for name in ("gpt", "assistant", "bot"):
        shown = read({"conversations": [*rows, {"from": name, "value": "A2"}]}, "sft")
        assert [turn["role"] for turn in shown.conversations[0]] == [
            "system", "user", "assistant", "user", "assistant",
        ]  # fmt: skip
        assert shown.conversations[0][-1]["content"] == "A2"
        assert shown.key == "Q"
    asked = read({"conversations": [*rows, {"from": "gpt", "value": "A2"}]}, "ppo")
    assert asked.conversations == ([SYSTEM, USER, REPLY, said("user", "Q2")],)
    pair = {"conversations": GREETED, "chosen": reply, "rejected": {"from": "gpt", "value": "B"}}
    judged = read(pair, "reward")
    assert judged.conversations == ([SYSTEM, USER, REPLY], [SYSTEM, USER, said("assistant", "B")])
    assert read(pair, "sft").conversations == ([SYSTEM, USER, REPLY],)
    assert read(pair, "ppo").conversations == ([SYSTEM, USER],)


def test_prompts_and_pairs_as_lists_of_turns() -> None:
    """A prompt that is a list; and ultrafeedback's pairs, whose sides hold the prompt."""
    for prompt in ([USER], [SYSTEM, USER]):
        row = {"prompt": prompt, "completion": [REPLY]}
        assert read(row, "sft").conversations == ([*prompt, REPLY],)
        assert read(row, "ppo").conversations == (prompt,)
    other = said("assistant", "B")
    row = {"chosen": [SYSTEM, USER, REPLY], "rejected": [SYSTEM, USER, other], "score": 3}
    assert read(row, "reward").conversations == ([SYSTEM, USER, REPLY], [SYSTEM, USER, other])
    assert read(row, "sft").conversations == ([SYSTEM, USER, REPLY],)
    assert read(row, "ppo").conversations == ([SYSTEM, USER],)
    assert {read(row, stage).key for stage in ("sft", "reward", "ppo")} == {"Q"}
    unlike = "chosen and rejected do not differ in one last reply"
    for chosen, rejected in [
        ([USER, REPLY, USER, REPLY], [USER, other, USER, REPLY]),
        ([USER, REPLY], [USER, other, USER, other]),
        ([USER, REPLY], [USER]),
        ([], [USER, REPLY]),
    ]:
        for stage in ("sft", "reward", "ppo"):
            assert read({"chosen": chosen, "rejected": rejected}, stage).dropped == unlike


@pytest.mark.parametrize(
    ("value", "margin"), [(None, 0.0), ("", 0.0), (0, 0.0), (2, 2.0), (0.5, 0.5), ("0.25", 0.25)]
)
def test_margins(value: Any, margin: float) -> None:
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": value}
    assert read(row, "reward").margin == margin
    assert read({k: v for k, v in row.items() if k != "margin"}, "reward").margin == 0.0


@pytest.mark.parametrize("value", [-1, "high", float("nan"), float("inf"), True, [1]])
def test_margins_that_are_none(value: Any) -> None:
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": value}
    with pytest.raises(UserError, match=r"rows.jsonl:1: column 'margin' must be a number"):
        read(row, "reward")
    assert read(row, "ppo").margin == 0.0, "no business of other stages"
