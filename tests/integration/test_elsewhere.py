"""Models from elsewhere in place of stages 1 and 2: `sft.path`, `reward.path`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import good, in_process, record, rows, tree
from _resume import apart, checkpoint, metrics, until
from _tiny import POSITIONS, words
from _tokenizers import chat_like
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from cores.errors import UserError
from cores.runtime.fingerprint import sha256_file

LLAMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": POSITIONS, "initializer_range": 0.25,
}  # fmt: skip


def saved(model: Any, tokenizer: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama_config(tokenizer: Any, rows: int, **more: Any) -> LlamaConfig:
    eos = tokenizer.eos_token_id
    return LlamaConfig(vocab_size=rows, eos_token_id=eos, bos_token_id=eos, **LLAMA, **more)


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As hubs have them: pad is eos, and more rows than the tokenizer has ids."""
    tokenizer = words()
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(3)
    config = llama_config(tokenizer, len(tokenizer) + 12)
    return saved(LlamaForCausalLM(config), tokenizer, tmp_path_factory.mktemp("instruct"))


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-label model of another family and tokenizer, pad eos, with a template of its own."""
    tokenizer = chat_like()
    folder = tmp_path_factory.mktemp("judge")
    torch.manual_seed(4)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=2,
        num_labels=1, pad_token_id=tokenizer.pad_token_id, initializer_range=0.25,
    )  # fmt: skip
    return saved(GPT2ForSequenceClassification(config), tokenizer, folder)


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-label model that shares the instruct model's tokenizer and template, without a pad."""
    tokenizer = words()
    tokenizer.pad_token = None
    torch.manual_seed(5)
    config = llama_config(tokenizer, len(tokenizer), num_labels=1, reward_mean=0.5)
    folder = tmp_path_factory.mktemp("sibling")
    return saved(LlamaForSequenceClassification(config), tokenizer, folder)


def given(out: Path, files: dict[str, Path], **paths: Path) -> list[str]:
    """Arguments of a run from elsewhere; model.path is not there and never looked at."""
    words = good(Path("/nowhere"), files, out)
    for stage, path in paths.items():
        words += [f"--{stage}.path", str(path)]
    return words


