"""Stages 1 and 2: accumulation, held-out figures, calibration."""

import inspect
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import (
    KINDS,
    LAUNCH,
    PAD,
    PROMPTS,
    causal,
    classifier,
    largest_difference,
    parameters,
    policy_of,
    ppo_config,
    reward_folder,
    sft_folder,
    toy_tokenizer,
)
from _stages import begun
from _training import gradient_descent, pairs, random_rows, sft_rows, training_config
from transformers import AutoModelForSequenceClassification, Trainer

from cores.config import Config, LoraSection
from cores.data import DataReport, SplitReport, StageData
from cores.draws import uniforms
from cores.errors import UserError
from cores.models import ScalarModel, load_scalar, save_model
from cores.rollout import Rollout
from cores.rollout.graph.buffers import StaticCache
from cores.run import StageRun
from cores.training import calibration, lasting
from cores.training.calibration import calibrate, policy_engine, score_rows
from cores.training.reward import figures, init_head, reward_model, train_reward
from cores.training.sft import collate, held_out_loss, train_and_judge, train_sft
from scripts.evaluation.stats import wins


def files(run: StageRun) -> set[str]:
    return {p.name for p in run.path.rglob("*") if p.is_file()}


LEFT = {"metrics.jsonl", "log.txt", "state.json", "manifest.json", "weights.safetensors",
        "exp_avg.safetensors", "exp_avg_sq.safetensors", "step.safetensors"}  # fmt: skip
"""Of a run that is not finished, behind its last step."""


def test_private_methods_of_the_trainer() -> None:
    """Each that is replaced is named, is still transformers' and takes what ours takes: a release
    that renames one would call its own."""
    named = set(re.findall(r"`(_\w+)`", lasting.__doc__ or ""))
    ours = {name for name in vars(lasting.Lasting) if hasattr(Trainer, name) and name[:2] != "__"}
    assert named == {name for name in ours if name.startswith("_")}
    assert len(named) == 6
    for name in ours:
        theirs, replaced = (
            [(x.name, x.kind) for x in inspect.signature(f).parameters.values()]
            for f in (getattr(Trainer, name), getattr(lasting.Lasting, name))
        )
        assert theirs == replaced, name


def test_sft_micro_batches_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 21: 8 and 5 rows of unequal lengths as micro-batches of 1, 2 and 8: one loss
    over the trained tokens of the whole batch. No pickled file is left."""
    gradient_descent(monkeypatch)
    found = []
    for micro in (8, 2, 1):
        model = policy_of("gpt2")
        config = training_config(tmp_path / str(micro), micro)
        run = begun(config)
        train_sft(model, sft_rows(13), run)
        found.append(parameters(model))
        assert files(run) == LEFT
    assert largest_difference(found[0], parameters(policy_of("gpt2"))) > 1e-4
    assert largest_difference(found[0], found[1]) < 1e-6
    assert largest_difference(found[0], found[2]) < 1e-6


def test_reward_micro_batches_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 21: a batch of 8 pairs and one of 5 as micro-batches of 1, 2 and 8."""
    gradient_descent(monkeypatch)
    found = []
    for micro in (8, 2, 1):
        model = load_scalar(reward_folder("gpt2"))
        config = training_config(tmp_path / str(micro), micro)
        run = begun(config, "reward")
        train_reward(model, pairs(13), run)
        found.append(parameters(model))
        assert files(run) == LEFT
    assert largest_difference(found[0], parameters(load_scalar(reward_folder("gpt2")))) > 1e-4
    assert largest_difference(found[0], found[1]) < 1e-6
    assert largest_difference(found[0], found[2]) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_reward_adapters_train_with_the_head(kind: str, tmp_path: Path) -> None:
    """Invariant 25: with adapters the base stays, adapters and head move."""
    config = training_config(tmp_path, 8, lora=LoraSection(rank=4))
    run = begun(config, "reward")
    start = {name: p.clone() for name, p in load_scalar(reward_folder(kind)).named_parameters()}
    model = reward_model(config, reward_folder(kind), toy_tokenizer())
    first = model.score.weight.clone()
    trained = train_reward(model, pairs(16), run)
    state = dict(trained.named_parameters())
    moved = [n for n, p in state.items() if "lora_B" in n and p.abs().max() > 0]
    assert moved
    head = next(p for n, p in state.items() if "modules_to_save" in n)
    assert not torch.equal(head, first)
    for name, p in state.items():
        if "base_layer" in name or "wte" in name or "embed_tokens" in name:
            plain = name.replace("base_model.model.", "").replace(".base_layer", "")
            assert torch.equal(p, start[plain]), name


