"""Turns in order, white space around them, and turns that nothing stands around."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, ROLES, config, write_jsonl
from _tokenizers import chat_like, gpt2_like

from cores.config.template import RoleTemplate
from cores.data import preference_data, prompt_data, sft_data
from cores.errors import UserError

TOKENIZER = gpt2_like()
END = "<|endoftext|>"


def talk(*turns: str) -> dict[str, Any]:
    """A row: "user: Hello", .."""
    parts = [turn.split(": ", 1) for turn in turns]
    return {"messages": [{"role": role, "content": content} for role, content in parts]}


def learned(tmp_path: Path, rows: list[Any], **template: Any) -> tuple[list[str], str]:
    """The texts of stage 1's rows, and what is said of them."""
    made = config(write_jsonl(tmp_path / "rows.jsonl", rows), replace(ROLES, **template))
    data = sft_data(made, TOKENIZER)
    texts = [TOKENIZER.decode(row["input_ids"]) for row in data.train]
    return texts, data.report.lines()[0]


def test_turns_that_alternate(tmp_path: Path) -> None:
    """Greetings are left out, rows with two questions in a row are dropped, and both counted."""
    rows = [
        talk("assistant: Hello", "user: A", "assistant: b"),
        talk("system: S", "assistant: Hello", "user: A", "assistant: b"),
        talk("user: A", "user: B", "assistant: c"),
        talk("user: A", "system: S", "assistant: c"),
    ]
    texts, said = learned(tmp_path, rows, alternate=True)
    assert texts == [
        f"User: A\nAssistant:b\n{END}",
        f"S\n\nUser: A\nAssistant:b\n{END}",
    ]
    assert "2 turns do not alternate" in said
    assert "lost turns before the first user turn: 2" in said
    assert len(learned(tmp_path, rows)[0]) == 4, "off by default"
    called = [talk("user: A", "assistant: b", "tool: 4", "tool: 5", "assistant: c")]
    tool = RoleTemplate("T: ")
    assert len(learned(tmp_path, called, alternate=True, tool=tool)[0]) == 1, "a result is between"


def test_pairs_and_prompts_alternate_alike(tmp_path: Path) -> None:
    row = {"prompt": talk("assistant: Hi", "user: A")["messages"], "chosen": "b", "rejected": "c"}
    made = config(write_jsonl(tmp_path / "a.jsonl", [row]), replace(ROLES, alternate=True))
    (prompt,) = prompt_data(made, TOKENIZER).train
    (pair,) = preference_data(made, TOKENIZER).train
    assert prompt["prompt"] == "User: A\nAssistant:"
    assert pair["chosen_ids"][: pair["prompt_length"]] == prompt["input_ids"]


def test_a_template_that_wants_them_to(tmp_path: Path) -> None:
    """The way on is named, and leads on."""
    tokenizer = chat_like.__wrapped__()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{{ m.content + '<|im_end|>' }}{% endfor %}"
    )
    rows = [talk("user: A", "user: B", "assistant: c"), talk("user: A", "assistant: b")]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"--template\.alternate true leaves out such rows"):
        sft_data(config(path, CHAT), tokenizer)
    assert len(list(sft_data(config(path, replace(CHAT, alternate=True)), tokenizer).train)) == 1


def test_a_suffix_that_is_the_stop_token(tmp_path: Path) -> None:
    """It stands once."""
    rows = [talk("user: A", "assistant: b")]
    (text,), _ = learned(tmp_path, rows, assistant=RoleTemplate("Assistant: ", f"{END}\n"))
    assert text == f"User: A\nAssistant: b{END}\n"


def test_strip(tmp_path: Path) -> None:
    texts, _ = learned(tmp_path, [talk("user:  A \n", "assistant: \tb ")], strip=True)
    assert texts == [f"User: A\nAssistant:b\n{END}"]


def test_a_system_turn_that_no_user_turn_follows_is_not_lost(tmp_path: Path) -> None:
    rows = [talk("user: A", "system: S", "assistant: b")]
    (text,), _ = learned(tmp_path, rows, system_in_user=True)
    assert text == f"User: A\nS\n\nAssistant:b\n{END}"


def test_a_result_that_would_run_into_its_neighbours(tmp_path: Path) -> None:
    rows = [talk("user: A", "assistant: b", "tool: 4", "assistant: four")]
    with pytest.raises(UserError, match=r"rows\.jsonl:1: has a turn of the role tool"):
        learned(tmp_path, rows)
    (text,), _ = learned(tmp_path, rows, tool=RoleTemplate("Result: ", "\n"))
    assert "Result: 4\nAssistant:four" in text