def stock_score(folder: Path, texts: list[str]) -> list[float]:
    """The stock model's logits, each text alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        ids = [tokenizer(t, add_special_tokens=False, return_tensors="pt") for t in texts]
        return [model(**{**i}).logits.item() for i in ids]


def test_both_from_elsewhere(tmp_path, files, instruct, judge, monkeypatch, capfd) -> None:
    """Stage 3 alone: held-out scores are stock logits of the conversation as the reward model's own
    template renders it, less the mean, over the deviation; a resumed run keeps both."""
    out, whole = tmp_path / "parts", tmp_path / "whole"
    lasting = ["--checkpoint.every_minutes", "null"]
    arguments = [[*given(o, files, sft=instruct, reward=judge), *lasting] for o in (whole, out)]
    until(monkeypatch, "ppo", arguments[0], 2)
    until(monkeypatch, "ppo", arguments[1], 1)
    assert "calibrated: mean" in capfd.readouterr().out
    until(monkeypatch, "ppo", arguments[1], 2)
    resumed = capfd.readouterr().out
    assert "calibrated: mean" not in resumed
    assert f"note: {judge} reads replies as text" in resumed
    assert "the critic starts as the policy with a head of zeros" in resumed
    assert "pad token: <|pad|> added (its pad token was eos)" in resumed
    assert apart(*(checkpoint(o, "ppo", 2) for o in (whole, out))) == []
    assert metrics(whole / "ppo.unfinished") == metrics(out / "ppo.unfinished")
    in_process("ppo", arguments[1])

    told = record(out / "ppo")
    scale = told["metrics"]["calibration"]
    assert scale["samples"] == 16
    samples = rows(out / "ppo" / "held_out_samples.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(judge)
    texts, scores = [], []
    for row in samples:
        asked = row["prompt"].split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        for side in (row["before"], row["after"]):
            turns = [("user", asked), ("assistant", side["text"])]
            said = [{"role": role, "content": text} for role, text in turns]
            texts.append(tokenizer.apply_chat_template(said, tokenize=False))
            scores.append(side["score"])
    raw = stock_score(judge, texts)
    by_hand = [(r - scale["raw_mean"]) / scale["raw_std"] for r in raw]
    assert scores == pytest.approx(by_hand, abs=2e-4)
    assert len({round(s, 3) for s in scores}) > 4

    parents = told["parents"]
    assert parents["reward"]["files"]["model.safetensors"] == sha256_file(
        judge / "model.safetensors"
    )
    assert parents["sft"]["folder"] == str(instruct)
    config = json.loads((out / "ppo" / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out / "ppo")
    assert config["pad_token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert told["vocab_size"] == config["vocab_size"]
    assert rows(out / "ppo" / "metrics.jsonl")[0]["reward_truncated"] == 0


@pytest.mark.parametrize("rank", [0, 4])
def test_one_that_shares_the_tokenizer(tmp_path, files, instruct, sibling, rank) -> None:
    """It reads the policy's ids, and the critic starts from it, in calibrated units; with adapters
    too, where it is a model of its own."""
    out = tmp_path / "run"
    more = ["--ppo.lora.rank", rank, "--ppo.critic_learning_rate", "1e-12"]
    in_process("ppo", [*given(out, files, sft=instruct, reward=sibling), *map(str, more)])
    scale = record(out / "ppo")["metrics"]["calibration"]
    row = rows(out / "ppo" / "held_out_samples.jsonl")[0]["before"]
    for folder, mean, std in (
        (sibling, 0.5 + scale["raw_mean"], scale["raw_std"]),
        (out / "ppo" / "critic", scale["reward_mean"], 1.0),
    ):
        model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            raw = model(torch.tensor([row["ids"]])).logits.item()
        assert row["score"] == pytest.approx((raw - mean) / std, abs=2e-4)


def test_stage_2_and_3_from_an_instruct_model(tmp_path, files, instruct) -> None:
    """Stage 2 trains its reward model from it, stage 3 takes both."""
    out = tmp_path / "run"
    arguments = given(out, files, sft=instruct)
    in_process("reward", arguments)
    in_process("ppo", arguments)
    parents = record(out / "ppo")["parents"]
    assert parents["sft"] == record(out / "reward")["parents"]["sft"]
    assert "calibration" not in record(out / "ppo")["metrics"]
    sizes = {record(out / stage)["vocab_size"] for stage in ("reward", "ppo")}
    assert len(sizes) == 1


def refused(stage: str, arguments: list[str], place: Path) -> str:
    """What a stage says that must leave `place` as it was."""
    before = tree(place)
    with pytest.raises(UserError) as error:
        in_process(stage, arguments)
    assert {k: v for k, v in tree(place).items() if not k.startswith(".")} == before
    return str(error.value)


def test_refusals(tmp_path, files, instruct, judge, parents) -> None:
    """Each names the key, and nothing is written."""
    out = tmp_path / "new"
    both = given(out, files, sft=instruct, reward=judge)
    for stage in ("sft", "reward"):
        message = refused(stage, both, out)
        assert message.startswith(f"{stage}.path is set: this stage is not run")
    two = tmp_path / "two"
    config = AutoModelForSequenceClassification.from_pretrained(judge).config
    config.num_labels = 3
    saved(GPT2ForSequenceClassification(config), chat_like(), two)
    bare = Path(shutil.copytree(judge, tmp_path / "bare"))
    (bare / "chat_template.jinja").unlink()
    ours = ["--output_dir", str(parents)]
    for more, said in {
        ("--reward.path", str(two)): "is a GPT2ForSequenceClassification with 3 labels",
        ("--reward.path", str(instruct)): "is a LlamaForCausalLM, and a reward model's score",
        ("--reward.path", str(bare)): "has no chat template, which conversations",
        ("--reward.path", str(tmp_path / "none")): f"reward.path: there is no folder {tmp_path}",
        ("--sft.path", "nobody/nothing"): "sft.path: 'nobody/nothing' is no local folder",
        ("--sft.path", str(judge)): "a GPT2ForSequenceClassification, a reward model perhaps,",
        ("--sft.revision", "main"): "sft.revision: is for hub ids",
        ("--ppo.critic_init", "reward"): "ppo.critic_init: the critic cannot start from",
        (*ours, "--sft.path", str(instruct)): f"{parents / 'sft'} is a finished stage too",
        (*ours, "--sft.path", "null"): f"{parents / 'reward'} is a finished stage too",
    }.items():
        place = parents if "--output_dir" in more else out
        assert said in refused("ppo", [*both, *more], place), more
