"""The data of each stage from files: split, truncated, dropped, counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import CHAT, NONE, ROLES, config, write_jsonl
from _tokenizers import CHATML, chat_like, gpt2_like, llama_like
from transformers import PreTrainedTokenizerFast

from cores.config.template import TemplateSection
from cores.data import StageData, preference_data, prompt_data, sft_data
from cores.data.mixture import held_out
from cores.errors import UserError

STAGES = (sft_data, preference_data, prompt_data)
MERGED = "prompt and reply merge into one token under the chat template"


def pairs(n: int) -> list[dict[str, str]]:
    return [
        {"prompt": f"Room {i}?", "chosen": f" Of course, {i}.", "rejected": " No."}
        for i in range(n)
    ]


def check_counts(data: StageData) -> None:
    for name, split in data.report.splits().items():
        assert split.used == len(getattr(data, name))
        assert split.read == split.used + sum(split.dropped.values())


def refused(build: Callable[..., StageData], *arguments: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(*arguments)
    return str(caught.value)


def test_sft_rows_by_hand(tmp_path: Path) -> None:
    """Invariant 27: labels are the completion's tokens plus EOS."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Room 1?", "completion": " Yes."}])
    tokenizer = gpt2_like()
    data = sft_data(config(path), tokenizer)
    prompt, reply = (tokenizer(text)["input_ids"] for text in ("Room 1?", " Yes."))
    end = tokenizer.eos_token_id
    assert data.train == [
        {"input_ids": [*prompt, *reply, end], "labels": [-100] * len(prompt) + [*reply, end]}
    ]
    assert data.test == []


def test_preference_rows_by_hand(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pairs(1))
    tokenizer = llama_like()
    (row,) = preference_data(config(path), tokenizer).train
    prompt = tokenizer("Room 0?")["input_ids"]
    assert row["prompt_length"] == len(prompt)
    for side, reply in (("chosen", " Of course, 0."), ("rejected", " No.")):
        assert row[f"{side}_ids"][: len(prompt)] == prompt
        assert tokenizer.decode(row[f"{side}_ids"]) == f"<s> Room 0?{reply}</s>"


def test_prompt_rows_by_hand(tmp_path: Path) -> None:
    columns = {"prompt": "Room 1?", "answer": 12, "tags": ["a"], "note": None}
    path = write_jsonl(tmp_path / "a.jsonl", [columns])
    tokenizer = chat_like()
    (row,) = prompt_data(config(path, CHAT), tokenizer).train
    text = "<|im_start|>user\nRoom 1?<|im_end|>\n<|im_start|>assistant\n"
    assert row == {
        "input_ids": tokenizer(text)["input_ids"],
        "prompt": text,
        "turns": [{"role": "user", "content": "Room 1?"}],
        "row": columns,
    }


