"""What stands before the text of a row."""

from copy import deepcopy
from pathlib import Path

import pytest
from _data_helpers import CHAT, NONE, ROLES, config, write_jsonl
from _tokenizers import CHATML, chat_like, gpt2_like, llama_like

from cores.config.template import RoleTemplate, TemplateSection
from cores.data import preference_data, prompt_data, sft_data
from cores.errors import UserError

TURNS = [
    {"role": "system", "content": "Be brief."},
    *({"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}) * 2,
]


@pytest.mark.parametrize("template", [CHAT, ROLES])
def test_one_bos_whoever_writes_it(template: TemplateSection, tmp_path: Path) -> None:
    """Invariant 27: a chat template writes BOS itself, so that none is put before its text; under
    texts of our own it is the tokenizer's."""
    tokenizer = deepcopy(llama_like())
    tokenizer.chat_template = "{{ bos_token }}" + CHATML.replace("<|im_end|>", "</s>")
    row = {"prompt": "Q", "completion": "A", "chosen": "A", "rejected": "B"}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    (sft,) = sft_data(config(path, template), tokenizer).train
    (pair,) = preference_data(config(path, template), tokenizer).train
    (prompt,) = prompt_data(config(path, template), tokenizer).train
    for ids in (sft["input_ids"], pair["chosen_ids"], pair["rejected_ids"], prompt["input_ids"]):
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("system", [RoleTemplate(), RoleTemplate("<s>[SYS]", "<s>")])
def test_bos_begins_a_round_once(system: RoleTemplate, tmp_path: Path) -> None:
    """A prefix that begins each round with BOS: in the first round the system turn has it already,
    of its own or as the tokenizer puts it; further rounds keep theirs, once. So in all stages."""
    template = TemplateSection(
        kind="roles",
        system=system,
        user=RoleTemplate("<s>[INST]", "[/INST]"),
        assistant=RoleTemplate(stop="</s><s>"),
    )
    made = config(write_jsonl(tmp_path / "rows.jsonl", [{"messages": TURNS}]), template)
    (row,), ids = sft_data(made, llama_like()).train, llama_like().bos_token_id
    first, second, third = llama_like().decode(row["input_ids"]).split("[INST]")
    assert first.replace(" ", "") == f"<s>{system.prefix[3:]}Bebrief."
    assert second.replace(" ", "") == "Q[/INST]A</s><s>"
    assert third.replace(" ", "") == "Q[/INST]A</s><s>"
    pair = {"messages": TURNS, "chosen": "A", "rejected": "B"}
    made = config(write_jsonl(tmp_path / "pairs.jsonl", [pair]), template)
    (both,), (asked,) = (f(made, llama_like()).train for f in (preference_data, prompt_data))
    assert both["chosen_ids"][: both["prompt_length"]] == asked["input_ids"]
    assert asked["input_ids"] == row["input_ids"][: len(asked["input_ids"])]
    assert asked["input_ids"].count(ids) == 2


@pytest.mark.parametrize("before", ["<s><s>", "<s>Serve."])
def test_a_chat_template_that_writes_bos_twice(before: str, tmp_path: Path) -> None:
    """Refused in all stages: elsewhere the same template would write it again."""
    tokenizer = deepcopy(llama_like())
    tokenizer.chat_template = before + (
        "{% for m in messages %}{{ ('<s>' if m.role == 'user' else '') + m.content + "
        "('</s>' if m.role == 'assistant' else '') }}{% endfor %}"
    )
    for made, row in ((sft_data, {"messages": TURNS}), (prompt_data, {"prompt": "Q"})):
        path = write_jsonl(tmp_path / "rows.jsonl", [row])
        with pytest.raises(UserError, match=":1: the tokenizer's chat template writes the beginn"):
            made(config(path, CHAT), tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.removeprefix(before)  # a round begins with it
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": TURNS}])
    assert len(sft_data(config(path, CHAT), tokenizer).train) == 1


END = "<|endoftext|>"


@pytest.mark.parametrize("template", [NONE, ROLES])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": f"Hello {END} there", "completion": "Yes"},
        {"prompt": "Hello", "completion": f"Yes {END} no"},
        {"prompt": f"Hello{END}", "completion": "Yes"},
    ],
)
def test_control_tokens_in_a_turn(template: TemplateSection, row: dict, tmp_path: Path) -> None:
    """Typed by a user they would be read as the token itself, and his turn would end there."""
    path = write_jsonl(tmp_path / "a.jsonl", [row, {"prompt": "Q", "completion": "A"}])
    data = sft_data(config(path, template), gpt2_like())
    assert dict(data.report.train.dropped) == {f"holds the control token {END}": 1}
    assert len(data.train) == 1


def test_control_tokens_of_a_chat_template(tmp_path: Path) -> None:
    """Its own work, a user's do not; pairs are checked on both sides, prompts too."""
    rows = [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "chosen": "A", "rejected": "B<|im_end|>\n<|im_start|>user"},
        {"prompt": "Q<|im_end|>", "chosen": "A", "rejected": "B"},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    pairs = preference_data(config(path, CHAT), chat_like())
    assert pairs.report.train.dropped == {"holds the control token <|im_end|>": 2}
    prompts = prompt_data(config(path, CHAT), chat_like())
    assert prompts.report.train.dropped == {"holds the control token <|im_end|>": 1}


@pytest.mark.parametrize(
    "row", [{"prompt": "Q", "completion": " A"}, {"text": "Some words"}], ids=["reply", "text"]
)
def test_a_stop_token_at_the_end_is_not_doubled(row: dict, tmp_path: Path) -> None:
    """Verbatim rows may bring their own."""
    ended = {**row, list(row)[-1]: list(row.values())[-1] + END}
    path = write_jsonl(tmp_path / "a.jsonl", [row, ended])
    one, other = sft_data(config(path, NONE), gpt2_like()).train
    assert one == other
    assert one["input_ids"].count(gpt2_like().eos_token_id) == 1
