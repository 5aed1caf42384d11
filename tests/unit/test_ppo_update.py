"""The update: micro-batches, steps, clipping, statistics, schedules, saving."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from _models import (
    KINDS,
    PROMPTS,
    fixed_rollout,
    largest_difference,
    make_trainer,
    parameters,
)
from _ppo import SGD, experience_of, gradients, gradients_of, optimized

from cores.config import AdamSection, LoraSection
from cores.errors import UserError
from cores.ppo.experience import average
from cores.ppo.passes import accumulate


def both(trainer: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    return parameters(trainer.roles.actor.module), parameters(trainer.roles.critic.module)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_change_nothing(kind: str, rank: int) -> None:
    """Invariants 21, 24: parameters of actor and critic, gradient norms and every statistic are
    the same for micro-batches of 1, 2, 3, 4 and 8 rows of unequal lengths."""
    found = []
    for n in (8, 1, 2, 3, 4):
        trainer = make_trainer(kind, microbatch_size=n, lora=LoraSection(rank=rank), **SGD)
        stats = optimized(trainer, experience_of(trainer))
        found.append((*both(trainer), stats))
    actor, critic, stats = found[0]
    start = make_trainer(kind, lora=LoraSection(rank=rank), **SGD)
    if not rank:
        assert largest_difference(actor, parameters(start.roles.actor.module)) > 1e-4
        assert largest_difference(critic, parameters(start.roles.critic.module)) > 1e-4
    assert 0 < stats["clip_fraction"] < 1
    assert 0 < stats["value_clip_fraction"] < 1
    for actor2, critic2, stats2 in found[1:]:
        assert largest_difference(actor, actor2) < 1e-6
        assert largest_difference(critic, critic2) < 1e-6
        assert stats2.keys() == stats.keys()
        for name, value in stats.items():
            assert stats2[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_tokens_weigh_the_same_whatever_their_reply() -> None:
    """Invariant 21: the loss is a mean over the minibatch's tokens, not of rows' means."""
    trainer = make_trainer("gpt2", microbatch_size=1, **SGD)
    experience = experience_of(trainer)
    assert len(set(experience.response_mask.sum(dim=1).tolist())) > 2
    mask = experience.response_mask
    with torch.no_grad():
        logprobs, _ = trainer.roles.actor.module(experience.ids, experience.mask, mask.shape[1])
        values = trainer.roles.critic.module(experience.ids, experience.mask)
    ratio = (logprobs - experience.logprobs).exp()
    advantages = experience.advantages
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    new = values[:, -mask.shape[1] - 1 : -1]
    near = experience.values + (new - experience.values).clamp(-0.2, 0.2)
    squares = torch.maximum((new - experience.returns) ** 2, (near - experience.returns) ** 2)
    stats = optimized(trainer, experience)
    assert stats["policy_loss"] == pytest.approx(-surrogate[mask].mean().item(), rel=1e-4)
    assert stats["value_loss"] == pytest.approx(0.5 * squares[mask].mean().item(), rel=1e-4)
    assert stats["ratio_max"] == pytest.approx(ratio[mask].max().item(), rel=1e-4)


@pytest.mark.parametrize(("epochs", "minibatch"), [(1, 8), (2, 4), (3, 2)])
def test_steps_are_epochs_times_minibatches(epochs: int, minibatch: int) -> None:
    """Invariant 22: optimizer steps of actor and critic are counted, and are what the optimizers
    themselves took; every row is seen once an epoch, in an order that changes."""
    trainer = make_trainer(
        "gpt2", batch_size=8, minibatch_size=minibatch, microbatch_size=2, epochs=epochs
    )
    experience = experience_of(trainer)
    seen: list[list[int]] = []
    taken: Counter[str] = Counter()
    optimize = trainer.optimize
    trainer.optimize = lambda e, rows: (seen.append(rows.tolist()), optimize(e, rows))[1]
    for name in ("actor", "critic"):
        optimizer = getattr(trainer.roles, name).optimizer
        optimizer.optimizer.register_step_post_hook(lambda *_, n=name: taken.update([n]))
    steps = trainer.update(experience)
    expected = epochs * 8 // minibatch
    assert len(steps) == trainer.roles.actor.steps == trainer.roles.critic.steps == expected
    assert taken == {"actor": expected, "critic": expected}
    assert trainer.minibatches == expected
    rows = [row for batch in seen for row in batch]
    orders = [rows[i : i + 8] for i in range(0, 8 * epochs, 8)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert all(len(batch) == minibatch for batch in seen)
    if epochs > 1:
        assert len({tuple(order) for order in orders}) > 1


def test_gradients_are_cleared_between_steps() -> None:
    """Invariant 22: a second step does not carry the first one's gradient."""
    trainer = make_trainer("gpt2", actor_learning_rate=0.0, critic_learning_rate=0.0)
    experience = experience_of(trainer)
    first = optimized(trainer, experience)
    second = optimized(trainer, experience)
    for name in ("actor_grad_norm", "critic_grad_norm"):
        assert second[name] == pytest.approx(first[name], rel=1e-5)


