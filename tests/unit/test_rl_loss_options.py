"""Asymmetric and dual clip, weights, correction and steering, by hand. (B, T)."""

import math

import pytest
import torch

from cores.rl import (
    masked_mean,
    next_kl_coef,
    policy_loss,
    rollout_weights,
    sequence_weights,
    value_loss,
)

NAN = float("nan")


def loss_and_gradient(ratios, advantages, **options):
    """Sum over the tokens of the loss, its gradient by token, statistics."""
    logprobs = torch.tensor([ratios]).log().requires_grad_()
    mask = torch.ones(1, len(ratios), dtype=torch.bool)
    old, advantages = torch.zeros(1, len(ratios)), torch.tensor([advantages])
    loss, stats = policy_loss(logprobs, old, advantages, mask, 0.2, 1, **options)
    loss.backward()
    return loss.item(), logprobs.grad[0].tolist(), stats


def test_clip_high():
    """Invariant 20: A > 0 learns up to ratio 1.5, not beyond; A < 0 is still clipped at .8."""
    ratios, advantages = [1.4, 1.6, 0.7, 0.9], [1.0, 1.0, -1.0, -1.0]
    loss, gradient, stats = loss_and_gradient(ratios, advantages, clip_high=0.5)
    assert loss == pytest.approx(-1.4 - 1.5 + 0.8 + 0.9)
    assert gradient == pytest.approx([-1.4, 0.0, 0.0, 0.9])
    assert stats["clip_fraction"].item() == 2
    _, gradient, stats = loss_and_gradient(ratios, advantages)
    assert gradient == pytest.approx([0.0, 0.0, 0.0, 0.9])
    assert stats["clip_fraction"].item() == 3


def test_dual_clip():
    """Invariant 20: with limit 3 the loss of A = -2 stops at 6; below ratio 3, and for A > 0 at
    any ratio, nothing changes; what it stops counts as clipped."""
    ratios, advantages = [2.9, 3.1, 9.0, 0.5, 0.5], [-2.0, -2.0, -1.0, 2.0, -1.0]
    loss, gradient, stats = loss_and_gradient(ratios, advantages, dual_clip=3.0)
    assert loss == pytest.approx(5.8 + 6.0 + 3.0 - 1.0 + 0.8, rel=1e-5)
    assert gradient == pytest.approx([5.8, 0.0, 0.0, -1.0, 0.0], rel=1e-5)
    assert stats["clip_fraction"].item() == 3
    _, gradient, stats = loss_and_gradient(ratios, advantages)
    assert gradient == pytest.approx([5.8, 6.2, 9.0, -1.0, 0.0], rel=1e-5)
    assert stats["clip_fraction"].item() == 1


def test_dual_clip_leaves_positive_advantages_alone():
    """A > 0 is bounded by the ordinary clip, A = 0 gives 0, at ratios beyond the limit too."""
    plain = loss_and_gradient([5.0, 5.0, 1.1], [1.0, 0.0, 1.0])
    assert loss_and_gradient([5.0, 5.0, 1.1], [1.0, 0.0, 1.0], dual_clip=3.0)[:2] == plain[:2]


def test_policy_weights():
    """Each token's loss times its weight, NaN in a masked slot harmless (invariant 23); statistics
    are not weighted."""
    logprobs = torch.tensor([[1.1, 0.9, NAN]]).log().requires_grad_()
    mask = torch.tensor([[True, True, False]])
    old, advantages = torch.zeros(1, 3), torch.tensor([[1.0, 2.0, NAN]])
    weights = torch.tensor([[0.5, 3.0, NAN]])
    loss, stats = policy_loss(logprobs, old, advantages, mask, 0.2, weights=weights)
    loss.backward()
    assert loss.item() == pytest.approx(-(0.5 * 1.1 + 3 * 0.9 * 2) / 2)
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.275, -2.7, 0.0]]))
    assert stats["ratio_mean"].item() == pytest.approx(1.0)


def test_value_weights():
    """0.5 * the mean of weight * square."""
    values = torch.tensor([[1.0, 3.0, NAN]], requires_grad=True)
    mask, returns = torch.tensor([[True, True, False]]), torch.tensor([[0.0, 1.0, NAN]])
    weights = torch.tensor([[2.0, 0.25, NAN]])
    loss, stats = value_loss(values, values.detach(), returns, mask, 0.2, weights=weights)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (2 * 1 + 0.25 * 4) / 2)
    torch.testing.assert_close(values.grad, torch.tensor([[1.0, 0.25, 0.0]]))
    assert stats["value_error"].item() == pytest.approx(2.5)


