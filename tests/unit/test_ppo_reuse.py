"""Rollout log-probs as the old ones: when they serve, what then is computed, and what is not."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from _models import (
    KINDS,
    LORA,
    PPO,
    PROMPTS,
    ROUNDING,
    fixed_rollout,
    largest_difference,
    make_trainer,
    parameters,
)

from cores.evaluate import evaluate
from cores.ppo.score import LOOK, TOLERANCES, decide, looks
from cores.runtime.launch import Launch

COMPARED = set(
    """rollout_logprob_gap rollout_kl rollout_ratio rollout_ratio_max
rollout_ratio_outside""".split()
)


def calls_of(module: Any) -> list[bool]:
    """Whether gradients were on, at each call of a module from now on."""
    calls: list[bool] = []
    module.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    return calls


def said_by(trainer: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lines that the trainer prints from now on."""
    lines: list[str] = []
    monkeypatch.setattr(Launch, "say", lambda self, text: lines.append(text))
    return lines


@pytest.mark.parametrize("kind", KINDS)
def test_an_exact_engine_saves_the_scoring(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 1, 9, 33: Hugging Face's generate in fp32 proves equal on the first rollout; from
    the second on the actor runs under gradients only, its first minibatch has ratio 1, and what was
    not compared is not reported."""
    trainer = make_trainer(kind, batch_size=4, minibatch_size=2, epochs=2)
    lines = said_by(trainer, monkeypatch)
    calls = calls_of(trainer.roles.actor.module)
    _, first = trainer.step(PROMPTS)
    assert calls.count(False) == 1
    assert first["rollout_logprob_gap"] < 1e-4
    assert len(lines) == 1
    assert "from here on they are the rollout's own" in lines[0]
    calls.clear()
    update, steps = trainer.update, []
    trainer.update = lambda e: (steps.extend(update(e)), steps)[1]
    experience, second = trainer.step(PROMPTS)
    assert calls == [True] * 4
    assert torch.equal(experience.logprobs, experience.rollout_logprobs)
    assert steps[0]["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert steps[0]["clip_fraction"] == 0
    assert steps[0]["approx_kl"] == pytest.approx(0, abs=1e-7)
    assert not COMPARED & second.keys()
    assert second.keys() | COMPARED == first.keys()
    assert len(lines) == 1


@pytest.mark.parametrize("lora", [0, 4])
def test_the_update_is_the_same(lora: int) -> None:
    """Invariant 9: with log-probs reused the third update is the recomputed one, to rounding, and
    the entropy of its first pass is near the rollout's."""
    found = []
    for way in ("auto", "recompute"):
        adapters = replace(LORA, rank=lora)
        trainer = make_trainer("gpt2", lora=adapters, old_logprobs=way, **ROUNDING)
        stats = [trainer.step(PROMPTS)[1] for _ in range(3)]
        found.append((parameters(trainer.roles.actor.module), stats))
    (weights, (*_, ours)), (same, (*_, theirs)) = found
    assert largest_difference(weights, same) < 1e-4
    assert "rollout_kl" in theirs
    assert "rollout_kl" not in ours
    for name in ("kl", "entropy", "policy_loss", "score"):  # one minibatch: the policy is the same
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name


@pytest.mark.parametrize(("warmup", "decides"), [(0, 1), (2, 3)])
def test_adapters_are_proved_once_they_add_something(
    warmup: int, decides: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before their first step they add nothing, whatever the engine makes of them."""
    trainer = make_trainer("gpt2", lora=LORA, critic_warmup=warmup)
    lines = said_by(trainer, monkeypatch)
    for update in range(decides + 1):
        assert len(lines) == 0, update
        trainer.step(PROMPTS)
    assert len(lines) == 1


def test_the_entropy_is_that_of_the_first_pass() -> None:
    """Invariant 24: the mean over its steps alone, though later passes are steps too."""
    trainer = make_trainer("gpt2", batch_size=4, minibatch_size=2, epochs=3)
    e = trainer.estimate(trainer.score(fixed_rollout()))
    expected = e.entropy[e.response_mask].mean().item()
    steps = trainer.update(replace(e, entropy=None))
    assert ["entropy" in step for step in steps] == [True, True, False, False, False, False]
    frozen = make_trainer("gpt2", batch_size=4, minibatch_size=4, actor_learning_rate=0.0)
    alone, *_ = frozen.update(replace(e, entropy=None))
    assert alone["entropy"] == pytest.approx(expected, abs=1e-5)


def test_an_engine_may_tell_the_entropy() -> None:
    """It is then the rollout's own, and no pass of the update measures it."""
    trainer, made = make_trainer("gpt2"), fixed_rollout()
    told = torch.full(made.response_mask.shape, 2.5)
    scored = trainer.score(replace(made, entropy=told), reuse=True)
    assert torch.equal(scored.entropy, told)
    assert trainer.score(made, reuse=True).select([1, 2]).entropy is None
    assert "entropy" not in trainer.update(trainer.estimate(scored))[0]


def wrong_engine(trainer: Any, off: float) -> None:
    """An engine whose log-probs are `off` nats off at every token."""
    generate = trainer.engine.generate

    def shifted(*asked: Any) -> Any:
        rollout = generate(*asked)
        return replace(rollout, logprobs=rollout.logprobs + off)

    trainer.engine.generate = shifted


def test_a_wrong_engine_is_told_and_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariants 1, 33: every update is then recomputed, with the mismatch measured, and one line
    says so."""
    trainer = make_trainer("gpt2")
    wrong_engine(trainer, 2e-3)
    lines, calls = said_by(trainer, monkeypatch), calls_of(trainer.roles.actor.module)
    for _ in range(3):
        calls.clear()
        _, stats = trainer.step(PROMPTS)
        assert calls.count(False) == 1
        assert stats["rollout_logprob_gap"] == pytest.approx(2e-3, abs=1e-4)
    assert len(lines) == 1
    assert "differ from the trainer's by 2.0e-03 nats a token" in lines[0]
    assert "they are recomputed for every update" in lines[0]


def test_an_engine_may_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 33: every so many updates one is scored by the trainer too; whichever way it is
    then decided holds until the next look, and one line says so where it changes."""
    monkeypatch.setattr("cores.ppo.score.LOOK", 2)
    trainer = make_trainer("gpt2", updates=8)
    generate, lines = trainer.engine.generate, said_by(trainer, monkeypatch)
    measured, told = [], []
    for update in range(8):
        if update == 3:
            wrong_engine(trainer, 2e-3)  # seen at update 4
        if update == 5:
            trainer.engine.generate = generate  # seen at update 6
        _, stats = trainer.step(PROMPTS)
        measured.append("rollout_logprob_gap" in stats)
        told.append(len(lines))
    assert measured == [True, False, True, False, True, True, True, False]
    assert told == [1, 1, 1, 1, 2, 2, 3, 3]
    assert trainer.state.reused is True


@pytest.mark.parametrize("ppo", [{}, {"critic_warmup": 2}, {"lora": LORA, "critic_warmup": 2}])
def test_when_it_looks(ppo: dict[str, Any]) -> None:
    """At the first rollout that may decide, and every tenth behind it."""
    first = 3 if "lora" in ppo else 0
    found = [update for update in range(25) if looks(replace(PPO, **ppo), update)]
    assert found == list(range(first, 25, LOOK))


@pytest.mark.parametrize(
    ("precision", "mean", "largest", "on"),
    [
        ("fp32", 0.0, 9e-5, True), ("fp32", 0.0, 2e-4, False), ("fp32", 2e-5, 0.0, False),
        ("bf16", 9e-3, 0.4, True), ("bf16", 9e-3, 0.6, False), ("bf16", 1.1e-2, 0.0, False),
    ],
)  # fmt: skip
def test_tolerances(precision: str, mean: float, largest: float, on: bool) -> None:
    """Mean and largest each decide, over valid tokens of many rows."""
    rows = 400
    scored = make_trainer("gpt2").score(fixed_rollout(rows))
    engine = scored.logprobs + mean
    engine[0, 0] = scored.logprobs[0, 0] + max(mean, largest)
    engine = torch.where(scored.response_mask, engine, 1e3)
    found, line = decide(replace(scored, rollout_logprobs=engine), precision)
    assert found is on
    assert ("recomputed" in line) != on
    assert TOLERANCES[precision].mean < TOLERANCES[precision].largest


@pytest.mark.parametrize("ppo", [{"old_logprobs": "recompute"}, {"rollout_correction": "truncate"}])
def test_where_both_are_needed_nothing_is_reused(
    ppo: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 33: importance weights compare the two, so both are there in every update."""
    trainer = make_trainer("gpt2", **ppo)
    lines, calls = said_by(trainer, monkeypatch), calls_of(trainer.roles.actor.module)
    for _ in range(2):
        _, stats = trainer.step(PROMPTS)
    assert calls.count(False) == 2
    assert "rollout_logprob_gap" in stats
    assert lines == []


def test_the_critic_s_warm_up_and_evaluation_score_in_full() -> None:
    """Invariants 10, 24: an update without the actor has its entropy from scoring, and evaluations
    report the trainer's own log-probs."""
    trainer = make_trainer("gpt2", critic_warmup=2)
    calls = calls_of(trainer.roles.actor.module)
    for updates in (1, 2):
        _, stats = trainer.step(PROMPTS)
        assert calls == [False] * updates
        assert {"entropy", "rollout_kl"} <= stats.keys()
    trainer.step(PROMPTS)
    assert calls.count(False) == 2
    evaluate(trainer, PROMPTS)
    assert calls.count(False) == 3