def test_actor_and_critic_are_clipped_separately() -> None:
    """Invariant 23: each is clipped to its own norm: a critic with an exploding gradient leaves
    the actor's step as it was. Reported norms are those before clipping."""
    norms = []
    for scale in (1.0, 1e4):
        trainer = make_trainer("gpt2", max_grad_norm=0.5)
        experience = experience_of(trainer)
        experience = replace(experience, returns=experience.returns * scale)
        used: dict[str, float] = {}
        for name in ("actor", "critic"):
            role = getattr(trainer.roles, name)
            weights = list(role.module.parameters())
            role.optimizer.optimizer.register_step_pre_hook(
                lambda *_, n=name, w=weights, u=used: u.update({n: total_norm(w)})
            )
        stats = optimized(trainer, experience)
        norms.append((stats, used, parameters(trainer.roles.actor.module)))
    (small, used, actor), (large, used_large, actor_large) = norms
    assert small["actor_grad_norm"] > 0.5
    assert used["actor"] == used_large["actor"] == pytest.approx(0.5, rel=1e-3)
    assert used_large["critic"] == pytest.approx(0.5, rel=1e-3)
    assert large["critic_grad_norm"] > 100 * small["critic_grad_norm"]
    assert largest_difference(actor, actor_large) == 0


def total_norm(weights: list[Any]) -> float:
    return torch.stack([w.grad.norm() for w in weights if w.grad is not None]).norm().item()


def test_what_is_masked_is_harmless() -> None:
    """Invariant 23: NaN in every masked slot and a row without a valid token change no parameter
    and no statistic."""
    found = []
    for spoil in (False, True):
        trainer = make_trainer("gpt2", microbatch_size=3, **SGD)
        e = experience_of(trainer)
        e = replace(e, response_mask=e.response_mask.clone(), advantages=e.advantages.clone())
        e.response_mask[5] = False
        if spoil:
            spoiled = {
                name: torch.where(e.response_mask, getattr(e, name), torch.nan)
                for name in ("logprobs", "ref_logprobs", "values", "advantages", "returns")
            }
            e = replace(e, **spoiled)
        stats = optimized(trainer, e)
        found.append((*both(trainer), stats))
    (actor, critic, stats), (actor2, critic2, stats2) = found
    assert largest_difference(actor, actor2) == largest_difference(critic, critic2) == 0
    assert stats == stats2
    assert all(torch.isfinite(torch.tensor(v)) for v in stats.values())


def test_advantages_of_zero_leave_the_actor_alone() -> None:
    """Invariant 11: they give a policy gradient of exactly 0; the critic still learns."""
    trainer = make_trainer("gpt2")
    experience = experience_of(trainer)
    before, critic = both(trainer)
    silent = replace(experience, advantages=torch.zeros_like(experience.advantages))
    stats = optimized(trainer, silent)
    assert stats["actor_grad_norm"] == 0
    assert largest_difference(before, parameters(trainer.roles.actor.module)) == 0
    assert largest_difference(critic, parameters(trainer.roles.critic.module)) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_at_ratio_one_the_gradient_is_reinforces(kind: str) -> None:
    """Invariant 11: at ratio 1 it is that of -mean(advantage * logprob)."""
    trainer = make_trainer(kind, **SGD)
    experience = trainer.estimate(trainer.score(fixed_rollout(8)))
    actor, mask = trainer.roles.actor.module, experience.response_mask
    logprobs, _ = actor(experience.ids, experience.mask, mask.shape[1])
    loss = -(experience.advantages * logprobs)[mask].sum() / mask.sum()
    wanted = gradients_of(loss, actor)
    got, _ = gradients(trainer, experience)
    assert largest_difference(wanted, got) < 1e-6


