"""Every option of the update reaches the gradient: held to a second implementation of its loss."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from _models import (
    LAUNCH,
    PAD,
    PROMPTS,
    fixed_rollout,
    largest_difference,
    make_trainer,
    parameters,
)
from _ppo import (
    SGD,
    averaged,
    chosen,
    distributions,
    experience_of,
    gradients,
    gradients_of,
    surrogate,
)
from torch.nn.functional import cross_entropy

from cores.ppo.ptx import PtxRows

ROWS = [
    {"input_ids": ids, "labels": [-100] * n + ids[n:]}
    for n, ids in ((1, [5, 6, 7]), (3, [8, 9, 10, 11, 12]), (2, [40, 41, 42, 43]), (1, [30, 31]))
] * 2  # fmt: skip
"""Eight rows of stage 1: prompts that are not trained, of 1 to 3 tokens."""


def with_ptx(**ppo: Any) -> Any:
    """A trainer that mixes `ROWS` in."""
    trainer = make_trainer("gpt2", **ppo, **SGD)
    trainer.ptx = PtxRows(ROWS, 8, PAD, 0, LAUNCH.device)
    return trainer


def sft_loss(trainer: Any) -> torch.Tensor:
    """Cross-entropy of stage 1 over the trained tokens of `ROWS`, row by row without padding."""
    model, total, count = trainer.roles.actor.unwrapped.model, torch.tensor(0.0), 0
    for row in ROWS:
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total = total + cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    return total / count


def difference(loss: torch.Tensor, trainer: Any, found: dict[str, torch.Tensor]) -> float:
    return largest_difference(gradients_of(loss, trainer.roles.actor.module), found)


@pytest.mark.parametrize("over", ["tokens", "sequences"])
@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_kl_in_the_loss(kind: str, over: str) -> None:
    """Invariant 17: coef * mean k2 or k3 of the policy as it is now, with its gradient; the rewards
    then hold the score alone."""
    ppo = {"kl_in": "loss", "kl_kind": kind, "kl_coef": 0.7, "loss_mean": over}
    trainer = make_trainer("gpt2", microbatch_size=3, missing_eos_penalty=0.0, **ppo, **SGD)
    e = experience_of(trainer)
    e = trainer.estimate(replace(e, ref_logprobs=e.ref_logprobs - 0.4))
    torch.testing.assert_close(e.rewards.sum(dim=1), e.scores.clamp(-5, 5))
    logprobs = chosen(trainer, e)
    x = e.ref_logprobs - logprobs
    kl = x**2 / 2 if kind == "k2" else x.exp() - 1 - x
    loss = averaged(surrogate(logprobs, e) + 0.7 * kl, e.response_mask, over)
    wanted = gradients_of(loss, trainer.roles.actor.module)
    found, stats = gradients(trainer, e)
    assert largest_difference(wanted, found) < 1e-5
    assert stats["kl_loss"] == pytest.approx(averaged(kl, e.response_mask, over).item(), rel=1e-4)


@pytest.mark.parametrize("over", ["tokens", "sequences"])
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_entropy_bonus(temperature: float, over: str) -> None:
    """Less 0.3 * mean entropy of the sampled distribution, with its gradient."""
    ppo = {"entropy_coef": 0.3, "temperature": temperature, "loss_mean": over}
    trainer = make_trainer("gpt2", microbatch_size=3, **ppo, **SGD)
    e = experience_of(trainer)
    p = distributions(trainer, e)
    entropy = -(p.exp() * p).sum(dim=-1)
    loss = averaged(surrogate(chosen(trainer, e), e) - 0.3 * entropy, e.response_mask, over)
    wanted = gradients_of(loss, trainer.roles.actor.module)
    assert largest_difference(wanted, gradients(trainer, e)[0]) < 1e-5


@pytest.mark.parametrize("over", ["tokens", "sequences"])
def test_the_mean_over_replies(over: str) -> None:
    """Invariant 21: each reply's mean, then theirs, of actor and critic; in any micro-batches."""
    for micro in (8, 1, 3):
        trainer = make_trainer("gpt2", microbatch_size=micro, loss_mean=over, **SGD)
        e = experience_of(trainer)
        loss = averaged(surrogate(chosen(trainer, e), e), e.response_mask, over)
        critic = trainer.roles.critic.module
        values = critic(e.ids, e.mask)[:, -e.response_mask.shape[1] - 1 : -1]
        near = e.values + (values - e.values).clamp(-0.2, 0.2)
        squares = torch.maximum((values - e.returns) ** 2, (near - e.returns) ** 2)
        value_loss = 0.5 * averaged(squares, e.response_mask, over)
        wanted = gradients_of(loss, trainer.roles.actor.module)
        wanted_critic = gradients_of(value_loss, critic)
        before = parameters(critic)
        found, stats = gradients(trainer, e)
        assert largest_difference(wanted, found) < 1e-5
        assert stats["policy_loss"] == pytest.approx(loss.item(), rel=1e-4)
        assert stats["value_loss"] == pytest.approx(value_loss.item(), rel=1e-4)
        again = make_trainer("gpt2", microbatch_size=micro, loss_mean=over, **SGD)
        assert largest_difference(before, parameters(again.roles.critic.module)) == 0
        assert largest_difference(wanted_critic, gradients(again, e, "critic")[0]) < 1e-4