def test_weights_that_would_broadcast():
    """(B, 1) against (B, T) is refused."""
    mask = torch.ones(2, 3, dtype=torch.bool)
    zeros, weights = torch.zeros(2, 3), torch.ones(2, 1)
    with pytest.raises(ValueError, match="as the mask"):
        policy_loss(zeros, zeros, zeros, mask, 0.2, weights=weights)
    with pytest.raises(ValueError, match="as the mask"):
        value_loss(zeros, zeros, zeros, mask, 0.2, weights=weights)


MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)


@pytest.mark.parametrize("split", [[4], [2, 2], [1, 3], [1, 1, 1, 1]])
def test_sequence_weights(split):
    """Invariant 21: the parts of a minibatch add up to the mean over its replies of each reply's
    mean, however it is split."""
    x = torch.arange(16.0).view(4, 4)
    expected = sum(x[i][MASK[i]].mean().item() for i in range(4)) / 4
    total, tokens = 0.0, MASK.sum()
    for part in torch.arange(4).split(split):
        weights = sequence_weights(MASK[part], tokens, 4)
        total += masked_mean(x[part] * weights, MASK[part], tokens).item()
    assert total == pytest.approx(expected)


def test_sequence_weights_of_an_empty_reply():
    """Invariant 23: it counts among the replies, as 0; its weights are 0, not infinite."""
    mask = torch.tensor([[True, True], [False, False]])
    weights = sequence_weights(mask, 2, 2)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5], [0.0, 0.0]]))


ONES = torch.ones(1, 4, dtype=torch.bool)


@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_correction_where_both_agree(kind):
    """Invariant 33: exactly 1 where trainer and engine agree, 0 outside the mask."""
    logprobs = torch.tensor([[-1.0, -20.0, -0.1, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    got = rollout_weights(logprobs, logprobs.clone(), mask, kind, 2.0)
    assert got.tolist() == [[1.0, 1.0, 1.0, 0.0]]


def test_correction_by_hand():
    """Trainer over engine: ratios 4, 1.5, .6, .4. truncate cuts at 2; mask leaves out what lies
    outside .5 .. 2. No gradient."""
    logprobs = torch.tensor([[4.0, 1.5, 0.6, 0.4]]).log().requires_grad_()
    engine = torch.zeros(1, 4)
    cut = rollout_weights(logprobs, engine, ONES, "truncate", 2.0)
    torch.testing.assert_close(cut, torch.tensor([[2.0, 1.5, 0.6, 0.4]]))
    left_out = rollout_weights(logprobs, engine, ONES, "mask", 2.0)
    torch.testing.assert_close(left_out, torch.tensor([[0.0, 1.5, 0.6, 0.0]]))
    assert not cut.requires_grad
    assert not left_out.requires_grad


def test_correction_of_an_impossible_token():
    """A ratio beyond float32 is cut or left out, not infinite."""
    logprobs, engine = torch.zeros(1, 4), torch.full((1, 4), -1e3)
    assert rollout_weights(logprobs, engine, ONES, "truncate", 2.0).tolist() == [[2.0] * 4]
    assert rollout_weights(logprobs, engine, ONES, "mask", 2.0).tolist() == [[0.0] * 4]


def test_unknown_correction():
    """Named."""
    with pytest.raises(ValueError, match="'clip' is unknown"):
        rollout_weights(torch.zeros(1, 4), torch.zeros(1, 4), ONES, "clip", 2.0)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),  # on target
        (6.6, 1 + 0.1 * 0.128),  # 10% above
        (5.4, 1 - 0.1 * 0.128),
        (7.2, 1 + 0.2 * 0.128),
        (60.0, 1 + 0.2 * 0.128),  # saturates
        (0.0, 1 - 0.2 * 0.128),
        (-3.0, 1 - 0.2 * 0.128),
    ],
)
def test_steering_by_hand(kl, factor):
    """Invariant 18: Ziegler et al. 2019: 128 replies over a horizon of 1000, error held to 0.2."""
    assert next_kl_coef(0.05, kl, 6.0, 128, 1000.0) == pytest.approx(0.05 * factor, rel=1e-9)


def test_steering_reaches_its_target():
    """Invariant 18: in a world where KL is 1 / coef it ends where KL is the target."""
    coef = 0.05
    for _ in range(500):
        coef = next_kl_coef(coef, 1 / coef, 4.0, 128, 1000.0)
    assert math.isclose(1 / coef, 4.0, rel_tol=1e-3)
