"""Options of the update, each by its effect on a whole optimizer step or update."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from _models import (
    PAD,
    PPO,
    PROMPTS,
    adam,
    fixed_rollout,
    largest_difference,
    make_trainer,
    parameters,
)

from cores.evaluate import evaluate
from cores.ppo.ptx import PtxRows
from cores.rl import next_kl_coef

SGD: dict[str, Any] = {**adam(eps=1.0), "max_grad_norm": 1e9}
"""A step almost proportional to the gradient."""
ROWS = [
    {"input_ids": [5, 9, 13, 20, 1], "labels": [-100, -100, 13, 20, 1]},
    {"input_ids": [7, 8, 1], "labels": [7, 8, 1]},
]
"""The second is text without a prompt: its first token is a label, and nothing predicts it."""


def experience_of(trainer: Any, rows: int = 4) -> Any:
    """Experience whose reference is another policy, so that the KL has a gradient."""
    scored = trainer.score(fixed_rollout(rows))
    noise = torch.rand(scored.logprobs.shape, generator=torch.Generator().manual_seed(0))
    return trainer.estimate(replace(scored, ref_logprobs=scored.ref_logprobs - noise))


def gradient(rows: int = 4, ptx: bool = False, experience: Any = None, **ppo: Any) -> Any:
    """The actor's gradient of one optimizer step, flat, and the step's statistics."""
    trainer = make_trainer("gpt2", **SGD, **ppo)
    if ptx:
        trainer.ptx = PtxRows(ROWS, 2, PAD, seed=0, device=torch.device("cpu"))
    made = experience_of(trainer, rows) if experience is None else experience
    got: list[torch.Tensor] = []
    weights = list(trainer.roles.actor.module.parameters())
    trainer.roles.actor.optimizer.optimizer.register_step_pre_hook(
        lambda *_: got.append(torch.cat([p.grad.flatten() for p in weights]))
    )
    stats = trainer.optimize(made, torch.arange(rows))
    return got[0], stats


def of_loss(loss: Any, rows: int = 4, **ppo: Any) -> torch.Tensor:
    """The gradient of loss(log-probs, entropy, experience), for one micro-batch of all rows."""
    trainer = make_trainer("gpt2", **SGD, **ppo)
    made = experience_of(trainer, rows)
    actor, width = trainer.roles.actor.module, made.response_mask.shape[1]
    loss(*actor(made.ids, made.mask, width), made).backward()
    return torch.cat([p.grad.flatten() for p in actor.parameters()])


def test_kl_in_the_loss_has_a_gradient_and_leaves_the_rewards() -> None:
    """Invariant 18: the loss grows by kl_coef times the mean KL a token, and the rewards hold no
    price of KL."""
    base: dict[str, Any] = {"kl_coef": 0.5, "kl_kind": "k2", "whiten_advantages": False}
    inside = experience_of(make_trainer("gpt2", kl_in="loss", **base))
    free = experience_of(make_trainer("gpt2", **{**base, "kl_coef": 0.0}))
    torch.testing.assert_close(inside.rewards, free.rewards)
    whole, stats = gradient(kl_in="loss", **base)
    without, _ = gradient(**{**base, "kl_coef": 0.0})

    def priced(logprobs: torch.Tensor, _: Any, e: Any) -> torch.Tensor:
        return 0.5 * ((logprobs - e.ref_logprobs) ** 2 / 2)[e.response_mask].mean()

    term = of_loss(priced, **base)
    assert term.abs().max() > 1e-4
    torch.testing.assert_close(whole - without, term, atol=2e-6, rtol=1e-4)
    assert stats["kl_loss"] > 0


def test_the_entropy_bonus_raises_entropy() -> None:
    """Invariant 24: the gradient gets -entropy_coef times that of the mean entropy a token."""
    whole, _ = gradient(entropy_coef=0.5)
    without, _ = gradient()

    def bonus(_: Any, entropy: torch.Tensor, e: Any) -> torch.Tensor:
        return -0.5 * entropy[e.response_mask].mean()

    term = of_loss(bonus, entropy_coef=0.5)
    assert term.abs().max() > 1e-4
    torch.testing.assert_close(whole - without, term, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize(("mix", "policy"), [("added", 1.0), ("convex", 0.6)])
def test_the_ptx_loss_is_the_stage_1_loss(mix: str, policy: float) -> None:
    """Invariant 27: the gradient gets ptx_coef times that of the stock cross-entropy on the
    trained tokens; convex, the policy's is scaled down."""
    whole, stats = gradient(ptx=True, ptx_coef=0.4, ptx_mix=mix, microbatch_size=1)
    without, _ = gradient()
    trainer = make_trainer("gpt2")
    model = trainer.roles.actor.unwrapped.model
    total, count = torch.zeros(()), 0
    for row in ROWS:
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        trained = int((labels[:, 1:] != -100).sum())
        total, count = total + model(input_ids=ids, labels=labels).loss * trained, count + trained
    (total / count).backward()
    weights = trainer.roles.actor.module.parameters()
    term = torch.cat([p.grad.flatten() for p in weights])
    torch.testing.assert_close(whole, policy * without + 0.4 * term, atol=2e-6, rtol=1e-4)
    assert stats["ptx_loss"] == pytest.approx((total / count).item(), rel=1e-5)