def test_microbatches_that_do_not_divide(tmp_path: Path) -> None:
    """Invariant 21: refused with the key, since the last one would weigh more."""
    config = training_config(tmp_path, 3)
    with pytest.raises(UserError, match=r"sft\.microbatch_size: 3 does not divide the 8 rows"):
        train_sft(causal("gpt2"), sft_rows(8), begun(config))


def test_sft_loss_counts_trained_tokens_only() -> None:
    """Invariants 5, 27: the held-out loss is the mean over labelled tokens of all rows together,
    the same in any batch size; untrained labels do not matter to it."""
    model, rows = policy_of("llama"), sft_rows(7)
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            logprobs = model(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            for t in range(1, len(row["input_ids"])):
                total -= logprobs[t - 1, row["input_ids"][t]].item()
                count += 1
    for size in (1, 3, 7):
        loss = held_out_loss(model, rows, size, LAUNCH)
        assert loss == pytest.approx(total / count, abs=1e-5)
    masked = [{**row, "labels": [-100] * (len(row["labels"]) - 1) + row["labels"][-1:]}
              for row in rows]  # fmt: skip
    assert held_out_loss(model, masked, 3, LAUNCH) != pytest.approx(total / count, abs=1e-3)
    assert held_out_loss(model, [], 3, LAUNCH) is None


def test_sft_is_judged_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the held-out rows, in this order, in the record as on the terminal."""
    config, rows = training_config(tmp_path, 8), sft_rows(20)
    report = DataReport(SplitReport("a.jsonl", {}, "text"), None)
    data = StageData(rows[:13], rows[13:], report)
    start = held_out_loss(policy_of("gpt2"), rows[13:], 8, LAUNCH)
    run = begun(config)
    trained, metrics = train_and_judge(policy_of("gpt2"), data, run)
    end = held_out_loss(trained, rows[13:], 8, LAUNCH)
    assert start is not None
    assert end is not None
    assert abs(start - end) > 1e-3
    assert metrics == {"test_loss_before": start, "test_loss": end}
    assert f"held-out loss {start:.4f} -> {end:.4f} nats a token" in capsys.readouterr().out


def test_collate_by_hand() -> None:
    """Invariants 5, 8, 27: right-padded; padding is not attended and not trained, wherever else the
    pad id may stand; nor is a first token, which nothing predicts."""
    batch = collate(
        [{"input_ids": [5, 0, 7], "labels": [-100, 0, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}],
        PAD,
    )
    assert batch["input_ids"].tolist() == [[5, 0, 7], [8, 9, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 0, 7], [-100, 9, -100]]


def test_accuracy_over_all_pairs() -> None:
    """Invariant 26: over all pairs at once, a tie counts half; beside it "the longer wins"."""
    assert wins([2.0, 1.0, 3.0, 0.0], [1.0, 1.0, 4.0, -1.0]) == [1.0, 0.5, 0.0, 1.0]
    model, held_out = ScalarModel(load_scalar(reward_folder("gpt2"))), pairs(9)
    found = [figures(model, held_out, size, LAUNCH) for size in (1, 4, 18)]
    assert found[0] == found[1] == found[2]
    stock = AutoModelForSequenceClassification.from_pretrained(reward_folder("gpt2")).eval()

    def logit(ids: list[int]) -> float:
        return stock(input_ids=torch.tensor([ids])).logits.item()

    won = [logit(p["chosen_ids"]) > logit(p["rejected_ids"]) for p in held_out]
    assert 0 < sum(won) < 9
    assert found[0]["accuracy"] == pytest.approx(sum(won) / 9)
    lengths = [(len(p["chosen_ids"]), len(p["rejected_ids"])) for p in held_out]
    longer = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in lengths) / 9
    assert found[0]["accuracy_longer"] == pytest.approx(longer)
    uneven = [(a > b) == right for (a, b), right in zip(lengths, won, strict=True) if a != b]
    assert 0 < sum(uneven) < len(uneven)
    assert found[0]["prefers_longer"] == pytest.approx(sum(uneven) / len(uneven))
    assert figures(model, [], 4, LAUNCH)["accuracy"] is None


def test_scores_come_back_in_order() -> None:
    """Invariant 25: whatever the batches, score i is that of row i."""
    model, rows = ScalarModel(load_scalar(reward_folder("llama"))), random_rows(7)
    alone = [score_rows(model, [row], 1, LAUNCH)[0] for row in rows]
    assert score_rows(model, rows, 3, LAUNCH) == pytest.approx(alone, abs=1e-5)


def test_the_head_starts_small() -> None:
    """Invariant 12: N(0, 1 / sqrt(d + 1)) over a hidden size of 32 (here drawn 200 times)."""
    model, drawn = classifier("gpt2"), []
    for seed in range(200):
        init_head(model, seed)
        drawn.append(model.score.weight.detach().clone())
    weights = torch.cat(drawn).flatten()
    assert weights.std().item() == pytest.approx(33**-0.5, rel=0.03)
    assert abs(weights.mean().item()) < 0.01


def short_replies() -> Config:
    """Calibration with six tokens a reply."""
    config = ppo_config()
    return replace(config, reward=replace(config.reward, calibration_tokens=6))


@dataclass
class Remembering:
    """An engine that keeps what it made."""

    engine: Any
    rows: list[list[int]]

    def generate(self, prompts: list[list[int]], uniform: torch.Tensor) -> Rollout:
        """Like the engine inside."""
        made = self.engine.generate(prompts, uniform)
        self.rows += [made.row(i) for i in range(len(prompts))]
        return made


@pytest.mark.parametrize("kind", KINDS)
def test_calibrated_scores_have_mean_0_and_std_1(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 12: on the engine's own samples; the saved stock logit less reward_mean is the
    score, and calibrating shifts and scales but reorders nothing."""
    model = ScalarModel(classifier(kind))
    config, policy = short_replies(), sft_folder(kind)
    made = Remembering(policy_engine(config, policy, toy_tokenizer(), LAUNCH), [])
    monkeypatch.setattr(calibration, "policy_engine", lambda *_: made)
    raw = ScalarModel(classifier(kind))
    for each in (model, raw):
        each.model.score.weight.data *= 3  # far from a deviation of 1
    asked = [{"input_ids": prompt} for prompt in PROMPTS * 10]
    facts = calibrate(config, model, policy, asked, toy_tokenizer(), LAUNCH)
    before = torch.tensor(score_rows(raw, made.rows, 8, LAUNCH), dtype=torch.float64)
    after = torch.tensor(score_rows(model, made.rows, 8, LAUNCH), dtype=torch.float64)
    assert len(made.rows) == facts["samples"] == 40
    assert abs(after.mean().item()) < 1e-5
    assert after.std(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    assert facts["raw_mean"] == pytest.approx(before.mean().item())
    assert facts["raw_std"] == pytest.approx(before.std(correction=0).item())
    assert abs(facts["raw_std"] - 1) > 1e-3  # far more than what the scores may be off
    expected = (before - facts["raw_mean"]) / facts["raw_std"]
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-5)

    save_model(model.model, toy_tokenizer(), tmp_path)
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert stock.config.reward_mean == pytest.approx(facts["reward_mean"])
    for row, score in zip(made.rows[:5], after[:5].tolist(), strict=True):
        logit = stock(input_ids=torch.tensor([row])).logits.item()
        assert logit - stock.config.reward_mean == pytest.approx(score, abs=1e-5)
    critic = ScalarModel(load_scalar(tmp_path))
    again = score_rows(critic, made.rows, 8, LAUNCH)
    assert again == pytest.approx(after.tolist(), abs=1e-6)


def test_calibration_samples_as_stage_3_will() -> None:
    """Invariant 12: the same temperature, stop ids, length and exclusion; the numbers decide."""
    config = ppo_config(temperature=0.7, stop_token_ids=[9])
    config = replace(config, reward=replace(config.reward, calibration_tokens=5))
    made: Any = policy_engine(config, sft_folder("gpt2"), toy_tokenizer(), LAUNCH)
    s = made.sampling
    assert (s.temperature, s.stop_ids, s.max_new_tokens) == (0.7, [1, 9], 5)
    made.twin.refresh()
    cache = StaticCache(made.twin.model.config, 1, 64, torch.float32, LAUNCH.device)
    with torch.no_grad():
        probs = made.twin(torch.tensor([[5, 6]]), torch.arange(2)[None], cache).softmax(-1)
    assert (probs[..., [0, 60, 61, 62, 63]] == 0).all()
    numbers = uniforms(4, 5, 0, "calibration")
    first = made.generate(PROMPTS, numbers).ids
    again = policy_engine(config, sft_folder("gpt2"), toy_tokenizer(), LAUNCH)
    assert torch.equal(first, again.generate(PROMPTS, numbers).ids)
