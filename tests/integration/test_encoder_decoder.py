"""Stage 1 of encoder-decoders (T5's family): what each side reads, the loss, saving, going on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import in_process, record, rows
from _resume import apart, checkpoint, metrics, until
from _tiny import write_jsonl
from _tokenizers import t5_like
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    MT5Config,
    T5Config,
    UMT5Config,
)

KINDS = {"t5": T5Config, "mt5": MT5Config, "umt5": UMT5Config}
ASKED = ["用户：天空为什么是蓝的？\n小元：", "Name a fruit.\nAnswer: ", "写一句话", "Two and two?"]
ANSWERS = ["因为光会散射。", "A pear", "今天很好。\n明天更好。", "Four, I think."]
SHORT = """--template.kind none --sft.batch_size 4 --sft.microbatch_size 2 --sft.max_steps 3
--sft.learning_rate 1e-2 --data.test_fraction 0 --sft.max_length 64""".split()


def make_t5(folder: Path, kind: str = "t5", **changes: Any) -> Path:
    """A random model of the family and its tokenizer; a head of its own but in t5."""
    sizes: dict[str, Any] = {
        "vocab_size": 640, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.1,
        "tie_word_embeddings": kind == "t5", **changes,
    }  # fmt: skip
    torch.manual_seed(3)
    AutoModelForSeq2SeqLM.from_config(KINDS[kind](**sizes)).save_pretrained(folder)
    t5_like().save_pretrained(folder)
    return folder


def options(base: Path, tmp_path: Path, out: str = "run") -> list[str]:
    """Arguments of a run over eight rows, some of several turns."""
    told = [{"prompt": p, "completion": a} for p, a in zip(ASKED, ANSWERS, strict=True)]
    file = write_jsonl(tmp_path / "rows.jsonl", told * 2)
    return [
        "--model.path", str(base), "--data.sft.path", str(file),
        "--output_dir", str(tmp_path / out), *SHORT,
    ]  # fmt: skip


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


@pytest.mark.parametrize("stage", ["reward", "ppo"])
def test_later_stages_say_what_is_not_there(stage: str, tmp_path: Path, call: Any) -> None:
    words = options(make_t5(tmp_path / "base"), tmp_path)
    in_process("sft", [*words, "--sft.max_steps", "1"])
    pair = {"prompt": ASKED[1], "chosen": ANSWERS[1], "rejected": ANSWERS[3]}
    file = str(write_jsonl(tmp_path / "pairs.jsonl", [pair] * 4))
    more = ["--data.preference.path", file, "--data.prompts.path", file]
    reward = tmp_path / "reward.py"
    reward.write_text("def score(rows):\n    return [0.0] * len(rows)\n")
    own = [
        "--ppo.rewards",
        f"{{{reward}:score: 1.0}}",
        "--ppo.estimator",
        "rloo",
        "--ppo.samples_per_prompt",
        "2",
    ]
    status, _, err = call(stage, [*words, *more, *(own if stage == "ppo" else [])])
    assert status != 0
    assert "T5ForConditionalGeneration is an encoder-decoder, which goes through stage 1" in err
