"""Turns: who speaks, contents in parts, which columns they come from, what is advised."""

import pytest
from test_data_formats import REPLY, SYSTEM, USER, read, said

from cores.config.data import SourceSection
from cores.config.schema import Config
from cores.data.formats import Reader
from cores.data.sources import Row
from cores.errors import UserError


@pytest.mark.parametrize(
    ("names", "role"),
    [
        ("system developer", "system"),
        ("user human prompter", "user"),
        ("assistant gpt chatgpt bot model bard bing", "assistant"),
        ("tool function observation ipython", "tool"),
        ("thoughts", "thoughts"),
        ("commands function_call", "commands"),
    ],
)
def test_speakers(names: str, role: str) -> None:
    """Under every name, in both forms of a turn; empty results of tools are results."""
    for name in names.split():
        for turn in (said(name, "你好"), {"from": name, "value": "你好"}):
            (turns,) = read({"messages": [USER, turn, USER, REPLY]}, "sft").conversations
            assert turns == [USER, said(role, "你好"), USER, REPLY]
        empty = read({"messages": [USER, said(name, ""), USER, REPLY]}, "sft").dropped
        assert empty == (None if role in ("system", "tool") else "empty turn")


def test_a_content_in_parts_of_text() -> None:
    """As multimodal chat templates have it; joined with nothing between, in all places of turns."""
    parts = [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]
    reply = {"role": "assistant", "content": parts}
    row = {"prompt": [said("user", parts)], "chosen": reply, "rejected": [said("assistant", "B")]}
    asked = said("user", "你好")
    assert read(row, "reward").conversations == (
        [asked, said("assistant", "你好")],
        [asked, said("assistant", "B")],
    )
    assert read({"messages": [said("user", []), REPLY]}, "sft").dropped == "empty prompt"


def test_what_is_read_of_a_pair_in_stage_3() -> None:
    """Its turns: they are not named as not read, where they are."""
    pair = {"chosen": [SYSTEM, USER, REPLY], "rejected": [SYSTEM, USER, said("assistant", "B")]}
    for row, unread in ((pair, []), ({"prompt": "Q", "chosen": "A", "rejected": "B"}, None)):
        row = {"prompt": "Q", **row}
        source = SourceSection()
        reader = Reader(Config(), source, list(row), "rows.jsonl", "ppo", "data.x")
        reader.read(Row("rows.jsonl:1", row))
        assert reader.unread == (["chosen", "rejected"] if unread is None else unread)


@pytest.mark.parametrize(
    ("key", "said_"),
    [
        ("data.sft", "(--data.sft.ignore '[\"weight\"]')"),
        ("data.sft.sources[1]", "(data.sft.sources[1].ignore: [weight])"),
    ],
)
def test_the_advice_names_the_own_key(key: str, said_: str) -> None:
    row = {"messages": [USER, {**REPLY, "weight": 2}]}
    reader = Reader(Config(), SourceSection(), list(row), "rows.jsonl", "sft", key)
    with pytest.raises(UserError) as caught:
        reader.read(Row("rows.jsonl:1", row))
    assert said_ in str(caught.value)
