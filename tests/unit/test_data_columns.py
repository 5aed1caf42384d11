"""Columns of other names, and rows of other shapes: what they become, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, NONE, config, write_jsonl
from _tokenizers import chat_like
from test_data_formats import said

from cores.config.parse import parse_config
from cores.data import preference_data, prompt_data, sft_data
from cores.data.columns import renaming, standard
from cores.data.sources import Row
from cores.data.stream import StreamedData
from cores.errors import UserError


@pytest.mark.parametrize(
    ("wanted", "found", "names"),
    [
        ({"prompt": "q", "reply": "a"}, "q a id", "q:prompt a:completion"),
        ({"reply": "response"}, "prompt response history", "response:completion"),
        ({"reply": "response"}, "instruction response", "response:output"),
        ({"reply": "response", "input": "c"}, "instruction c response", "c:input response:output"),
        (
            {"prompt": "instruction", "input": "c", "reply": "response"},
            "instruction c response",
            "instruction:instruction c:input response:output",
        ),
        ({"prompt": "q", "reply": "a"}, "q input a", "q:instruction a:output"),
        ({"prompt": "input", "reply": "output"}, "input output", "input:prompt output:completion"),
        ({"prompt": "q", "chosen": "w", "rejected": "l"}, "q w l", "q:prompt w:chosen l:rejected"),
        ({"prompt": "q", "reply": "prompt"}, "q prompt", "q:prompt prompt:completion"),
        ({"reply": "a", "input": "c"}, "prompt c a", "prompt:instruction c:input a:output"),
        ({"prompt": "q", "input": "prompt"}, "prompt q", "q:instruction prompt:input"),
        ({"messages": "dialog", "system": "s"}, "dialog s", "dialog:messages s:system"),
        ({"text": "文本", "label": "标签"}, "文本 标签", "文本:text 标签:label"),
    ],
)
def test_standard_names(wanted: dict[str, str], found: str, names: str) -> None:
    """A prompt with an input is an instruction, and its reply an output."""
    told = dict(pair.split(":") for pair in names.split())
    assert renaming(wanted, found.split(), "rows.jsonl", "data.x") == told


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"promt": "q"}, r"\.promt: is no known name; known are prompt, .* Did you mean prompt\?"),
        ({"output": "q"}, r"\.output: is no known name"),
        ({"prompt": "Q"}, r"\.prompt: 'rows.jsonl' has no column 'Q'; it has q, a, text\."),
        ({"prompt": "q", "reply": "q"}, r"\.reply: 'q' stands for another name as well"),
        ({"text": "q"}, r"\.text: 'rows.jsonl' has a column 'text' beside 'q', and both would"),
    ],
)
def test_names_that_cannot_be(wanted: dict[str, str], problem: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.x\.columns{problem}"):
        renaming(wanted, ["q", "a", "text"], "rows.jsonl", "data.x")


def shaped(columns: dict[str, Any]) -> dict[str, Any]:
    return standard([Row("rows.jsonl:1", columns)], {})[0].columns


def test_questions_and_replies_as_lists() -> None:
    """Turn by turn; whatever else the row has stays."""
    turns = [
        said("user", "几点"),
        said("assistant", "三点"),
        said("user", "谢"),
        said("assistant", "好"),
    ]
    for asked, reply in (("input", "output"), ("instruction", "output"), ("prompt", "completion")):
        row = {asked: ["几点", "谢"], reply: ["三点", "好"], "system": "S"}
        assert shaped(row) == {"messages": turns, "system": "S"}
    with pytest.raises(UserError, match=r"^rows.jsonl:1: 'input' holds 2 texts and 'output' 1"):
        shaped({"input": ["a", "b"], "output": ["c"]})
    assert shaped({"input": [], "output": []}) == {"messages": []}, "dropped and counted, later"


@pytest.mark.parametrize("source", [{}, {"columns": {"prompt": "input", "reply": "output"}}])
def test_a_text_alone_among_lists_is_a_list_of_one(source: Any, tmp_path: Path) -> None:
    """Rows of one question have it as a text in some files; a row without either is an error."""
    lone, lists = {"input": "谢", "output": "好"}, {"input": ["几点"], "output": ["三点"]}
    path = write_jsonl(tmp_path / "a.jsonl", [lone, lists])
    data = sft_data(config(path, NONE, source=source), chat_like())
    shown = [chat_like().decode(row["input_ids"]) for row in data.train]
    assert shown == ["谢好<|im_end|>", "几点三点<|im_end|>"]
    path = write_jsonl(tmp_path / "b.jsonl", [lists, {"input": ["几点"]}])
    with pytest.raises(UserError, match=r"b.jsonl:2: '\w+' and '\w+' are lists .* but hold list"):
        sft_data(config(path, NONE, source=source), chat_like())


def test_what_is_said_in_turn() -> None:
    """LIMA's rows; a last question without a reply is seen later."""
    turns = [said("user", "几点"), said("assistant", "三点"), said("user", "谢")]
    assert shaped({"conversations": ["几点", "三点", "谢"], "source": "s"}) == {
        "conversations": turns, "source": "s",
    }  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"input": "a", "output": ["b"]},
        {"input": ["a"], "output": "b"},
        {"input": ["a"], "output": ["b"], "instruction": "c"},
        {"input": ["a"], "output": ["b"], "messages": [said("user", "a")]},
        {"prompt": [said("user", "a")], "completion": [said("assistant", "b")]},
        {"chat": {"turn_one": {}}},
        {"chat": "turn_1"},
        {"chat": {}},
    ],
)
def test_what_is_no_such_shape(row: dict[str, Any]) -> None:
    """Left for the formats to judge."""
    assert shaped(row) == row


