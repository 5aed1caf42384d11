"""Scores, rewards, advantages and returns as the trainer makes them from a rollout."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from _models import EOS, KINDS, PROMPTS, Scored, fixed_rollout, make_trainer, scalar_of
from torch import Tensor

from cores.errors import UserError
from cores.ppo.experience import describe
from cores.ppo.score import weighted_sum
from cores.rollout.engine import Rollout, response_mask


def rollout_of(replies: list[list[int]], prompts: list[list[int]], stops: list[int]) -> Rollout:
    """Replies padded on the right, prompts on the left, and masks as the engine makes them."""
    width, left = max(map(len, replies)), max(map(len, prompts))
    ids = torch.full((len(replies), left + width), 3)
    for i, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        ids[i, left - len(prompt) : left] = torch.tensor(prompt)
        ids[i, left : left + len(reply)] = torch.tensor(reply)
    mask, ended = response_mask(ids[:, left:], torch.tensor(stops))
    for i, reply in enumerate(replies):
        mask[i, len(reply) :] = False
    prompt_mask = torch.arange(left) >= left - torch.tensor([len(p) for p in prompts])[:, None]
    return Rollout(ids, torch.cat([prompt_mask, mask], 1), mask, torch.zeros(mask.shape), ended)


def made(scores: list[float], ended: list[bool], lengths: list[int], gap: float = 0.0) -> Scored:
    """A scored rollout with chosen numbers: log-probs -1, reference -1 - gap, values 0.5."""
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    ones = torch.where(mask, 1.0, torch.nan)  # what lies outside the mask has no meaning
    return Scored(
        ids=torch.ones(len(scores), width + 2, dtype=torch.int64),
        mask=torch.cat([torch.ones(len(scores), 2).bool(), mask], 1),
        response_mask=mask,
        ended=torch.tensor(ended),
        rollout_logprobs=-ones,
        logprobs=-ones,
        ref_logprobs=-ones - gap,
        entropy=ones,
        values=0.5 * ones,
        scores=torch.tensor(scores),
        score_parts=torch.tensor(scores)[:, None],
    )


def estimator(**ppo: Any) -> Any:
    return make_trainer("gpt2", **{"whiten_advantages": False, **ppo})


def test_rewards_advantages_and_returns_by_hand() -> None:
    """Invariants 13, 14: KL 0.2 nats a token at price 0.5 costs 0.1 a token, the score comes at the
    last token once; gamma 1, lambda 1: the return is the sum of rewards still to come."""
    trainer = estimator(kl_coef=0.5, lam=1.0, gamma=1.0, reward_clip=0.0, missing_eos_penalty=0.0)
    experience = trainer.estimate(made([2.0, -1.0], [True, True], [3, 1], gap=0.2))
    expected = torch.tensor([[-0.1, -0.1, 1.9], [-1.1, 0.0, 0.0]])
    torch.testing.assert_close(experience.rewards, expected)
    returns = torch.tensor([[1.7, 1.8, 1.9], [-1.1, 0.0, 0.0]])
    torch.testing.assert_close(experience.returns, returns)
    advantages = torch.where(experience.response_mask, returns - 0.5, 0.0)
    torch.testing.assert_close(experience.advantages, advantages)
    stats = describe(experience, [], critic=True)
    assert stats["kl"] == pytest.approx((0.6 + 0.2) / 2)
    assert stats["reward"] == pytest.approx((1.7 - 1.1) / 2)
    assert stats["score"] == pytest.approx(0.5)
    assert stats["response_length"] == 2.0
    assert stats["entropy"] == pytest.approx(1.0)
    assert stats["ended"] == 1.0


def test_gamma_and_lambda_reach_gae() -> None:
    """Invariant 13: lambda 0 leaves the TD error; gamma weighs the next value."""
    trainer = estimator(kl_coef=0.0, lam=0.0, gamma=0.9, reward_clip=0.0)
    experience = trainer.estimate(made([2.0], [True], [2]))
    torch.testing.assert_close(experience.advantages, torch.tensor([[0.9 * 0.5 - 0.5, 1.5]]))


def test_k_kinds_reach_the_reward() -> None:
    """Invariant 17: with x = 0.2, k2 is 0.02 and k3 exp(-0.2) - 1 + 0.2."""
    for kind, kl in (("k1", 0.2), ("k2", 0.02), ("k3", 0.0187308)):
        trainer = estimator(kl_coef=1.0, kl_kind=kind)
        experience = trainer.estimate(made([0.0], [True], [2], gap=0.2))
        torch.testing.assert_close(experience.rewards, torch.full((1, 2), -kl))


def test_clip_then_penalty() -> None:
    """Invariant 16: scores are clipped first, then a reply that never stopped pays, so that it ends
    below the worst that did; `scores` itself stays what the reward model said."""
    trainer = estimator(kl_coef=0.0, reward_clip=2.0, missing_eos_penalty=1.5)
    scored = made([9.0, 9.0, -9.0, 0.5], [True, False, False, True], [2, 2, 2, 2])
    experience = trainer.estimate(scored)
    assert experience.rewards.sum(dim=1).tolist() == [2.0, 0.5, -3.5, 0.5]
    assert experience.scores.tolist() == [9.0, 9.0, -9.0, 0.5]


@pytest.mark.parametrize("ended", [True, False])
def test_every_reply_truncated_or_none(ended: bool) -> None:
    """Invariant 16: with all replies truncated each pays and the numbers stay finite."""
    trainer = estimator(kl_coef=0.0, missing_eos_penalty=1.0, whiten_advantages=True)
    experience = trainer.estimate(made([1.0, 2.0, 3.0], [ended] * 3, [3, 3, 3]))
    total = [1.0, 2.0, 3.0] if ended else [0.0, 1.0, 2.0]
    assert experience.rewards.sum(dim=1).tolist() == total
    assert torch.isfinite(experience.advantages).all()


def test_whitening_covers_the_whole_rollout() -> None:
    """Invariant 19: mean 0 and variance 1 over all valid tokens together, not row by row or
    minibatch by minibatch; masked slots are 0; returns are not whitened; off is off."""
    scored = made([3.0, -1.0, 0.5, 2.0], [True] * 4, [4, 1, 2, 3], gap=0.1)
    plain = estimator().estimate(scored)
    white = estimator(whiten_advantages=True).estimate(scored)
    mask = scored.response_mask
    values = white.advantages[mask]
    assert abs(values.mean().item()) < 1e-6
    assert values.var(correction=0).item() == pytest.approx(1.0, abs=1e-5)
    assert abs(white.advantages[0].sum().item()) > 0.1
    assert (white.advantages[~mask] == 0).all()
    raw = plain.advantages[mask]
    torch.testing.assert_close(values, (raw - raw.mean()) / raw.std(correction=0))
    torch.testing.assert_close(white.returns, plain.returns)
    torch.testing.assert_close(plain.returns[mask], raw + 0.5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_values_are_those_of_the_state_before(kind: str) -> None:
    """Invariants 15, 16: values[:, t] is a forward pass over prompt and the t tokens before token
    t; the score is one over the whole reply, eos included. Eos first, custom stop, truncated."""
    trainer = make_trainer(kind, microbatch_size=2)
    replies = [[EOS], [9, 8, EOS], [9, 8, 7, 6, 5], [44, 17]]
    rollout = rollout_of(replies, PROMPTS, [EOS, 17])
    assert rollout.ended.tolist() == [True, True, False, True]
    scored = trainer.score(rollout)
    stock = scalar_of(kind).eval()

    def value(ids: list[int]) -> float:
        return stock(input_ids=torch.tensor([ids])).logits.item() - 0.75

    for i, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        expected = [value(prompt + reply[:t]) for t in range(len(reply))]
        found: Tensor = scored.values[i, : len(reply)]
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=1e-5)
        assert scored.scores[i].item() == pytest.approx(value(prompt + reply), abs=1e-5)
        assert rollout.row(i) == prompt + reply


@pytest.mark.parametrize("kind", KINDS)
def test_scoring_does_not_depend_on_micro_batches(kind: str) -> None:
    """Invariant 4: every column of `Scored` is the same for micro-batches of 1, 3 and 8 rows, and
    for the rows in another order."""
    rollout = fixed_rollout(rows=8)
    found = [make_trainer(kind, microbatch_size=n).score(rollout) for n in (1, 3, 8)]
    mask = rollout.response_mask
    order = torch.tensor([5, 2, 7, 0, 1, 3, 6, 4])
    shuffled = Rollout(
        rollout.ids[order],
        rollout.mask[order],
        mask[order],
        rollout.logprobs[order],
        rollout.ended[order],
    )
    other = make_trainer(kind, microbatch_size=3).score(shuffled)
    for name in ("logprobs", "ref_logprobs", "values", "entropy"):
        first = getattr(found[2], name)[mask]
        for again in found[:2]:
            torch.testing.assert_close(getattr(again, name)[mask], first, atol=1e-5, rtol=1e-5)
        moved = torch.empty_like(getattr(other, name))
        moved[order] = getattr(other, name)
        torch.testing.assert_close(moved[mask], first, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[0].scores, found[2].scores, atol=1e-5, rtol=1e-5)
    assert not any(getattr(found[0], n).requires_grad for n in ("logprobs", "values", "scores"))


def test_the_gap_between_engine_and_trainer_is_reported() -> None:
    """Invariants 1, 24: the largest difference of valid tokens only."""
    scored = made([1.0, 1.0], [True, True], [3, 1])
    engine = scored.logprobs.clone()
    engine[0, 1] += 0.25
    engine[1, 2] += 9.0
    stats = describe(
        estimator().estimate(replace(scored, rollout_logprobs=engine)), [], critic=True
    )
    assert stats["rollout_logprob_gap"] == pytest.approx(0.25)


def test_the_score_is_the_weighted_sum_of_its_sources() -> None:
    """Invariant 14: weight times score over the sources, whose own scores are kept beside it."""
    plain = make_trainer("gpt2").score(fixed_rollout())
    trainer = make_trainer("gpt2", rewards={"length.py:f": -0.5, "model": 2.0})
    trainer.functions = lambda rollout, rows: rollout.lengths[:, None].float()
    scored = trainer.score(fixed_rollout())
    lengths = fixed_rollout().lengths.float()
    torch.testing.assert_close(scored.score_parts, torch.stack([lengths, plain.scores], dim=1))
    torch.testing.assert_close(scored.scores, 2.0 * plain.scores - 0.5 * lengths)


def test_sources_that_say_none() -> None:
    """Nothing in the sum, nothing in the mean, and counted; NaN of the reward model is an error."""
    trainer = make_trainer("gpt2", rewards={"a.py:f": 1.0, "model": 0.5, "a.py:g": 1.0})
    plain, nan = make_trainer("gpt2").score(fixed_rollout()).scores, torch.nan
    rows = len(plain)
    said = torch.tensor([[3.0, nan]] + [[nan, nan]] * (rows - 1))
    trainer.functions = lambda rollout, rows: said
    experience = trainer.estimate(trainer.score(fixed_rollout()))
    torch.testing.assert_close(experience.scores, 0.5 * plain + said[:, 0].nan_to_num())
    stats = describe(experience, trainer.sources, critic=True)
    assert (stats["score_f"], stats["unscored_f"]) == (3.0, rows - 1)
    assert stats["unscored_g"] == rows
    assert "score_g" not in stats
    assert "unscored_model" not in stats
    trainer.roles.reward.model.config.reward_mean = nan
    with pytest.raises(UserError, match="the reward model scores a reply NaN"):
        trainer.score(fixed_rollout())


@torch.no_grad()
def test_each_column_comes_from_its_own_role() -> None:
    """Invariants 9, 10, 12: actor and reference, critic and reward model are equal at the start;
    once actor and critic have moved, reference and score have not."""
    trainer = make_trainer("gpt2")
    before = trainer.score(fixed_rollout())
    for role in (trainer.roles.actor, trainer.roles.critic):
        for weight in role.module.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    after, mask = trainer.score(fixed_rollout()), before.response_mask
    torch.testing.assert_close(after.scores, before.scores)
    torch.testing.assert_close(after.ref_logprobs, before.ref_logprobs)
    for name in ("logprobs", "values"):
        assert (getattr(after, name) - getattr(before, name))[mask].abs().min() > 1e-6


def test_the_weighted_sum_by_hand() -> None:
    parts = torch.tensor([[1.0, 10.0], [2.0, -4.0]])
    assert weighted_sum(parts, [2.0, 0.5]).tolist() == [7.0, 2.0]
    assert weighted_sum(parts[:, :1], [-1.0]).tolist() == [-1.0, -2.0]
    silent = torch.tensor([[1.0, math.nan], [math.nan, math.nan]])
    assert weighted_sum(silent, [2.0, 0.5]).tolist() == [2.0, 0.0]
    assert weighted_sum(parts, [math.inf, 0.0])[0] == math.inf  # what is broken stays so
    for wrong in ([1.0], [1.0] * 3):
        with pytest.raises(ValueError, match=r"parts has shape \(2, 2\), expected"):
            weighted_sum(parts, wrong)
