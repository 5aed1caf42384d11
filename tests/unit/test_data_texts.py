"""Texts without turns in stage 1: joined, cut, split; and rows for programs (inspect_json)."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, NONE, config, write_jsonl
from _tokenizers import chat_like, gpt2_like

from cores.config import parse_config
from cores.config.data import DataSection
from cores.config.schema import Config
from cores.data import preference_data, prompt_data, sft_data, show
from cores.errors import UserError

TEXTS = ["The towel is in room 12.", "你好，今天天气很好。", "Good morning."]


def with_data(made: Config, **fields: Any) -> Config:
    return replace(made, data=replace(made.data, **fields))


def texts(tmp_path: Path, **sft: Any) -> Config:
    return config(write_jsonl(tmp_path / "t.jsonl", [{"text": t} for t in TEXTS]), NONE, sft=sft)


def test_joined_texts_are_one_endless_text(tmp_path: Path) -> None:
    """No BOS, no stop token, no boundary: rows of exactly max_length, the rest in the last one."""
    made = with_data(texts(tmp_path, max_length=11), join="\n")
    data = sft_data(made, gpt2_like())
    ids = [i for row in data.train for i in row["input_ids"]]
    assert [len(row["input_ids"]) for row in data.train][:-1] == [11] * (len(ids) // 11)
    assert gpt2_like().decode(ids) == "".join(f"\n{text}" for text in TEXTS)
    assert all(row["labels"] == row["input_ids"] for row in data.train)
    assert (data.report.train.read, data.report.train.used) == (3, 3)


def test_a_joined_text_of_one_token_is_part_of_the_whole(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "t.jsonl", [{"text": text} for text in ("a", "b", "cd")])
    data = sft_data(with_data(config(path, NONE), join=""), gpt2_like())
    assert gpt2_like().decode(data.train[0]["input_ids"]) == "abcd"


def test_pairs_that_are_too_long_are_dropped_where_rows_are(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": " b" * 9, "rejected": " c"}]
    rows += [{"prompt": "a", "chosen": " b", "rejected": " c"}]
    made = config(write_jsonl(tmp_path / "p.jsonl", rows), NONE, reward={"max_length": 6})
    assert len(preference_data(made, gpt2_like()).train) == 2
    data = preference_data(with_data(made, too_long="drop"), gpt2_like())
    assert len(data.train) == 1
    assert "1 longer than reward.max_length" in data.report.lines()[0]


def test_each_joined_row_has_the_opening(tmp_path: Path) -> None:
    made = with_data(texts(tmp_path, max_length=20), join="\n\n", join_opening="Labels: a, b")
    data, opening = sft_data(made, gpt2_like()), "Labels: a, b"
    rows = [gpt2_like().decode(row["input_ids"]) for row in data.train]
    assert len(rows) > 1
    left = [f"\n\n{text}" for text in TEXTS]
    for row in rows:  # each begins with a text, never with what the row before had no room for
        assert row.startswith(opening)
        rest = row.removeprefix(opening).rstrip("\ufffd")
        while rest:
            text = left.pop(0)
            assert rest.startswith(text) or text.startswith(rest)
            rest = rest[len(text) :]
    assert not left
    lost = sum(len(row["input_ids"]) == 20 for row in data.train)
    assert data.report.train.truncated == lost
    with pytest.raises(UserError, match=r"data.join_opening has .* sft.max_length"):
        sft_data(with_data(made, join_opening="many words " * 20), gpt2_like())


def test_what_becomes_of_rows_that_are_too_long(tmp_path: Path) -> None:
    """cut loses the end, drop the row, split nothing; each is counted or whole."""
    long = texts(tmp_path, max_length=4)
    ids = [gpt2_like()(f"{t}<|endoftext|>")["input_ids"] for t in TEXTS]
    cut = sft_data(long, gpt2_like())
    assert [row["input_ids"] for row in cut.train] == [i[:4] for i in ids]
    with pytest.raises(UserError, match=r"3 longer than sft\.max_length"):
        sft_data(with_data(long, too_long="drop"), gpt2_like())
    split = sft_data(with_data(long, too_long="split"), gpt2_like())
    assert [i for row in split.train for i in row["input_ids"]] == [i for row in ids for i in row]
    assert max(len(row["input_ids"]) for row in split.train) == 4


@pytest.mark.parametrize("fields", [{"join": "\n\n"}, {"too_long": "split"}])
def test_windows_overlap(tmp_path: Path, fields: dict[str, Any]) -> None:
    """A row begins with the last tokens of the one before, and each token is learned once."""
    apart, lapped = (
        sft_data(with_data(texts(tmp_path, max_length=7), **fields, overlap=n), gpt2_like()).train
        for n in (0, 3)
    )
    assert max(len(row["input_ids"]) for row in lapped) == 7
    repeats = [a["input_ids"][-3:] == b["input_ids"][:3] for a, b in pairwise(lapped)]
    assert sum(repeats) >= len(lapped) - (len(TEXTS) if "too_long" in fields else 1)
    learned = [
        [label for row in rows for label in row["labels"] if label >= 0] for rows in (apart, lapped)
    ]
    assert learned[0] == learned[1]
    assert len(lapped) > len(apart)


@pytest.mark.parametrize("fields", [{"join": "\n"}, {"too_long": "split"}])
def test_texts_alone_are_joined_or_split(tmp_path: Path, fields: dict[str, Any]) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "two", "completion": "four"}])
    with pytest.raises(UserError, match=r"data\.(join|too_long): is for texts without turns"):
        sft_data(with_data(config(path), **fields), gpt2_like())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.join_opening", "x"], "join_opening: has no effect without data.join"),
        (["--data.join", "x", "--data.join_opening", "y", "--data.overlap", "3"],
         "data.overlap: has no effect with data.join_opening"),
        (["--data.join", "x", "--data.too_long", "drop"],
         "data.too_long: has no effect with data.join"),
        (["--data.join", "x", "--sft.packing", "true"], "sft.packing: data.join fills"),
        (["--data.sft.path", "a.jsonl", "--data.inspect_json", "./a.jsonl"], "would be lost"),
        (["--template.marked", "true"], "template.marked: has no effect with template.kind chat"),
        (["--template.kind", "roles", "--template.user.opening", "x"], "is for assistant turns"),
        (["--template.kind", "roles", "--template.assistant.train", "markers"], "teaches nothing"),
        (["--template.kind", "roles", "--template.user.train", "all", "--sft.loss_on", "all"],
         "template.user.train: has no effect with sft.loss_on all"),
        (["--template.kind", "none", "--template.bos", "false", "--template.chat_template", "x"],
         "template.chat_template: has no effect with template.kind none"),
    ],
)  # fmt: skip
def test_options_without_effect(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_config(words, "stage.py", "A stage.")
    assert said in str(caught.value)


def test_rows_for_programs(tmp_path: Path) -> None:
    """Training rows, then held-out ones: ids, labels, and segments that hold the whole row."""
    talk = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "早上好"}]
    row = {"messages": talk, "chosen": "早上好", "rejected": "nine"}
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    file = tmp_path / "out.jsonl"
    section = DataSection(inspect_json=str(file))

    def told(data: Any) -> Any:
        show(data, chat_like(), section)
        (line,) = file.read_text(encoding="utf-8").splitlines()
        return json.loads(line)

    talk_only = write_jsonl(tmp_path / "talk.jsonl", [{"messages": talk}])
    data = sft_data(config(talk_only, CHAT), chat_like())
    line = told(data)
    assert line["ids"] == data.train[0]["input_ids"]
    assert line["labels"] == data.train[0]["labels"]
    assert line["segments"] == [
        ["<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n", False],
        ["早上好<|im_end|>", True],
        ["\n", False],
    ]
    pair = told(preference_data(config(path, CHAT), chat_like()))
    assert pair["chosen"]["segments"][1] == ["早上好<|im_end|>", True]
    assert pair["rejected"]["segments"][1] == ["nine<|im_end|>", True]
    prompt = told(prompt_data(config(path, CHAT), chat_like()))
    assert prompt["segments"] == [[line["segments"][0][0], False]]
    held = config(write_jsonl(tmp_path / "t.jsonl", [{"messages": talk}]), CHAT)
    held = replace(held, data=replace(held.data, sft=replace(held.data.sft, test_path=path)))
    show(sft_data(held, chat_like()), chat_like(), section)
    lines = [json.loads(text) for text in file.read_text(encoding="utf-8").splitlines()]
    assert [line.get("held_out", False) for line in lines] == [False, True]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    data = sft_data(texts(tmp_path), gpt2_like())
    with pytest.raises(UserError, match=r"data.inspect_json: .* cannot be written \(Is a dir"):
        show(data, gpt2_like(), DataSection(inspect_json=str(tmp_path)))


def test_a_text_file_of_prompts_is_a_prompt_a_line(tmp_path: Path) -> None:
    """In stage 3, where the whole file was one prompt without a word: PPO trained on that alone."""
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"a towel\r\n\n a taxi \rno key")
    made = with_data(config(str(path), NONE), test_fraction=0.0)
    data = prompt_data(made, gpt2_like())
    assert [row["prompt"] for row in data.train] == ["a towel", "a taxi", "no key"]
    prompts = made.data.prompts
    assert (
        len(prompt_data(with_data(made, prompts=replace(prompts, limit=2)), gpt2_like()).train) == 2
    )
    whole = with_data(made, prompts=replace(prompts, format="text"))
    assert len(prompt_data(whole, gpt2_like()).train) == 1
    path.write_text(" \n")
    with pytest.raises(UserError, match=r"data\.prompts\.path .*prompts\.txt: holds no prompt"):
        prompt_data(made, gpt2_like())