def test_clips_reach_the_loss() -> None:
    """Invariant 20: clip below, clip_high above, dual_clip where A < 0."""
    trainer = make_trainer("gpt2", clip=0.1, clip_high=0.25, dual_clip=1.2, **SGD)
    e = experience_of(trainer)
    each = surrogate(chosen(trainer, e), e, 0.1, 0.25)
    limited = torch.where(e.advantages < 0, torch.minimum(each, -1.2 * e.advantages), each)
    assert (each != limited)[e.response_mask].any()
    loss = averaged(limited, e.response_mask, "tokens")
    wanted = gradients_of(loss, trainer.roles.actor.module)
    found, stats = gradients(trainer, e)
    assert largest_difference(wanted, found) < 1e-5
    assert stats["policy_loss"] == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize("over", ["tokens", "sequences"])
@pytest.mark.parametrize(("kind", "cap"), [("truncate", 1.1), ("mask", 1.3)])
def test_correction_reaches_the_loss(kind: str, cap: float, over: str) -> None:
    """Invariant 33: trainer's over engine's probability of each token weighs its loss; with an
    engine that agrees nothing changes."""
    ppo = {"rollout_correction": kind, "rollout_cap": cap, "loss_mean": over}
    trainer = make_trainer("gpt2", microbatch_size=3, **ppo, **SGD)
    e = experience_of(trainer)
    shift = 0.8 * (torch.rand(e.logprobs.shape, generator=torch.Generator().manual_seed(1)) - 0.5)
    e = replace(e, rollout_logprobs=e.logprobs - shift)
    weights = shift.exp().clamp(max=cap)
    if kind == "mask":
        weights = torch.where((shift.exp() > cap) | (shift.exp() < 1 / cap), 0.0, shift.exp())
    loss = averaged(weights * surrogate(chosen(trainer, e), e), e.response_mask, over)
    wanted = gradients_of(loss, trainer.roles.actor.module)
    found, stats = gradients(trainer, e)
    assert largest_difference(wanted, found) < 1e-5
    assert stats["rollout_weight"] == pytest.approx(weights[e.response_mask].mean().item())
    agreeing = replace(e, rollout_logprobs=e.logprobs)
    two = [make_trainer("gpt2", rollout_correction=k, **SGD) for k in (kind, "none")]
    corrected, plain = (gradients(t, agreeing)[0] for t in two)
    assert largest_difference(corrected, plain) == 0


@pytest.mark.parametrize("micro", [1, 2, 8])
@pytest.mark.parametrize(("mix", "coef", "weight"), [("added", 2.0, 1.0), ("convex", 0.9, 0.1)])
def test_stage_1_loss_is_mixed_in(mix: str, coef: float, weight: float, micro: int) -> None:
    """Invariants 21, 27: policy + coef * cross-entropy, or (1 - coef) * policy + coef * it, in any
    micro-batches; untrained labels do not count, and temperature is PPO's alone."""
    trainer = with_ptx(ptx_coef=coef, ptx_mix=mix, microbatch_size=micro, temperature=1.3)
    e = experience_of(trainer)
    sft = sft_loss(trainer)
    policy = averaged(surrogate(chosen(trainer, e), e), e.response_mask, "tokens")
    wanted = gradients_of(weight * policy + coef * sft, trainer.roles.actor.module)
    found, stats = gradients(trainer, e)
    assert largest_difference(wanted, found) < 2e-5
    assert stats["ptx_loss"] == pytest.approx(sft.item(), rel=1e-5)
    assert stats["policy_loss"] == pytest.approx(policy.item(), rel=1e-4)
    assert trainer.roles.actor.steps == 1