def test_a_mean_over_replies() -> None:
    """Invariant 21: with loss_mean sequences each reply counts alike, whatever its length."""
    whole, _ = gradient(loss_mean="sequences", microbatch_size=1)

    def mean(logprobs: torch.Tensor, _: Any, e: Any) -> torch.Tensor:
        surrogate = (e.advantages * logprobs).masked_fill(~e.response_mask, 0.0)
        return -(surrogate.sum(1) / e.response_mask.sum(1)).mean()

    torch.testing.assert_close(whole, of_loss(mean), atol=2e-6, rtol=1e-4)


def test_each_clip_is_its_own() -> None:
    """Invariant 20: ppo.clip is the ratio's, ppo.value_clip the value's."""
    found = {}
    for clip, value_clip in ((0.01, 1e9), (1e9, 0.01)):
        trainer = make_trainer("gpt2", clip=clip, value_clip=value_clip)
        made = experience_of(trainer)
        made = replace(made, logprobs=made.logprobs - 0.1, values=made.values - 0.1)
        found[clip] = trainer.optimize(made, torch.arange(4))
    assert found[0.01]["clip_fraction"] > 0 == found[0.01]["value_clip_fraction"]
    assert found[1e9]["value_clip_fraction"] > 0 == found[1e9]["clip_fraction"]


def test_an_update_ends_where_the_policy_has_moved_far() -> None:
    """Invariant 22: after the minibatch whose KL from the rollout is above the limit."""
    moving: dict[str, Any] = {"epochs": 3, "minibatch_size": 2, "actor_learning_rate": 0.02}
    steps = {}
    for limit in (None, 1e-7, 1e9):
        trainer = make_trainer("gpt2", early_stop_kl=limit, **moving)
        steps[limit] = trainer.update(experience_of(trainer))
        assert trainer.roles.actor.steps == len(steps[limit])
    assert len(steps[None]) == len(steps[1e9]) == 6
    assert 1 < len(steps[1e-7]) < 6
    assert [s["approx_kl"] > 1e-7 for s in steps[1e-7]][-2:] == [False, True]


def test_the_price_of_kl_is_steered() -> None:
    """Invariant 18: after each update by that update's KL and by all its replies, in however many
    minibatches; fixed without a target."""
    sizes = {"batch_size": 8, "minibatch_size": 4}
    for target in (None, 2.0):
        trainer = make_trainer("gpt2", kl_target=target, kl_horizon=40.0, kl_coef=0.1, **sizes)
        _, stats = trainer.step(PROMPTS * 2)
        assert stats["kl_coef"] == 0.1
        expected = 0.1 if target is None else next_kl_coef(0.1, stats["kl"], 2.0, 8, 40.0)
        assert trainer.state.kl_coef == expected
    assert expected == pytest.approx(0.096)


