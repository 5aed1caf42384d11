"""Stage 1 of encoder-decoders (T5's family): what each side reads, the loss, saving, going on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import in_process, record, rows
from _resume import apart, checkpoint, metrics, until
from _sided import ANSWERS, ASKED, KINDS, make_t5, options
from _tiny import write_jsonl
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)


@pytest.mark.parametrize("kind", KINDS)
def test_stage_1(kind: str, tmp_path: Path) -> None:
    """It ends as a folder that stock transformers loads whole and whose loss is lower; the first
    losses are those of a model that knows nothing."""
    base = make_t5(tmp_path / "base", kind)
    in_process("sft", [*options(base, tmp_path), "--sft.max_steps", "20"])
    folder = tmp_path / "run" / "sft"
    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    tokenizer = AutoTokenizer.from_pretrained(folder)
    losses = [row["loss"] for row in rows(folder / "metrics.jsonl")]
    assert losses[-1] < 0.8 * losses[0]
    prompt = tokenizer(ASKED[1], return_tensors="pt")
    target = tokenizer(ANSWERS[1], return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(**prompt, labels=target).loss < losses[0]
    assert model.generation_config.suppress_tokens[0] == 0


def by_hand(base: Path) -> float:
    """Nats a token of the replies by stock T5, without dropout, pad and unused ids excluded."""
    model = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    tokenizer, nats, tokens = AutoTokenizer.from_pretrained(base), 0.0, 0
    for prompt, answer in zip(ASKED, ANSWERS, strict=True):
        target = tokenizer(answer, return_tensors="pt").input_ids
        with torch.no_grad():
            logits = model(**tokenizer(prompt, return_tensors="pt"), labels=target).logits
        logits[..., [0, *range(len(tokenizer), 640)]] = -1e4
        nats += cross_entropy(logits[0], target[0], reduction="sum").item()
        tokens += target.shape[1]
    return nats / tokens


def test_the_loss_counts_tokens_and_not_micro_batches(tmp_path: Path) -> None:
    """The first step's, over two micro-batches of unequal length, is the mean over all tokens of
    the replies with their ends, from the start token on; stock T5 computes the same."""
    base = make_t5(tmp_path / "base", dropout_rate=0.0)
    for micro in ("1", "4"):
        words = [*options(base, tmp_path, micro), "--sft.max_steps", "1", "--sft.batch_size", "8"]
        in_process("sft", [*words, "--sft.microbatch_size", micro])
    for micro in ("1", "4"):
        (first,) = rows(tmp_path / micro / "sft" / "metrics.jsonl")
        assert first["loss"] == pytest.approx(by_hand(base), rel=1e-5)
    one, other = (
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / micro / "sft").state_dict()
        for micro in ("1", "4")
    )
    gaps = [(one[name] - other[name]).abs().max().item() for name in one]
    assert max(gaps) < 1e-3  # Adam's first step is as large as the rate, 1e-2


def test_held_out_rows_are_judged_by_all_their_tokens(tmp_path: Path) -> None:
    """The loss before training is that of stock T5 without dropout, and falls."""
    base = make_t5(tmp_path / "base")
    words = [*options(base, tmp_path), "--data.sft.test_path", str(tmp_path / "rows.jsonl")]
    in_process("sft", [*words, "--sft.max_steps", "20"])
    found = record(tmp_path / "run" / "sft")["metrics"]
    assert found["test_loss_before"] == pytest.approx(by_hand(base), rel=1e-5)
    assert found["test_loss"] < 0.8 * found["test_loss_before"]


def test_an_interrupted_run_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout included: the tensors at the end are those of a run that was not stopped."""
    base, every = make_t5(tmp_path / "base"), ["--checkpoint.every_steps", "1"]
    straight = [*options(base, tmp_path, "straight"), *every]
    stopped = [*options(base, tmp_path, "stopped"), *every]
    until(monkeypatch, "sft", straight, 2)
    expected = checkpoint(tmp_path / "straight", "sft", 2)
    until(monkeypatch, "sft", stopped, 1)
    until(monkeypatch, "sft", stopped, 2)
    assert apart(checkpoint(tmp_path / "stopped", "sft", 2), expected) == []
    in_process("sft", straight)
    in_process("sft", stopped)
    assert metrics(tmp_path / "straight" / "sft") == metrics(tmp_path / "stopped" / "sft")


def test_adapters(tmp_path: Path) -> None:
    """Merged into a whole model that stock transformers loads."""
    base = make_t5(tmp_path / "base")
    in_process("sft", [*options(base, tmp_path), "--sft.lora.rank", "4"])
    folder = tmp_path / "run" / "sft"
    model, info = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    before = AutoModelForSeq2SeqLM.from_pretrained(base)
    layer = "decoder.block.0.layer.0.SelfAttention.q.weight"
    assert not torch.equal(model.state_dict()[layer], before.state_dict()[layer])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--sft.packing", "true"], "goes without sft.packing"),
        (["--model.attention", "prefix"], "goes without model.attention prefix"),
        (["--sft.loss_on", "all"], "goes without sft.loss_on all"),
    ],
)
def test_what_it_does_not_have(more: list[str], says: str, tmp_path: Path, refused: Any) -> None:
    words = options(make_t5(tmp_path / "base"), tmp_path)
    said = refused("sft", [*words, *more], tmp_path / "run")
    assert "T5ForConditionalGeneration reads prompts by an encoder" in said
    assert says in said


def test_texts_without_turns_are_refused(tmp_path: Path, refused: Any) -> None:
    words = options(make_t5(tmp_path / "base"), tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "今天天气很好。"}] * 4)
    said = refused("sft", words, tmp_path / "run")
    assert "a text without turns has no prompt for the encoder" in said