def test_every_ptx_row_once_an_epoch() -> None:
    """Invariant 31: two ranks take disjoint halves of the same draw, and an epoch has every row."""
    rows = [{"input_ids": [i, i, i], "labels": [-100, i, i]} for i in range(2, 14)]
    ptx = PtxRows(rows, 4, PAD, 5, LAUNCH.device)
    epochs = []
    for epoch in range(2):
        seen: list[int] = []
        for step in range(3 * epoch, 3 * epoch + 3):
            halves = []
            for rank in range(2):
                batches, tokens = ptx.at(step, rank, 2, micro=1)
                assert tokens == 8
                assert [batch.rows.ids.shape for batch in batches] == [(1, 3), (1, 3)]
                halves.append([int(batch.rows.ids[0, 0]) for batch in batches])
            seen += halves[0] + halves[1]
        assert sorted(seen) == list(range(2, 14))
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_critic_warms_up_alone() -> None:
    """In the first two updates the actor stays bit by bit and takes no step; then both move, the
    actor with a schedule of its own that starts there."""
    ppo = {"critic_warmup": 2, "lr_schedule": "linear", "updates": 4, "epochs": 2}
    trainer = make_trainer("gpt2", **ppo)
    start = parameters(trainer.roles.actor.module)
    critics, steps = [parameters(trainer.roles.critic.module)], []
    for update in range(4):
        _, stats = trainer.step(PROMPTS)
        critics.append(parameters(trainer.roles.critic.module))
        steps.append(trainer.roles.actor.steps)
        moved = largest_difference(start, parameters(trainer.roles.actor.module))
        assert (moved > 0) == (update >= 2)
        assert ("clip_fraction" in stats) == ("actor_grad_norm" in stats) == (update >= 2)
        assert stats["optimizer_steps"] == 2
        assert largest_difference(critics[-1], critics[-2]) > 0
        factor = {0: (1 + 7 / 8) / 2, 2: (1 + 3 / 4) / 2}.get(update)
        assert factor is None or stats["learning_rate_factor"] == pytest.approx(factor)
    assert steps == [0, 0, 2, 4]
    assert trainer.roles.critic.steps == 8


def test_update_stops_early() -> None:
    """The minibatch whose KL is above the limit is the last; steps are counted as taken."""
    ppo = {"batch_size": 8, "minibatch_size": 2, "epochs": 3, "actor_learning_rate": 0.01}
    free = make_trainer("gpt2", **ppo)
    free_steps = free.update(free.estimate(free.score(fixed_rollout(8))))
    kls = [s["approx_kl"] for s in free_steps]
    assert len(kls) == 12
    # nothing has moved before the first step, which alone tells it
    assert [s.get("first_kl") for s in free_steps] == [kls[0], *[None] * 11]
    assert abs(kls[0]) < 1e-9 < kls[1]
    limit = kls[3] * 0.99
    expected = next(i for i, kl in enumerate(kls) if kl > limit) + 1
    assert 1 < expected < 12
    trainer = make_trainer("gpt2", early_stop_kl=limit, **ppo)
    steps = trainer.update(trainer.estimate(trainer.score(fixed_rollout(8))))
    assert [s["approx_kl"] for s in steps] == kls[:expected]
    assert trainer.roles.actor.steps == trainer.roles.critic.steps == expected


def test_price_of_kl_is_steered() -> None:
    """Invariant 18: after each update by the rule, on the KL of its rollout; the price logged is
    the one that the update paid."""
    ppo = {"kl_target": 0.5, "kl_horizon": 40.0, "kl_coef": 0.1, "actor_learning_rate": 0.05}
    trainer = make_trainer("gpt2", missing_eos_penalty=0.0, reward_clip=0.0, **ppo)
    expected = 0.1
    for _ in range(3):
        e, stats = trainer.step(PROMPTS)
        assert stats["kl_coef"] == pytest.approx(expected)
        kl = (e.logprobs - e.ref_logprobs)[e.response_mask].sum() / 4
        total = e.rewards.sum(dim=1).mean()
        torch.testing.assert_close(total, e.scores.mean() - expected * kl, atol=1e-4, rtol=1e-4)
        expected *= 1 + min(max(kl.item() / 0.5 - 1, -0.2), 0.2) * 4 / 40
    assert trainer.state.kl_coef == pytest.approx(expected) != 0.1
