"""The three scripts one after the other, as a user runs them, and what they leave."""

import re
from pathlib import Path

import pytest
import torch
from _chain import Chain, run_chain
from _helpers import (
    ACCELERATE,
    FEW_STEPS,
    GPT2,
    NO_ROLES,
    SCRIPTS,
    record,
    rows,
    sha256,
    sources,
    tree,
)
from _tiny import POSITIONS
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from cores.config import parse_config, plain

LORA = [word for s in SCRIPTS for word in (f"--{s}.lora.rank", "2")]
LORA += [f"--{s}.learning_rate=0.01" for s in ("sft", "reward")]
LORA += [f"--ppo.{role}_learning_rate=0.01" for role in ("actor", "critic")]
PICKLE_NAMES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
NUMBER = r"[+-]?[\d.e+-]+"
OUR_LINES = [
    r"doctor: .+",
    r"old log-probs: the engine's differ from the trainer's by .*; from here on they are the .*",
    r"(train|test): \d+ of \d+ rows of .*",
    r"asked in stage 2's training pairs too: .*",
    r"pad token: .*",
    r"one base: actor, reference, critic, reward model",
    r"(sft|reward|ppo): \w+, [\d.]+ M weights(, [\d.]+ M trained)?, CPU, fp32, \d+ steps",
    rf"(sft|reward) \d+/\d+(  \w+ {NUMBER})+  \d+ tok/s(  \d+:\d\d left)?  [\d.]+ GiB",
    rf"held-out loss {NUMBER} -> {NUMBER} nats a token",
    rf"held-out accuracy {NUMBER} on \d+ pairs \(the longer reply wins: {NUMBER}\)",
    rf"calibrated: mean {NUMBER}, deviation {NUMBER} -> 0, 1",
    r"(before|after): score .* \(\d+ held-out prompts, 95% intervals\)",
    r"ppo \d+/\d+  score .* tok/s(  \d+:\d\d left)?  [\d.]+ GiB",
    r"sample: .* -> .* \(score [+-]\d+\.\d\d\)",
    r"wrote .* in \d+ s",
    r"next: .*",
    r"doctor: .*",
]


@pytest.fixture(scope="module")
def gpt2_chain(tmp_path_factory, gpt2, files) -> Chain:
    """configs/gpt2.yaml in this process."""
    words = ["--config", str(GPT2), *sources(files), *FEW_STEPS]
    return run_chain(tmp_path_factory.mktemp("runs") / "new" / "gpt2", gpt2, words)


@pytest.fixture(scope="module")
def llama_chain(tmp_path_factory, llama, files) -> Chain:
    """The same file with a chat model and adapters in every stage, under accelerate launch."""
    words = ["--config", str(GPT2), *sources(files), *FEW_STEPS, *NO_ROLES, *LORA, "--seed", "2"]
    return run_chain(tmp_path_factory.mktemp("runs") / "llama", llama, words, ACCELERATE)


@pytest.fixture(params=["gpt2", "llama"])
def chain(request) -> Chain:
    """Both chains in turn."""
    return request.getfixturevalue(f"{request.param}_chain")


