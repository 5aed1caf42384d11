"""Rows of encoder-decoders and of prefix attention: a reply each, behind all that stood before."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, NONE, ROLES, config, write_jsonl
from _tokenizers import gpt2_like, llama_like, t5_like

from cores.config import Config
from cores.config.data import DataSection
from cores.data import preference_data, prompt_data, sft_data, show
from cores.data.encode import IGNORED
from cores.data.sides import Inputs, closing_ids
from cores.errors import UserError

TALK = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "content": "今天天气很好。"},
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "It is Friday."},
]


def prefix(made: Config) -> Config:
    return replace(made, model=replace(made.model, attention="prefix"))


def sided(tmp_path: Path, template: Any = ROLES, row: Any = None, **sft: Any) -> list[Any]:
    """Rows of one conversation for an encoder and a decoder."""
    path = write_jsonl(tmp_path / "rows.jsonl", [row or {"messages": TALK}])
    return list(sft_data(config(path, template, sft=sft), t5_like(), Inputs(encoder=True)).train)


def texts(rows: list[Any]) -> list[tuple[str, str]]:
    """What each side holds."""
    decode = t5_like().decode
    return [(decode(row["encoder_ids"]), decode(row["labels"])) for row in rows]


def test_every_reply_has_a_row(tmp_path: Path) -> None:
    """All before it, earlier replies with their stops, and the tokenizer's end; then the reply."""
    first = "User: 你好\nAssistant:"
    rows = sided(tmp_path)
    assert texts(rows) == [
        (f"{first}</s>", "今天天气很好。\n</s>"),
        (f"{first}今天天气很好。\n</s>User: why?\nAssistant:</s>", "It is Friday.\n</s>"),
    ]
    assert texts(sided(tmp_path, loss_on="last")) == texts(rows)[1:]
    assert all(row["input_ids"] == row["encoder_ids"] for row in rows)


def test_later_stages_read_the_same_sides(tmp_path: Path) -> None:
    """The encoder's ids of a pair and of a prompt are stage 1's, cut nowhere in between; a pair's
    replies are the decoder's."""
    last = sided(tmp_path, loss_on="last")[0]
    *asked, said = TALK
    other = [{"role": "assistant", "content": "Never"}]
    pair = {"prompt": asked, "chosen": [said], "rejected": other}
    made, takes = config(write_jsonl(tmp_path / "p.jsonl", [pair]), ROLES), Inputs(encoder=True)
    (row,) = preference_data(made, t5_like(), takes).train
    begin = row["prompt_length"]
    assert row["chosen_ids"][:begin] == row["rejected_ids"][:begin] == last["encoder_ids"]
    assert row["chosen_ids"][begin:] == last["labels"]
    assert t5_like().decode(row["rejected_ids"][begin:]) == "Never\n</s>"
    (row,) = prompt_data(made, t5_like(), takes).train
    assert row["input_ids"] == last["encoder_ids"]
    assert row["prompt"] == t5_like().decode(last["encoder_ids"]).removesuffix("</s>")


def test_each_side_is_tokenised_by_itself(tmp_path: Path) -> None:
    """As the tokenizer would a text alone: the reply begins with what begins a text."""
    (row,) = sided(tmp_path, NONE, {"prompt": "用户：好吗？\n小元：", "completion": "好。"})
    assert row["labels"] == t5_like()("好。")["input_ids"]
    assert row["encoder_ids"] == t5_like()("用户：好吗？\n小元：")["input_ids"]


def test_each_side_is_cut_by_itself(tmp_path: Path) -> None:
    """The encoder's keeps its end, as the tokenizer's own truncation does."""
    long = {"prompt": "one two three four five", "completion": "six seven eight nine ten"}
    (row,) = sided(tmp_path, NONE, long, max_length=6)
    whole = [t5_like()(text)["input_ids"] for text in long.values()]
    assert row["encoder_ids"] == [*whole[0][:5], 1]
    assert row["labels"] == whole[1][:6]
    path = write_jsonl(tmp_path / "rows.jsonl", [long])
    report = sft_data(config(path, sft={"max_length": 6}), t5_like(), Inputs(encoder=True)).report
    assert "truncated: 1" in " ".join(report.lines())


