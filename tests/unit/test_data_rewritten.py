"""Chat templates that show earlier turns otherwise once there is a later one, as those of models
that reason do: a row for each reply in stage 1, all before it as the prompt in stages 2 and 3."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, config, write_jsonl
from _tokenizers import chat_like

from cores.data import preference_data, prompt_data, sft_data

END = "<|im_end|>"
TURN = "{{ '<|im_start|>' + m.role + '\n' }}"
REASONING = (
    "{% for m in messages %}"
    + TURN
    + "{% if m.role == 'assistant' and loop.last %}{{ '[none]\n' }}{% endif %}"
    + "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""An empty thought stands before the last reply alone."""
OPENED = (
    "{% for m in messages %}"
    + TURN
    + "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n[think]' }}{% endif %}"
)
"""A reply is asked for with a thought that has begun, and shown without it."""
ASKED = [
    {"role": "user", "content": "two"},
    {"role": "assistant", "content": "four"},
    {"role": "user", "content": "three"},
]
TALK = [*ASKED, {"role": "assistant", "content": "six"}]


def tokenizer_with(template: str) -> Any:
    """Of its own: the others are shared by all tests."""
    tokenizer = deepcopy(chat_like())
    tokenizer.chat_template = template
    return tokenizer


def asked(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    """What the template gives a model that is to reply."""
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def made(tmp_path: Path, **sft: Any) -> Any:
    """One conversation, one pair, one prompt, all of the same turns."""
    row = {"messages": ASKED, "chosen": "six", "rejected": "nine"}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    talk = write_jsonl(tmp_path / "talk.jsonl", [{"messages": TALK}])
    return config(path, CHAT, sft=sft), config(talk, CHAT, sft=sft)


@pytest.mark.parametrize(("template", "thought"), [(REASONING, "[none]\n"), (OPENED, "")])
def test_a_row_for_each_reply(tmp_path: Path, template: str, thought: str) -> None:
    """Each behind what the template shows before it; nothing else is trained, and it is said."""
    tokenizer = tokenizer_with(template)
    data = sft_data(made(tmp_path)[1], tokenizer)
    for row, before, reply in zip(
        data.train, (asked(tokenizer, TALK[:1]), asked(tokenizer, ASKED)), ("four", "six"),
        strict=True,
    ):  # fmt: skip
        trained = [i for i, label in enumerate(row["labels"]) if label != -100]
        assert tokenizer.decode(row["input_ids"][: trained[0]]) == before
        shown = tokenizer.decode([row["input_ids"][i] for i in trained])
        assert shown == thought + reply + END
    report = data.report.train
    assert (report.read, report.used, report.divided) == (2, 2, 1)
    assert "1 of them more than conversations, one a reply" in data.report.lines()[0]


@pytest.mark.parametrize("template", [REASONING, OPENED])
def test_stages_share_the_prompt(tmp_path: Path, template: str) -> None:
    """It begins the rows of the others, and is what the template gives."""
    tokenizer = tokenizer_with(template)
    pairs, talk = made(tmp_path)
    (prompt,) = prompt_data(pairs, tokenizer).train
    (pair,) = preference_data(pairs, tokenizer).train
    last = sft_data(talk, tokenizer).train[-1]
    assert prompt["prompt"] == asked(tokenizer, ASKED)
    assert pair["chosen_ids"][: pair["prompt_length"]] == prompt["input_ids"]
    assert last["input_ids"][: len(prompt["input_ids"])] == prompt["input_ids"]
    assert pair["chosen_ids"][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("loss_on", ["last", "all"])
def test_one_row_where_one_holds_it(tmp_path: Path, loss_on: str) -> None:
    """The last reply alone is trained, or all tokens, none of them twice."""
    data = sft_data(made(tmp_path, loss_on=loss_on)[1], tokenizer_with(REASONING))
    assert len(data.train) == 1
    assert data.report.train.divided == 0


def test_templates_that_keep_turns_make_one_row(tmp_path: Path) -> None:
    """As before: both replies are trained in it, also behind a greeting and a system turn."""
    talk = [{"role": "assistant", "content": "Hi"}, *TALK]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": TALK}, {"messages": talk}])
    data = sft_data(config(path, CHAT), chat_like())
    assert len(data.train) == 2
    assert [row["labels"].count(chat_like().eos_token_id) for row in data.train] == [2, 2]


ENDED = (
    "{% for m in messages %}"
    + TURN
    + "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    + "{{ '<|im_start|>assistant\n' if add_generation_prompt else eos_token }}"
)
"""The conversation ends with the stop token once more, as Phi-3's does."""


@pytest.mark.parametrize("given", ["[think]\nadd\n[/think]six", " [think]add\n[/think]six"])
def test_a_thought_that_the_template_has_begun_is_not_begun_twice(
    tmp_path: Path, given: str
) -> None:
    tokenizer = tokenizer_with(OPENED.replace("m.content", "m.content.split('[/think]')[-1]"))
    talk = [*ASKED[:1], {"role": "assistant", "content": given}]
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": talk}])
    (row,) = sft_data(config(path, CHAT), tokenizer).train
    wanted = asked(tokenizer, ASKED[:1]) + "add\n[/think]six" + END
    assert tokenizer.decode(row["input_ids"]) == wanted


def test_a_stop_token_that_ends_the_conversation_too_stands_once(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(ENDED)
    pairs, talk = made(tmp_path)
    rows = sft_data(talk, tokenizer).train
    assert [tokenizer.decode(row["input_ids"]) for row in rows] == [
        asked(tokenizer, TALK[:1]) + "four" + END,
        asked(tokenizer, ASKED) + "six" + END,
    ]
    (pair,) = preference_data(pairs, tokenizer).train
    assert tokenizer.decode(pair["chosen_ids"]) == asked(tokenizer, ASKED) + "six" + END