def stage_rows(folder: Path) -> list[list[int]]:
    """Two rows of ids of unlike length."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["please bring a towel to room 1", "yes of course"]
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


def until(ids: list[int], stop: int) -> int:
    """Number of ids before `stop`."""
    return ids.index(stop) if stop in ids else len(ids)


def test_nothing_but_our_lines(chain: Chain) -> None:
    """No warning, progress bar or advice of a library reaches the screen."""
    for stage, done in chain.runs.items():
        assert done.stderr == ""
        lines = done.stdout.splitlines()
        foreign = [x for x in lines if not any(re.fullmatch(p, x) for p in OUR_LINES)]
        assert foreign == []
        assert lines[-2].startswith(f"wrote {chain.out / stage} in ")
        follows = {"sft": "stage2_rm.py", "reward": "stage3_ppo.py", "ppo": "scripts/chat.py"}
        assert f" {follows[stage]} --config " in lines[-1]
        assert sum(line.startswith(f"{stage} ") for line in lines) >= 2


def test_policies_load_anywhere(chain: Chain) -> None:
    """Invariant 30: sft and ppo are ordinary causal models with a vocabulary that fits."""
    for stage in ("sft", "ppo"):
        folder = chain.out / stage
        model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert not any(info.values()), info
        assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
        assert model.config.pad_token_id == tokenizer.pad_token_id
        assert len(tokenizer) <= model.get_input_embeddings().weight.shape[0]
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        ids = torch.tensor([stage_rows(folder)[0]] * 64)
        replies = model.generate(ids, max_new_tokens=20, do_sample=True, top_k=0)
        for reply in replies[:, ids.shape[1] :].tolist():
            assert tokenizer.pad_token_id not in reply[: until(reply, tokenizer.eos_token_id)]


def test_scalar_models_load_anywhere(chain: Chain) -> None:
    """Invariant 30: reward and critic are stock classifiers of one label."""
    for place in ("reward", "ppo/critic"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            chain.out / place, output_loading_info=True
        )
        assert not any(info.values()), info
        assert model.config.num_labels == 1
        reward_mean = record(chain.out / "reward")["reward_mean"]
        assert model.config.reward_mean == pytest.approx(reward_mean)


def test_stock_score_left_and_right_padded(chain: Chain) -> None:
    """Invariant 25: padded right, or left with position ids, the stock head reads the same token.

    In fp32 to 1e-5, the row alone being the yardstick.
    """
    folder = chain.out / "reward"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    pad = model.config.pad_token_id
    long, short = stage_rows(folder)
    gap = len(long) - len(short)
    assert gap > 0
    mask = [1] * len(short) + [0] * gap
    right = {"input_ids": [long, short + [pad] * gap], "attention_mask": [[1] * len(long), mask]}
    left = {
        "input_ids": [long, [pad] * gap + short],
        "attention_mask": [[1] * len(long), mask[::-1]],
        "position_ids": [list(range(len(long))), [0] * gap + list(range(len(short)))],
    }
    with torch.no_grad():
        alone = [model(torch.tensor([ids])).logits.item() for ids in (long, short)]
        for batch in (right, left):
            tensors = {name: torch.tensor(value) for name, value in batch.items()}
            assert model(**tensors).logits[:, 0].tolist() == pytest.approx(alone, abs=1e-5)
    assert abs(alone[0] - alone[1]) > 1e-3


def test_no_pickled_file(chain: Chain) -> None:
    """Weights are safetensors, everything else text."""
    found = [p for p in chain.out.rglob("*") if p.is_file()]
    assert len(found) > 20
    for path in found:
        assert path.suffix not in PICKLE_NAMES
        assert not path.read_bytes().startswith(PICKLE_MAGIC), path
        if path.suffix != ".safetensors":
            path.read_text(encoding="utf-8")


def test_stage_json(chain: Chain, files: dict[str, Path]) -> None:
    """Configuration, versions, data, parents, metrics, time."""
    sources_of = {"sft": "sft", "reward": "preference", "ppo": "preference"}
    parents_of = {"sft": [], "reward": ["sft"], "ppo": ["sft", "reward"]}
    expected = plain(parse_config(chain.arguments, "x", "x"))
    for stage, source in sources_of.items():
        facts = record(chain.out / stage)
        assert facts["stage"] == stage
        assert facts["config"] == expected
        assert {"torch", "transformers", "trl", "datasets", "peft"} <= set(facts["versions"])
        assert 0 < facts["seconds"] < 120
        digests = {files[source].name: sha256(files[source])}
        read = 0
        for split in ("train", "test"):
            report = facts["data"][split]
            assert report["path"] == str(files[source])
            assert report["fingerprints"] == digests
            assert report["used"] + sum(report["dropped"].values()) == report["read"]
            read += report["read"]
        assert read == 60
        for parent in parents_of[stage]:
            assert facts["parents"][parent]["files"] == record(chain.out / parent)["files"]
        named = {n: d for n, d in tree(chain.out / stage).items() if n in facts["files"]}
        assert facts["files"] == named
        assert "model.safetensors" in named
    base = record(chain.out / "sft")["parents"]["base"]
    assert base["folder"] == str(chain.base)
    assert base["files"]["model.safetensors"] == sha256(chain.base / "model.safetensors")


def test_metrics_of_the_stages(chain: Chain) -> None:
    """Invariant 22: optimizer steps = updates * epochs * minibatches; the numbers exist."""
    sft, reward, ppo = (record(chain.out / stage)["metrics"] for stage in SCRIPTS)
    assert sft["test_loss"] > 0
    assert 0 <= reward["accuracy"] <= 1
    assert reward["accuracy_longer"] == 1  # every chosen reply of the file is the longer
    assert reward["calibration"]["samples"] == 16
    assert ppo["optimizer_steps"] == 2 * 1 * 2
    assert ppo["before"]["prompts"] == ppo["after"]["prompts"] == 4
    assert ppo["before"]["kl"] == 0  # invariant 10


def test_metrics_and_samples(chain: Chain) -> None:
    """metrics.jsonl always, sample replies when asked."""
    for stage in SCRIPTS:
        entries = rows(chain.out / stage / "metrics.jsonl")
        assert [e["step"] for e in entries] == ([1, 2] if stage == "ppo" else [1, 2, 3])
    names = {"score", "kl", "entropy", "clip_fraction", "explained_variance", "response_length"}
    assert names | {"tokens_per_second"} <= set(entries[0])
    samples = rows(chain.out / "ppo" / "samples.jsonl")
    assert [s["update"] for s in samples] == [1] * 4 + [2] * 4
    assert all(s["prompt"] and "reply" in s and "score" in s for s in samples)
    held_out = rows(chain.out / "ppo" / "held_out_samples.jsonl")
    assert len(held_out) == 4
    assert {"prompt", "before", "after"} <= set(held_out[0])


def test_held_out_scores_by_the_stock_classifier(llama_chain: Chain) -> None:
    """Invariant 25: a score on paper = the stock logit less reward_mean, to its four digits.

    This tokenizer has a token a word, so that a reply's ids follow from its text.
    """
    folder = llama_chain.out / "reward"
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = set()
    for sample in rows(llama_chain.out / "ppo" / "held_out_samples.jsonl"):
        for side in ("before", "after"):
            reply = sample[side]["text"].split()
            ended = [tokenizer.eos_token_id] if len(reply) < 8 else []
            prompt = tokenizer(sample["prompt"], add_special_tokens=False)["input_ids"]
            ids = prompt + tokenizer.convert_tokens_to_ids(reply) + ended
            with torch.no_grad():
                logit = model(torch.tensor([ids])).logits.item()
            assert logit - model.config.reward_mean == pytest.approx(
                sample[side]["score"], abs=1.5e-4
            )
            lengths.add(len(reply))
    assert len(lengths) > 1


def test_adapters_are_kept_beside_the_merged_model(llama_chain: Chain) -> None:
    """Invariant 30: what a stage started from plus adapter/ gives the merged model's logits."""
    out = llama_chain.out
    pairs = {"sft": llama_chain.base, "ppo": out / "sft"}
    ids = torch.tensor([stage_rows(out / "sft")[0]])
    for stage, base in pairs.items():
        start = AutoModelForCausalLM.from_pretrained(base)
        merged = AutoModelForCausalLM.from_pretrained(out / stage)
        with torch.no_grad():
            before = start(ids).logits
            adapted = PeftModel.from_pretrained(start, str(out / stage / "adapter"))
            after = adapted(ids).logits
            torch.testing.assert_close(merged(ids).logits, after, rtol=0, atol=1e-5)
        assert not torch.allclose(before, after, atol=1e-4)
    for folder in ("reward", "ppo/critic"):
        assert (out / folder / "adapter" / "adapter_model.safetensors").is_file()


def test_full_training_leaves_no_adapter(gpt2_chain: Chain) -> None:
    """adapter/ means that there were adapters."""
    assert not list(gpt2_chain.out.rglob("adapter"))


def test_pad_token_is_added_once(gpt2_chain: Chain) -> None:
    """Invariant 8: pad == eos is resolved in stage 1, and later stages inherit it."""
    said = [stage for stage, done in gpt2_chain.runs.items() if "pad token:" in done.stdout]
    assert said == ["sft"]
    base = AutoTokenizer.from_pretrained(gpt2_chain.base)
    tokenizer = AutoTokenizer.from_pretrained(gpt2_chain.out / "ppo")
    assert (base.pad_token, tokenizer.pad_token) == (base.eos_token, "<|pad|>")
    assert tokenizer.pad_token_id == len(base)
    weights = AutoModelForCausalLM.from_pretrained(gpt2_chain.out / "sft")
    assert weights.config.vocab_size == len(base) + 1
    assert weights.config.n_positions == POSITIONS
