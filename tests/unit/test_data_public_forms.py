"""Forms of public data sets and tools that are read without a preset."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, config, write_jsonl
from _tokenizers import chat_like
from test_data_presets import made, says, talk

from cores.config.template import RoleTemplate, TemplateSection
from cores.data import prompt_data, sft_data
from cores.data.inspect import segments
from cores.errors import UserError

USER, GOOD, BAD = says("user", "Tea?"), says("assistant", "Green"), says("assistant", "None")
SYSTEM = says("system", "S")
BOTH = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
ALL = {"sft": ["Tea?/Green"], "reward": ["Tea?/Green > None"], "ppo": ["Tea?"]}
BEFORE = {
    "sft": ["S/A?/B/Tea?/Green"],
    "reward": ["S/A?/B/Tea?/Green > None"],
    "ppo": ["S/A?/B/Tea?"],
}


def spoken(speaker: str, text: str) -> dict[str, str]:
    return {"from": speaker, "value": text}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # HuggingFaceH4/ultrafeedback_binarized
        (
            {"prompt": "Tea?", "prompt_id": "1", **BOTH, "messages": BOTH["chosen"]}
            | {"score_chosen": 8.5, "score_rejected": 3.0},
            ALL,
        ),
        # argilla/dpo-mix-7k
        ({"dataset": "x", **BOTH, "chosen_rating": 5.0, "rejected_rating": 3.0}, ALL),
        # allenai/llama-3.1-tulu-3-8b-preference-mixture
        ({"id": "1", "source": "x", "prompt": "Tea?", **BOTH}, ALL),
        # LLaMA-Factory, alpaca
        (
            {"instruction": "Tea?", "input": "", "system": "S", "history": [["A?", "B"]]}
            | {"chosen": "Green", "rejected": "None"},
            BEFORE,
        ),
        # LLaMA-Factory, sharegpt
        (
            {
                "conversations": [
                    spoken("human", "A?"), spoken("gpt", "B"), spoken("human", "Tea?"),
                ],
                "chosen": spoken("gpt", "Green"), "rejected": spoken("gpt", "None"),
                "system": "S", "tools": "",
            },
            BEFORE,
        ),
        # TRL: explicit and implicit prompts, texts and turns
        ({"prompt": "Tea?", "chosen": "Green", "rejected": "None"}, ALL),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, ALL),
        (BOTH, ALL),
    ],
)  # fmt: skip
def test_pairs(tmp_path: Path, row: dict[str, Any], expected: dict[str, list[str]]) -> None:
    """All stages read them."""
    assert made(write_jsonl(tmp_path / "a.jsonl", [row]), None) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [SYSTEM, USER, GOOD], "source": "x", "id": "1"},  # allenai/tulu-3-sft-mixture
        {"prompt": [SYSTEM, USER], "completion": [GOOD]},  # TRL
        {"messages": [SYSTEM, USER, GOOD]},
        {"instruction": "Tea?", "input": None, "output": "Green", "system": "S", "history": []},
        {
            "conversations": [spoken("human", "Tea?"), spoken("gpt", "Green")],
            "system": "S", "tools": "[]",
        },
    ],
)  # fmt: skip
def test_demonstrations(tmp_path: Path, row: dict[str, Any]) -> None:
    """Stages 1 and 3 read them."""
    built = config(write_jsonl(tmp_path / "a.jsonl", [row]), CHAT)
    assert [talk(r["input_ids"]) for r in sft_data(built, chat_like()).train] == ["S/Tea?/Green"]
    assert [talk(r["input_ids"]) for r in prompt_data(built, chat_like()).train] == ["S/Tea?"]


CALLED = {
    "conversations": [
        spoken("human", "Tea?"), spoken("function_call", '{"name": "brew"}'),
        spoken("observation", "hot"), spoken("gpt", "Green"),
    ],
    "tools": "",
}  # fmt: skip


def test_calls_of_functions(tmp_path: Path) -> None:
    """LLaMA-Factory's sharegpt form with tools: a call is of the assistant, learned where the
    template says so; a chat template has no turn for it, and a table of tools is never lost."""
    path = write_jsonl(tmp_path / "a.jsonl", [CALLED])
    section = TemplateSection(
        kind="roles",
        commands=RoleTemplate("<call>", "</call>\n", train="all"),
        tool=RoleTemplate("<result>", "\n"),
    )
    (row,) = sft_data(config(path, section), chat_like()).train
    flags = [label != -100 for label in row["labels"]]
    assert segments(row["input_ids"], flags, chat_like()) == [
        ("Tea?", False),
        ('<call>{"name": "brew"}</call>\n', True),
        ("<result>hot\n", False),
        ("Green<|im_end|>", True),
    ]
    bare = replace(section, commands=RoleTemplate())
    for wanted, advice in ((bare, "puts nothing around it"), (CHAT, "chat templates know none")):
        for read in (sft_data, prompt_data):
            with pytest.raises(UserError, match=f":1: has a turn of the role commands.*{advice}"):
                read(config(path, wanted), chat_like())
    path = write_jsonl(tmp_path / "b.jsonl", [{**CALLED, "tools": '[{"name": "brew"}]'}])
    with pytest.raises(UserError, match="column 'tools' "):
        sft_data(config(path, section), chat_like())


def test_prompts_with_answers(tmp_path: Path) -> None:
    """verl's form: reward functions of stage 3 get the answer."""
    row = {
        "data_source": "sums", "prompt": [USER], "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "4"}, "extra_info": {"index": 0},
    }  # fmt: skip
    built = config(write_jsonl(tmp_path / "a.jsonl", [row]), CHAT)
    (made,) = prompt_data(built, chat_like()).train
    assert made["row"] == row
    assert made["turns"] == [USER]