MOSS_TURN = {
    "MOSS": "<|MOSS|>: 十二<eom>\n",
    "Human": "<|Human|>: 三乘四？<eoh>\n",
    "Inner Thoughts": "<|Inner Thoughts|>: 算<eot>\n",
    "Commands": "<|Commands|>: Calculate(3*4)<eoc>\n",
    "Tool Responses": "<|Results|>:\n12\n<eor>\n",
}
SECOND = {"Human": "H", "Inner Thoughts": "", "Commands": None, "MOSS": "M"}


def moss(*rounds: Any, **more: Any) -> dict[str, Any]:
    chat = {f"turn_{i}": parts for i, parts in enumerate(rounds, 1)}
    return {"meta_instruction": "You help.\n", "num_turns": len(rounds), "chat": chat, **more}


def test_moss_rows() -> None:
    """Contents verbatim in the order of a turn, however its dict is ordered; empty parts left
    out, but for a question or reply, without which the row is dropped."""
    found = shaped(moss(MOSS_TURN, SECOND, category="c"))
    assert found == {
        "messages": [
            said("system", "You help.\n"),
            said("user", MOSS_TURN["Human"]),
            said("thoughts", MOSS_TURN["Inner Thoughts"]),
            said("commands", MOSS_TURN["Commands"]),
            said("tool", MOSS_TURN["Tool Responses"]),
            said("assistant", MOSS_TURN["MOSS"]),
            said("user", "H"),
            said("assistant", "M"),
        ],
        "category": "c",
    }
    assert shaped({"chat": {"turn_1": SECOND, "turn_2": None}})["messages"] == [
        said("user", "H"),
        said("assistant", "M"),
    ]  # a Parquet file has all turns in all rows
    assert shaped(moss({"Human": "H"}))["messages"][-1] == said("assistant", "")


def test_moss_turns_stand_by_their_number() -> None:
    rounds = {f"turn_{i}": {"Human": str(i), "MOSS": "M"} for i in range(12, 0, -1)}
    turns = shaped({"chat": rounds})["messages"]
    assert [turn["content"] for turn in turns[::2]] == [str(i) for i in range(1, 13)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (moss({**SECOND, "Moods": "x"}), "turn_1 of 'chat' has Moods; known are Human, Inner"),
        (moss(SECOND, "x"), "turn_2 of 'chat' is str 'x'"),
        (moss({**SECOND, "MOSS": 3}), "turn_1 of 'chat': MOSS must be text, but holds int 3"),
        (moss(SECOND, num_turns=2), "'chat' holds turn_1 where num_turns is int 2"),
        ({"chat": {"turn_2": SECOND}}, "'chat' holds turn_2 where"),
        (moss(SECOND, meta_instruction=3), "column 'meta_instruction' must be text"),
    ],
)
def test_moss_rows_that_are_wrong(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError) as caught:
        shaped(row)
    assert str(caught.value).startswith(f"rows.jsonl:1: {problem}")


