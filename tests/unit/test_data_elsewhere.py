"""Rows of public files under names and in shapes that are not ours: read for what they are, or
refused with what to do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import ROLES, config, write_jsonl
from _tokenizers import chat_like
from test_data_formats import REPLY, USER, read, said

from cores.data import preference_data, sft_data
from cores.errors import UserError

PAIR = {"chosen": "Yes, it is.", "rejected": "Yes, no."}
DONE = {"prompt": "Q", "completion": "A"}


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("weight", 0, "a weight"),
        ("weight", "0.5", "a weight"),
        ("train", False, "whether it is trained on"),
        ("reasoning_content", "because", "reasoning"),
        ("chat_template_kwargs", {"enable_thinking": False}, "what the chat template is told"),
        ("winner", "model_b", "which reply is the better one"),
    ],
)
def test_columns_of_a_row_that_would_be_lost(name: str, value: Any, what: str) -> None:
    """As the keys of a turn that say the same."""
    for row in (DONE, {"messages": [USER, REPLY]}):
        with pytest.raises(UserError, match=rf"column '{name}' \({what}: .*`ignore`"):
            read({**row, name: value}, "sft")
        assert read({**row, name: value}, "sft", ignore=[name]).dropped is None


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight", 1), ("weight", "1.0"), ("weight", None), ("train", True), ("train", "True")],
)
def test_columns_that_say_no_more_than_the_row(name: str, value: Any) -> None:
    assert read({**DONE, name: value}, "sft").dropped is None


@pytest.mark.parametrize("value", ["positive", {"ability": ["math"]}, 3])
def test_a_label_of_another_kind_is_told_as_such(value: Any) -> None:
    """Topics and classes: no preset reads them, so none is advised."""
    with pytest.raises(UserError, match=r"column 'label' \(a label: "):
        read({**DONE, "label": value}, "sft")
    for wanted in (True, 0, "false"):
        with pytest.raises(UserError, match=r"column 'label' \(.* format kto reads it: "):
            read({**DONE, "label": wanted}, "sft")


@pytest.mark.parametrize("name", ["question", "query", "input"])
@pytest.mark.parametrize("kind", ["chat", "none"])
def test_a_prompt_of_another_name(name: str, kind: str) -> None:
    """It would be lost beside two replies, and what they have in common be taken for it."""
    with pytest.raises(UserError, match=rf"column '{name}' \(.*columns {{prompt: {name}}} reads"):
        read({name: "Is it?", **PAIR}, "reward", kind=kind)
    asked = read({name: "again", "prompt": "Is it?", **PAIR}, "reward", kind=kind)
    assert asked.conversations[0][0] == said("user", "Is it?"), "named on the screen, as any other"
    with pytest.raises(UserError, match=r"no column for the prompt .*Name another"):
        read(PAIR, "reward")


def test_an_empty_instruction_with_an_input(tmp_path: Path) -> None:
    """The input is the question then, and no input to one."""
    row = {"instruction": "", "input": "Q", "output": "A"}
    assert read(row, "sft").conversations == ([USER, REPLY],)
    assert read({**row, "input": " "}, "sft").dropped == "empty prompt"
    assert read({**row, "instruction": "Q", "input": " "}, "sft").conversations == ([USER, REPLY],)
    framed = replace(ROLES, system_prompt="plain", system_prompt_input="paired")
    for kto in ({}, {"label": True}):
        path = write_jsonl(tmp_path / "a.jsonl", [{**row, **kto}])
        source = {"format": "kto"} if kto else {}
        (made,) = sft_data(config(path, framed, source=source), chat_like()).train
        shown = chat_like().decode(made["input_ids"])
        assert shown == "plain\n\nUser: Q\nAssistant:A\n<|im_end|>"


def test_a_history_that_is_empty_in_csv(tmp_path: Path) -> None:
    """And a header with a space behind its comma."""
    path = tmp_path / "a.csv"
    path.write_text("instruction, output, history\nQ,A,[]\n", encoding="utf-8")
    (row,) = sft_data(config(str(path), ROLES), chat_like()).train
    assert chat_like().decode(row["input_ids"]) == "User: Q\nAssistant:A\n<|im_end|>"


def test_messages_as_the_text_of_a_list() -> None:
    text = '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]'
    with pytest.raises(UserError, match=r"'messages' holds the text of a list of turns .*convert"):
        read({"messages": text}, "sft")
    with pytest.raises(UserError, match=r"'messages' must be a list of {role, content}"):
        read({"messages": "Q"}, "sft")


def test_a_turn_in_two_forms() -> None:
    """One is read, the other named; where one is empty, as in Parquet's unions, it is none."""
    both = {**USER, "from": "gpt", "value": "other"}
    row = {"messages": [both, REPLY]}
    assert read(row, "sft").conversations == ([USER, REPLY],)
    union = {"role": None, "content": None, "from": "human", "value": "Q"}
    assert read({"messages": [union, REPLY]}, "sft").conversations == ([USER, REPLY],)


def test_the_other_form_is_named(tmp_path: Path) -> None:
    both = {**USER, "from": "gpt", "value": "other"}
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": [both, REPLY]}])
    (line,) = sft_data(config(path, ROLES), chat_like()).report.lines()
    assert line.endswith("; columns not read: from (of turns), value (of turns)")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (DONE | {"label": True}, "Perhaps these are rows for data.preference.format kto."),
        ({"conversations": [USER, REPLY], "kto_tag": True}, "data.preference.format kto."),
        (DONE | {"score": 3}, "a score each are for reward.kind pointwise or binned."),
    ],
)
def test_rows_of_stage_2_in_another_form(row: dict[str, Any], told: str, tmp_path: Path) -> None:
    """The error says which option reads them."""
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(UserError) as caught:
        preference_data(config(path, ROLES), chat_like())
    assert str(caught.value).endswith(told)


@pytest.mark.parametrize("turns", [[], [USER], [REPLY, USER]])
def test_a_judged_conversation_without_a_reply(turns: Any, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": turns, "label": True}])
    with pytest.raises(UserError, match=r"a.jsonl:1: 'messages' does not end with a reply, which"):
        sft_data(config(path, ROLES, source={"format": "kto"}), chat_like())


@pytest.mark.parametrize("path", ["https://huggingface.co/datasets/a/b", "hf://datasets/a/b.csv"])
def test_an_address_is_no_path(path: str) -> None:
    with pytest.raises(UserError, match=rf"^data.sft.path '{path}' is an address, from which"):
        sft_data(config(path, ROLES), chat_like())


def test_lines_that_end_with_cr_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\r{"text": "b"}\r')
    with pytest.raises(UserError, match="lines end with LF or CR LF, not with CR alone"):
        sft_data(config(str(path), ROLES), chat_like())