def test_rows_are_shown_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "你好吗", "completion": "好。"}])
    show(sft_data(config(path), t5_like(), Inputs(encoder=True)), t5_like(), DataSection(inspect=1))
    shown = capsys.readouterr().out
    assert "row 1 encoder: " in shown
    assert "row 1 reply: " in shown
    assert "你好吗</s>" in shown


def test_a_text_without_turns_has_no_sides(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a text without turns has no prompt for the encoder"):
        sided(tmp_path, NONE, {"text": "今天"})


@pytest.mark.parametrize(("make", "closing"), [(t5_like, [1]), (gpt2_like, []), (llama_like, [])])
def test_what_a_tokenizer_puts_behind_a_text(make: Any, closing: list[int]) -> None:
    assert closing_ids(make()) == closing


def test_prefix_rows_say_where_the_reply_begins(tmp_path: Path) -> None:
    """A reply a row, and nothing of its prompt is trained, which sees what is behind it; the ids
    are those of the causal rows."""
    tokenizer = deepcopy(llama_like())
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": TALK}])
    made = config(path, ROLES)
    (causal,) = sft_data(made, tokenizer).train
    rows: Any = sft_data(prefix(made), tokenizer).train
    assert len(rows) == 2
    assert rows[1]["input_ids"] == causal["input_ids"]
    assert causal["input_ids"][: len(rows[0]["input_ids"])] == rows[0]["input_ids"]
    for row in rows:
        begin = row["prompt_length"]
        assert tokenizer.decode(row["input_ids"][:begin]).endswith("Assistant:")
        assert set(row["labels"][:begin]) == {IGNORED}
        assert IGNORED not in row["labels"][begin:]


@pytest.mark.parametrize("encoder", [True, False])
def test_marks_of_a_chat_template_are_not_passed_over(tmp_path: Path, encoder: bool) -> None:
    """They say what of a whole conversation is learned; here each reply is, as a row."""
    tokenizer = deepcopy(t5_like())
    tokenizer.chat_template = (
        "{% for m in messages %}{% generation %}{{ m.content }}</s>{% endgeneration %}{% endfor %}"
    )
    path = write_jsonl(tmp_path / "rows.jsonl", [{"messages": TALK[:2]}])
    made = config(path, CHAT) if encoder else prefix(config(path, CHAT))
    with pytest.raises(UserError, match=r"rows.jsonl:1: .*{% generation %}.* one reply a row"):
        sft_data(made, tokenizer, Inputs(encoder=encoder))


def test_a_text_is_causal_under_prefix_attention(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "今天天气很好"}])
    (row,) = sft_data(prefix(config(path)), llama_like()).train
    assert row["prompt_length"] == 0


@pytest.mark.parametrize("fields", [{"too_long": "split"}, {"join": "\n"}])
def test_parts_of_texts_under_prefix_attention(tmp_path: Path, fields: dict[str, str]) -> None:
    """Each is causal, as the whole text is."""
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "one two three four five six"}])
    made = prefix(config(path, sft={"max_length": 4}))
    rows: Any = sft_data(replace(made, data=replace(made.data, **fields)), gpt2_like()).train
    assert len(rows) > 1
    assert {row["prompt_length"] for row in rows} == {0}


def test_what_prefix_attention_cuts(tmp_path: Path) -> None:
    """Of a long reply the end and its stop token, never of a prompt, which holds what is asked."""
    rows = [
        {"prompt": "Q" * asked, "completion": "a" * reply}
        for asked, reply in ((4, 90), (60, 4), (4, 4))
    ]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    data: Any = sft_data(prefix(config(path, ROLES, sft={"max_length": 40})), llama_like())
    eos = llama_like().eos_token_id
    assert [(len(row["input_ids"]) == 40, row["labels"][-1] == eos) for row in data.train] == [
        (True, False),
        (False, True),
    ]
    assert data.report.train.truncated == 1
    assert dict(data.report.train.dropped) == {"no trained token within sft.max_length": 1}