def test_renamed_rows_in_all_stages(tmp_path: Path) -> None:
    """A column that only some rows have is known; held-out rows are renamed as well."""
    path = write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"问": "几点", "答": "三点", "差": "不知道"},
            {"问": "谁", "答": "我", "差": "他", "前": [["在", "在"]]},
        ],
    )
    names = {"prompt": "问", "history": "前"}
    stages = {
        sft_data: {**names, "reply": "答"},
        preference_data: {**names, "chosen": "答", "rejected": "差"},
        prompt_data: names,
    }
    tokenizer = chat_like()
    for made, columns in stages.items():
        source = {"columns": columns, "test_path": path}
        data = made(config(path, CHAT, source=source), tokenizer)  # type: ignore[operator]
        for rows in (data.train, data.test):
            row = rows[1]
            text = tokenizer.decode(row.get("input_ids") or row["chosen_ids"])
            assert text.count("在") == 2
            assert "谁" in text
            assert ("我" in text) == (made is not prompt_data)
    assert data.train[0]["row"] == {"prompt": "几点", "答": "三点", "差": "不知道"}


def test_a_name_without_effect_is_refused(tmp_path: Path) -> None:
    """It would be read as if it did something; reward functions get all columns."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"q": "Q", "a": "A", "s": 1, "t": "T"}])
    columns = {"prompt": "q", "reply": "a", "margin": "s"}
    with pytest.raises(UserError, match=r"^data.sft.columns: names the column 's' as 'margin', wh"):
        sft_data(config(path, CHAT, source={"columns": columns}), chat_like())
    assert prompt_data(config(path, CHAT, source={"columns": columns}), chat_like()).train
    path = write_jsonl(tmp_path / "b.jsonl", [{"q": "Q", "a": "A", "h": []}])
    columns = {"prompt": "q", "reply": "a", "history": "h"}
    with pytest.raises(UserError, match=r"the column 'h' as 'history', which this stage does not"):
        sft_data(config(path, NONE, source={"columns": columns}), chat_like())


def test_streamed_rows_are_renamed(tmp_path: Path) -> None:
    """The rows of training and those held out."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"内容": f"文{i}"} for i in range(9)])
    source = {"streaming": True, "columns": {"text": "内容"}, "test_path": path}
    data = sft_data(config(path, NONE, source=source, sft={"max_steps": 1}), chat_like())
    assert isinstance(data, StreamedData)
    assert chat_like().decode(next(iter(data.train))["input_ids"]).startswith("文")
    assert len(data.test) == 9
    source["columns"] = {"text": "内容", "prompt": "内容"}
    with pytest.raises(UserError, match=r"^data.sft.columns.prompt: '内容' stands for another"):
        sft_data(config(path, NONE, source=source, sft={"max_steps": 1}), chat_like())
    path = write_jsonl(tmp_path / "b.jsonl", [{"内容": "文", "q": "x"}])
    source = {"streaming": True, "columns": {"text": "内容", "prompt": "q"}}
    with pytest.raises(UserError, match=r"^data.sft.columns: names the column 'q'"):
        sft_data(config(path, NONE, source=source, sft={"max_steps": 1}), chat_like())


def test_names_on_the_command_line_and_in_items(tmp_path: Path) -> None:
    columns = '{"prompt": "问", "reply": "a"}'
    words = ["--data.sft.path", "x.jsonl", "--data.sft.columns", columns]
    assert parse_config(words, "", "").data.sft.columns == {"prompt": "问", "reply": "a"}
    path = write_jsonl(tmp_path / "a.jsonl", [{"问": "几点", "a": "三点"}])
    item = f'[{{"path": "{path}", "columns": {columns}}}]'
    words = ["--data.sft.sources", item, "--data.test_fraction", "0"]
    data = sft_data(parse_config(words, "", ""), chat_like())
    assert not isinstance(data, StreamedData)
    assert "几点" in chat_like().decode(data.train[0]["input_ids"])
    item = f'[{{"path": "{path}", "columns": {{"prompt": "x"}}}}]'
    words = ["--data.sft.sources", item]
    with pytest.raises(UserError, match=r"^data.sft.sources\[0\].columns.prompt: .* no column 'x'"):
        sft_data(parse_config(words, "", ""), chat_like())
