"""Chinese rows of every format, from the file to what is shown."""

import json
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, NONE, config
from _tokenizers import chat_like, gpt2_like

from cores.config.data import DataSection
from cores.data import preference_data, prompt_data, readable, sft_data, show
from cores.errors import UserError

ASK = "你好，请问：今天的天气怎么样？（明天呢？）"
YES = "今天天气很好！１２３。"
NO = "不知道……"
TALK = [{"from": "human", "value": ASK}, {"from": "gpt", "value": YES}]
ROWS: dict[str, dict[str, Any]] = {
    "instruction": {"instruction": ASK, "input": "“北京”", "output": YES},
    "conversations": {"conversations": [*TALK, {"from": "human", "value": "好的。"}, TALK[1]]},
    "preference": {"prompt": ASK, "chosen": YES, "rejected": NO},
    "transcript": {
        "chosen": f"\n\nHuman: {ASK}\n\nAssistant: {YES}",
        "rejected": f"\n\nHuman: {ASK}\n\nAssistant: {NO}",
    },
}
STAGES = (sft_data, preference_data, prompt_data)


def write(path: Path, row: dict[str, Any], escaped: bool) -> str:
    path.write_text(json.dumps(row, ensure_ascii=escaped) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ROWS)
def test_rows_through_a_chat_template(tmp_path: Path, name: str) -> None:
    """Nothing is lost, prompts are prefixes (invariant 25), escaped JSON is the same."""
    source = {"transcripts": name == "transcript"}
    plain = write(tmp_path / "a.jsonl", ROWS[name], escaped=False)
    escaped = write(tmp_path / "b.jsonl", ROWS[name], escaped=True)
    tokenizer = chat_like()
    found = {}
    for build in STAGES if "chosen" in ROWS[name] else (sft_data, prompt_data):
        data = build(config(plain, CHAT, source=source), tokenizer)
        assert data.train == build(config(escaped, CHAT, source=source), tokenizer).train
        (found[build],) = data.train
    (prompt, shown) = found[prompt_data], found[sft_data]
    n = len(prompt["input_ids"])
    assert shown["input_ids"][:n] == prompt["input_ids"]
    assert tokenizer.decode(prompt["input_ids"]) == prompt["prompt"]
    assert f"<|im_start|>user\n{ASK}" in prompt["prompt"]
    assert tokenizer.decode(shown["input_ids"]).endswith(f"{YES}<|im_end|>\n")
    if preference_data in found:
        pair = found[preference_data]
        assert pair["chosen_ids"][:n] == pair["rejected_ids"][:n] == prompt["input_ids"]
        for side, reply in (("chosen", YES), ("rejected", NO)):
            assert tokenizer.decode(pair[f"{side}_ids"][n:]) == f"{reply}<|im_end|>"


def test_a_csv_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'\ufeffinstruction,output\n"{ASK}","{YES}"\r\n', encoding="utf-8")
    (row,) = sft_data(config(str(path), NONE), gpt2_like()).train
    assert gpt2_like().decode(row["input_ids"]) == f"{ASK}{YES}<|endoftext|>"


def test_what_is_shown_ends_with_a_whole_character(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths are counted in tokens, of which a character may take three."""
    monkeypatch.setenv("NO_COLOR", "1")
    text = "鑫龘，麤？"
    path = write(tmp_path / "a.jsonl", {"text": text}, escaped=False)
    whole = gpt2_like()(text)["input_ids"]
    cut = 0
    for limit in range(2, len(whole) + 1):
        data = sft_data(config(path, NONE, sft={"max_length": limit}), gpt2_like())
        show(data, gpt2_like(), DataSection(inspect=1))
        out = capsys.readouterr().out
        assert "\ufffd" not in out
        shown = out.split("trained\n", 2)[2].split("\n---")[0].strip("[]")
        assert text.startswith(shown)
        cut += "\ufffd" in gpt2_like().decode(whole[:limit])
        assert readable(gpt2_like(), whole[:limit]) == shown
    assert cut > 2, "the case is what it says"


def test_mistakes_show_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": [{"role": "用户", "content": ASK}]}, True)
    with pytest.raises(UserError, match=r"a.jsonl:1: turn 1 .* has the role str '用户'; known"):
        sft_data(config(path, CHAT), chat_like())
    path = write(tmp_path / "a.jsonl", {"问题": ASK, "回答": YES}, True)
    with pytest.raises(UserError, match="has the columns 问题, 回答"):
        sft_data(config(path, CHAT), chat_like())
