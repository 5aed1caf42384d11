"""Padding, and the printed view of the data."""

from pathlib import Path

import pytest
import torch
from _data_helpers import CHAT, NONE, config, write_jsonl
from _tokenizers import chat_like, gpt2_like, llama_like

from cores.config.data import DataSection
from cores.data import left_pad, preference_data, prompt_data, right_pad, sft_data, show
from cores.data.inspect import length_lines, readable

GREEN, GREY, RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"


def test_padding_by_hand() -> None:
    """Invariants 5, 8: masks come from lengths; a row's own pad id (pad = eos) stays unmasked."""
    rows = [[7, 9], [5, 6, 7, 9]]
    ids, mask = right_pad(rows, 9)
    assert ids.tolist() == [[7, 9, 9, 9], [5, 6, 7, 9]]
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)
    ids, mask = left_pad(rows, 9)
    assert ids.tolist() == [[9, 9, 7, 9], [5, 6, 7, 9]]
    assert mask.tolist() == [[False, False, True, True], [True] * 4]
    assert right_pad([[], [1]], 0)[1].tolist() == [[False], [True]]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")


def test_show_colours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Room?", "completion": " 好 yes"}] * 3)
    show(sft_data(config(path, CHAT), chat_like()), chat_like(), DataSection(inspect=2))
    out = capsys.readouterr().out
    assert out.startswith(f"{GREEN}trained{RESET} {GREY}untrained{RESET}\n")
    prompt = "<|im_start|>user\nRoom?<|im_end|>\n<|im_start|>assistant\n"
    assert f"{GREY}{prompt}{RESET}{GREEN} 好 yes<|im_end|>{RESET}{GREY}\n{RESET}" in out
    assert out.count("--- row ") == 2
    assert "train: 3 of 3 rows" in out


def test_show_without_colour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: None
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Room \x1b?", "completion": " yes"}])
    show(sft_data(config(path), llama_like()), llama_like(), DataSection(inspect=1))
    out = capsys.readouterr().out
    assert out.startswith("[trained] untrained\n")
    assert "<s> Room ␛?[ yes</s>]" in out
    assert "\x1b" not in out


def test_show_pairs_and_prompts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: None
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Q", "chosen": " A", "rejected": " B"}])
    show(preference_data(config(path, NONE), gpt2_like()), gpt2_like(), DataSection(inspect=5))
    out = capsys.readouterr().out
    assert "--- row 1 chosen: 4 tokens, 3 trained\nQ[ A<|endoftext|>]\n" in out
    assert "--- row 1 rejected: 4 tokens, 3 trained\nQ[ B<|endoftext|>]\n" in out
    show(prompt_data(config(path, NONE), gpt2_like()), gpt2_like(), DataSection(inspect=5))
    out = capsys.readouterr().out
    assert "--- row 1: 1 tokens\nQ\n" in out
    assert "\nrow " in out
    assert "reply" not in out


def test_length_quantiles_by_hand() -> None:
    rows = [{"input_ids": [0] * n, "labels": [-100] * 2 + [0] * (n - 2)} for n in range(3, 104)]
    table = {line[:16].strip(): line[16:].split() for line in length_lines(rows)}
    assert table == {
        "": ["p0", "p50", "p90", "p99", "max"],
        "prompt": ["2", "2", "2", "2", "2"],
        "reply": ["1", "51", "91", "100", "101"],
        "row": ["3", "53", "93", "102", "103"],
    }


def test_a_character_that_is_cut_takes_nothing_with_it() -> None:
    """Bytes that are no character spoil all bytes before them where these are tokens."""
    tokenizer = llama_like()
    ids = tokenizer("界界界", add_special_tokens=False)["input_ids"]
    assert readable(tokenizer, ids) == "界界界"
    assert readable(tokenizer, ids[:-1]) == "界界"
    assert readable(tokenizer, ids[:-2]) == "界界"
    assert readable(tokenizer, []) == ""
