"""Turns that say that they are not to be learned (OpenAI's weight, Axolotl's train, SlimOrca)."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, ROLES, config, write_jsonl
from _tokenizers import chat_like, gpt2_like
from test_data_formats import REPLY, USER, read, said

from cores.config.template import TemplateSection
from cores.data import sft_data
from cores.data.inspect import segments
from cores.errors import UserError

BAD = said("assistant", "bad")
GOOD = said("assistant", "good")


def learned(tmp_path: Path, turns: list[Any], template: TemplateSection, **sft: Any) -> list[str]:
    """What is trained of each row."""
    tokenizer = chat_like() if template == CHAT else gpt2_like()
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": turns}] * 2)
    rows = sft_data(config(path, template, sft=sft), tokenizer).train
    parts = [
        segments(row["input_ids"], [label >= 0 for label in row["labels"]], tokenizer)
        for row in rows
    ]
    return ["".join(text for text, trained in row if trained) for row in parts]


@pytest.mark.parametrize("template", [ROLES, CHAT])
@pytest.mark.parametrize(("key", "value"), [("weight", 0), ("train", False), ("loss", 0.0)])
def test_replies_that_are_not_learned(
    tmp_path: Path, template: TemplateSection, key: str, value: Any
) -> None:
    turns = [{**USER, key: value}, {**BAD, key: value}, USER, GOOD]
    (row, _) = learned(tmp_path, turns, template)
    assert row.startswith("good"), "and nothing before it"
    (row, _) = learned(tmp_path, [USER, BAD, USER, {**GOOD, key: value}], template)
    assert "bad" in row
    assert "good" not in row


def test_turns_that_are_never_learned_may_say_so() -> None:
    """SlimOrca's human turns have weight 0, in every stage."""
    pair = {"chosen": "A", "rejected": "B"}
    for stage in ("reward", "ppo"):
        row = {"conversations": [{**USER, "weight": 0}], **pair}
        assert read(row, stage).conversations[0][0] == USER  # type: ignore[arg-type]
    with pytest.raises(UserError, match="turn 1 of 'chosen' has weight"):
        read({"prompt": "Q", "chosen": [{**REPLY, "weight": 0}], "rejected": "B"}, "reward")
    with pytest.raises(UserError, match="turn 1 of 'completion' has weight"):
        read({"prompt": "Q", "completion": [{**REPLY, "weight": 0}]}, "sft")


def test_where_all_is_learned_they_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="turn 2 of 'messages' has weight"):
        learned(tmp_path, [USER, {**BAD, "weight": 0}, USER, GOOD], ROLES, loss_on="all")


def test_marks_of_a_chat_template_say_it_otherwise(tmp_path: Path) -> None:
    marked = TemplateSection(
        chat_template="{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% endfor %}"
    )
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": [USER, {**BAD, "train": False}]}])
    tokenizer = deepcopy(chat_like())  # others share it
    tokenizer.chat_template = marked.chat_template
    with pytest.raises(UserError, match=r"a turn says that it is not to be learned"):
        sft_data(config(path, CHAT), tokenizer)