def test_samples_of_a_prompt_are_neighbours() -> None:
    """Invariant 31: groups are rows in a row, as the estimators read them."""
    trainer = make_trainer("gpt2", samples_per_prompt=2, batch_size=8, minibatch_size=8)
    experience, _ = trainer.step(PROMPTS)
    width = experience.response_mask.shape[1]
    prompts = [experience.ids[i, :-width][experience.mask[i, :-width]].tolist() for i in range(8)]
    assert prompts == [prompt for prompt in PROMPTS for _ in range(2)]


def test_grpo_with_and_without_the_deviation() -> None:
    """Invariant 19: group_std divides by the group's deviation."""
    common: dict[str, Any] = {"estimator": "grpo", "samples_per_prompt": 2, "kl_coef": 0.0}
    plain, scaled = (
        experience_of(make_trainer("gpt2", group_std=std, **common)).advantages[:, 0]
        for std in (False, True)
    )
    torch.testing.assert_close(scaled.abs(), torch.ones(4), atol=1e-4, rtol=0)
    assert (plain.abs() - 1).abs().max() > 1e-2
    torch.testing.assert_close(plain[0::2], -plain[1::2])


def test_the_critic_alone_in_its_warmup() -> None:
    """Invariant 22: the actor's weights and steps begin after it, from the schedule's start."""
    trainer = make_trainer("gpt2", critic_warmup=1, warmup=0.5, updates=3)
    before = parameters(trainer.roles.actor.module)
    trainer.step(PROMPTS)
    assert (trainer.roles.actor.steps, trainer.roles.critic.steps) == (0, 1)
    assert largest_difference(before, parameters(trainer.roles.actor.module)) == 0
    trainer.step(PROMPTS)
    assert (trainer.roles.actor.steps, trainer.roles.critic.steps) == (1, 2)
    assert largest_difference(before, parameters(trainer.roles.actor.module)) > 0


def test_a_critic_from_zero_values_everything_at_zero() -> None:
    """Invariant 12: stage 1's model with a head of zeros."""
    scored = make_trainer("gpt2", critic_init="zero").score(fixed_rollout())
    assert (scored.values == 0).all()


def test_the_schedule_follows_the_run_where_updates_end_early() -> None:
    """Invariant 22: updates that stop after their first step leave the rate where the run is."""
    trainer = make_trainer("gpt2", updates=4, epochs=2, lr_schedule="linear", early_stop_kl=0.1)
    optimize = trainer.optimize
    trainer.optimize = lambda e, rows: {**optimize(e, rows), "approx_kl": 1.0}
    factors = [trainer.step(PROMPTS)[1]["learning_rate_factor"] for _ in range(4)]
    assert trainer.roles.actor.steps == 4
    assert factors == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_the_critics_warmup_steers_no_price() -> None:
    """Invariant 18: the actor stands still, and its KL of 0 says nothing of the price."""
    trainer = make_trainer("gpt2", critic_warmup=1, kl_target=1.0, kl_horizon=4.0)
    trainer.step(PROMPTS)
    assert trainer.state.kl_coef == PPO.kl_coef
    trainer.step(PROMPTS)
    assert trainer.state.kl_coef == pytest.approx(0.8 * PPO.kl_coef)


def test_evaluation_reads_the_last_token() -> None:
    """Invariant 25: with the estimator that averages over positions too, so that runs compare."""
    trainer = make_trainer("gpt2", estimator="coati", critic_init="zero")
    rollout = fixed_rollout()
    wanted = make_trainer("gpt2").score(rollout).scores
    assert torch.equal(trainer.score(rollout, last_token=True).scores, wanted)
    assert not torch.allclose(trainer.score(rollout).scores, wanted)
    assert evaluate(trainer, PROMPTS).scores == evaluate(make_trainer("gpt2"), PROMPTS).scores