@pytest.mark.parametrize(
    ("template", "make"), [(NONE, gpt2_like), (ROLES, llama_like), (CHAT, chat_like)]
)
def test_one_file_for_all_stages(
    tmp_path: Path, template: TemplateSection, make: Callable[[], PreTrainedTokenizerFast]
) -> None:
    """Invariants 5, 25: prompts are prefixes in every stage, and pairs end with the stop token
    that replies of stage 3 end with."""
    rows = [
        {"instruction": f"Name {i}", "input": "room\n" * (i % 2), "output": f"It is {i}"}
        | {"chosen": f" Sure, {i}", "rejected": "\n不 no"}
        for i in range(60)
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    tokenizer = make()
    sft, pref, prompts = (
        build(config(path, template, test_fraction=0.3), tokenizer) for build in STAGES
    )
    assert len(sft.test) == len(pref.test) == len(prompts.test) > 5
    for side in ("train", "test"):
        for demonstration, pair, prompt in zip(
            *(getattr(data, side) for data in (sft, pref, prompts)), strict=True
        ):
            ids = prompt["input_ids"]
            n = len(ids)
            assert demonstration["input_ids"][:n] == ids
            assert demonstration["labels"][:n] == [-100] * n
            assert demonstration["labels"][n] != -100
            assert pair["prompt_length"] == n
            assert pair["chosen_ids"][:n] == pair["rejected_ids"][:n] == ids
            assert pair["chosen_ids"][-1] == tokenizer.eos_token_id
            assert pair["rejected_ids"][-1] == tokenizer.eos_token_id


def test_the_split_follows_the_first_user_turn(tmp_path: Path) -> None:
    """Independent of order, stage, seed and of what else is in the file."""
    rows = pairs(200)
    path = write_jsonl(tmp_path / "a.jsonl", rows + rows[:50])
    back = write_jsonl(tmp_path / "b.jsonl", rows[150:0:-1])
    tokenizer = gpt2_like()

    def prompts(data: StageData, side: str) -> set[str]:
        return {row["prompt"] for row in getattr(data, side)}

    all_rows = prompt_data(config(path, test_fraction=0.2), tokenizer)
    some_rows = prompt_data(config(back, test_fraction=0.2), tokenizer)
    assert not prompts(all_rows, "train") & prompts(all_rows, "test")
    assert prompts(some_rows, "test") <= prompts(all_rows, "test")
    assert prompts(some_rows, "train") <= prompts(all_rows, "train")
    expected = {row["prompt"] for row in rows if held_out(row["prompt"], 0.2)}
    assert prompts(all_rows, "test") == expected
    assert 20 < len(expected) < 60, "a fifth of 200, give or take 3.5 standard deviations"
    assert prompt_data(config(path), tokenizer).test == []


def test_the_split_by_hand() -> None:
    """sha256('Q') begins 4ae81572 (hashlib aside: `printf Q | sha256sum`): 0.2926 of the range."""
    assert not held_out("Q", 0.2926)
    assert held_out("Q", 0.2927)
    assert not held_out("Q", 0.0)


def test_held_out_rows_of_their_own(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", pairs(20))
    other = write_jsonl(tmp_path / "b.jsonl", [{"prompt": "Other?"}, {"prompt": ""}])
    data = prompt_data(config(path, test_fraction=0.5, source={"test_path": other}), gpt2_like())
    assert len(data.train) == 20
    assert [row["prompt"] for row in data.test] == ["Other?"]
    assert data.report.to_json()["test"]["path"] == other
    assert data.report.to_json()["test"]["dropped"] == {"empty prompt": 1}
    write_jsonl(tmp_path / "b.jsonl", [{"prompt": ""}])
    source = {"test_path": other}
    assert "no held-out row" in refused(prompt_data, config(path, source=source), gpt2_like())


def test_sft_truncation(tmp_path: Path) -> None:
    rows = [{"prompt": "Room?", "completion": c} for c in (" Yes.", " Good morning" * 9)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    tokenizer = gpt2_like()
    whole = sft_data(config(path), tokenizer).train
    limit = len(whole[0]["input_ids"])
    data = sft_data(config(path, sft={"max_length": limit}), tokenizer)
    assert data.train == [whole[0], {k: values[:limit] for k, values in whole[1].items()}]
    assert data.report.train.truncated == 1
    check_counts(data)
    prompt = sum(label == -100 for label in whole[0]["labels"])
    message = refused(sft_data, config(path, sft={"max_length": prompt}), tokenizer)
    assert "2 no trained token within sft.max_length" in message
    assert len(sft_data(config(path, sft={"max_length": prompt + 1}), tokenizer).train) == 2


def test_pairs_dropped_and_truncated(tmp_path: Path) -> None:
    """Invariant 26: pairs that are equal, or that truncation makes equal, are dropped and
    counted."""
    same = " It is the very same beginning"
    rows = [
        {"prompt": "Q", "chosen": " A", "rejected": " B"},
        {"prompt": "Q", "chosen": " A", "rejected": " A"},
        {"prompt": "Q", "chosen": same * 3 + " A", "rejected": same * 3 + " B"},
        {"prompt": "Q", "chosen": same * 3, "rejected": " B"},
        {"prompt": "Room 12? " * 20, "chosen": " A", "rejected": " B"},
        {"prompt": "Q", "chosen": " ", "rejected": " B"},
        {"prompt": "", "chosen": " A", "rejected": " B"},
    ]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = preference_data(config(path, reward={"max_length": 20}), gpt2_like())
    check_counts(data)
    assert [len(row["chosen_ids"]) for row in data.train] == [4, 20]
    assert data.report.train.truncated == 1
    assert data.report.to_json()["train"]["dropped"] == {
        "empty reply": 1,
        "empty prompt": 1,
        "chosen equals rejected": 1,
        "equal after truncation to reward.max_length": 1,
        "prompt as long as reward.max_length": 1,
    }


def test_a_prompt_that_fills_the_limit(tmp_path: Path) -> None:
    """One token of the replies must remain, and here it differs."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Room?", "chosen": "A", "rejected": "B"}])
    length = len(gpt2_like()("Room?")["input_ids"])
    message = refused(preference_data, config(path, reward={"max_length": length}), gpt2_like())
    assert "1 prompt as long as reward.max_length" in message
    data = preference_data(config(path, reward={"max_length": length + 1}), gpt2_like())
    assert len(data.train[0]["chosen_ids"]) == length + 1


def test_long_prompts_are_dropped(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Room?"}, {"prompt": "Room? " * 9}])
    tokenizer = gpt2_like()
    length = len(tokenizer("Room?")["input_ids"])
    data = prompt_data(config(path, ppo={"max_prompt_length": length}), tokenizer)
    assert [row["prompt"] for row in data.train] == ["Room?"]
    assert data.report.train.dropped == {"prompt longer than ppo.max_prompt_length": 1}
    message = refused(prompt_data, config(path, ppo={"max_prompt_length": length - 1}), tokenizer)
    assert "2 prompt longer than ppo.max_prompt_length" in message
    assert "data.prompts" in message


def test_the_pad_token_inside_a_row(tmp_path: Path) -> None:
    """Invariants 8, 25: a stock head would read the token before it; with pad = eos every row has
    it and none is dropped."""
    rows = [{"prompt": "Q", "completion": " A"}, {"prompt": "Q <|pad|>", "completion": " A"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = sft_data(config(path, CHAT), chat_like())
    assert data.report.train.dropped == {"contains the pad token": 1}
    assert len(sft_data(config(path), gpt2_like()).train) == 2


def test_merging_rows_are_dropped_under_chat(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=chat_like().backend_tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    # the generation prompt ends with a space, which GPT-2's splitting joins to the word after it
    tokenizer.chat_template = CHATML.replace("assistant\n' }}", "assistant\n ' }}").replace(
        "['role'] + '\n'", "['role'] + ('\n ' if message['role'] == 'assistant' else '\n')"
    )
    replies = ["the day", "xx", "\nday"]
    rows = [{"prompt": "Q", "completion": r, "chosen": r, "rejected": "x"} for r in replies]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    start = tokenizer("\n ")["input_ids"]
    whole = [tokenizer(f"\n {reply}")["input_ids"] for reply in replies]
    merges = sum(ids[: len(start)] != start for ids in whole)
    assert 0 < merges < 3, "the case is what it says"
    for build in (sft_data, preference_data):
        data = build(config(path, CHAT), tokenizer)
        assert data.report.train.dropped == {MERGED: merges}
        check_counts(data)
    assert sft_data(config(path, NONE), tokenizer).report.train.dropped == {}


def test_nothing_left_names_reasons(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Q", "completion": ""}] * 3)
    message = refused(sft_data, config(path), gpt2_like())
    assert "3 empty reply" in message
    assert "data.sft" in message
    inside = next(str(i) for i in range(99) if held_out(str(i), 0.5))
    path = write_jsonl(tmp_path / "b.jsonl", [{"prompt": inside}])
    message = refused(prompt_data, config(path, test_fraction=0.5), gpt2_like())
    assert "data.test_fraction" in message


def test_loss_on_reaches_only_sft(tmp_path: Path) -> None:
    talk = [
        {"role": role, "content": text}
        for role, text in (("user", "A"), ("assistant", " B"), ("user", "C"), ("assistant", " D"))
    ]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": talk}])
    counts = {}
    for loss_on in ("assistant", "last", "all"):
        (row,) = sft_data(config(path, sft={"loss_on": loss_on}), gpt2_like()).train
        counts[loss_on] = sum(label != -100 for label in row["labels"])
    assert counts == {"assistant": 6, "last": 3, "all": 8}
    (prompt,) = prompt_data(config(path), gpt2_like()).train
    assert prompt["prompt"] == "A B<|endoftext|>C"


def test_turns_after_the_reply_are_counted(tmp_path: Path) -> None:
    talk = [{"role": r, "content": "x"} for r in ("user", "assistant", "user")]
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": talk}])
    (line,) = sft_data(config(path), gpt2_like()).report.lines()
    assert line.endswith("; lost turns after the last reply: 1")


def test_text_needs_no_template(tmp_path: Path) -> None:
    """Plain text can be trained on with a tokenizer that has no chat template."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "Hello you"}])
    (row,) = sft_data(config(path, CHAT), gpt2_like()).train
    assert row["input_ids"] == row["labels"]
    assert gpt2_like().decode(row["input_ids"]) == "Hello you<|endoftext|>"
    (row,) = sft_data(config(path, CHAT), llama_like()).train
    assert row["input_ids"][0] == llama_like().bos_token_id