def test_learning_rates_follow_the_schedule() -> None:
    """Invariant 22: warm-up and decay run over epochs * minibatches * updates steps, for actor and
    critic each from its own peak."""
    trainer = make_trainer(
        "gpt2", updates=5, epochs=2, lr_schedule="linear", warmup=0.2, batch_size=4
    )
    experience, factors = experience_of(trainer, rows=4), []
    for _ in range(5):
        factors += [stats["learning_rate_factor"] for stats in trainer.update(experience)]
        for role, peak in ((trainer.roles.actor, 1e-3), (trainer.roles.critic, 2e-3)):
            assert role.optimizer.param_groups[0]["lr"] == pytest.approx(peak * factors[-1])
    expected = [0.5, 1.0, *(1 - i / 8 for i in range(8))]
    assert factors == pytest.approx(expected)


def test_optimizer_settings_reach_adamw() -> None:
    """Invariant 22: betas, epsilon, weight decay and rates of the configuration."""
    trainer = make_trainer(
        "gpt2",
        actor_adam=AdamSection(0.8, 0.9, 1e-3, 0.1),
        critic_adam=AdamSection(0.7, 0.6, 1e-4, 0.2),
    )
    settings = ((0.8, 0.9), 1e-3, 0.1, 1e-3), ((0.7, 0.6), 1e-4, 0.2, 2e-3)
    for role, expected in zip((trainer.roles.actor, trainer.roles.critic), settings, strict=True):
        group = role.optimizer.param_groups[0]
        found = (group["betas"], group["eps"], group["weight_decay"], group["lr"])
        assert found == expected


def test_statistics_add_up() -> None:
    """Invariant 24: sums over micro-batches and means over steps, the largest of `_max`."""
    sums: dict[str, torch.Tensor] = {}
    for a, b in ((1.0, 2.0), (3.0, 1.0)):
        accumulate(sums, {"loss": torch.tensor(a), "ratio_max": torch.tensor(b)})
    assert (sums["loss"].item(), sums["ratio_max"].item()) == (4.0, 2.0)
    steps = [{"loss": 1.0, "ratio_max": 2.0}, {"loss": 3.0, "ratio_max": 1.5}]
    assert average(steps) == {"loss": 2.0, "ratio_max": 2.0}


def test_the_same_seed_gives_the_same_run() -> None:
    """Invariant 31: two runs of one seed are equal bit by bit; another seed is another run."""
    found = []
    for seed in (0, 0, 1):
        trainer = make_trainer("gpt2", seed=seed, minibatch_size=2, epochs=2)
        torch.manual_seed(len(found))  # no part of it
        stats = [trainer.step(PROMPTS)[1] for _ in range(2)]
        found.append((*both(trainer), stats))
    assert found[0][2] == found[1][2] != found[2][2]
    for i in (0, 1):
        assert largest_difference(found[0][i], found[1][i]) == 0
        assert largest_difference(found[0][i], found[2][i]) > 0


def test_the_seed_orders_the_minibatches() -> None:
    """Invariant 31: on fixed experience the trainer's own seed alone decides the order."""
    orders = []
    for seed in (0, 0, 1):
        trainer = make_trainer("gpt2", seed=seed, batch_size=8, minibatch_size=2)
        seen: list[list[int]] = []
        trainer.optimize = lambda e, rows, seen=seen: (seen.append(rows.tolist()), {})[1]
        torch.manual_seed(len(orders))
        trainer.update(experience_of(trainer))
        orders.append(seen)
    assert orders[0] == orders[1] != orders[2]


def test_a_gradient_that_is_no_number_stops_the_run() -> None:
    """Invariant 23: before the step that would spread it to every weight."""
    trainer = make_trainer("gpt2")
    before = parameters(trainer.roles.actor.module)
    experience = trainer.estimate(trainer.score(fixed_rollout()))
    broken = replace(experience, advantages=experience.advantages * math.nan)
    with pytest.raises(
        UserError, match=r"actor_grad_norm not finite in optimizer step 1 of update 1"
    ):
        trainer.update(broken)
    assert largest_difference(before, parameters(trainer.roles.actor.module)) == 0
