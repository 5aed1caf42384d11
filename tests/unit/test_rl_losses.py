"""The losses and their statistics against numbers by hand. (B, T), pairs (B,)."""

import math

import pytest
import torch

from cores.rl import masked_mean, policy_loss, repetition, value_loss

NAN = float("nan")
RATIOS = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.1, NAN]])
ADVANTAGES = torch.tensor([[1.0, 1.0, -1.0, -1.0, 2.0, NAN]])
MASK = torch.tensor([[True, True, True, True, True, False]])
# min(ratio * A, clip(ratio, .8, 1.2) * A) = [1.2, .5, -1.5, -.8, 2.2, -]; clip removes the first
# (above, A > 0) and the fourth (below, A < 0)


def _policy(logprobs, denominator=None):
    old = torch.zeros_like(logprobs)
    return policy_loss(logprobs, old, ADVANTAGES, MASK, 0.2, denominator)


def test_policy_loss_by_hand():
    """Invariants 20, 24: eq. 7 in all four quadrants, with masked statistics."""
    loss, stats = _policy(RATIOS.log())
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8 + 2.2) / 5)
    assert stats["ratio_mean"].item() == pytest.approx((1.5 + 0.5 + 1.5 + 0.5 + 1.1) / 5)
    assert stats["ratio_max"].item() == pytest.approx(1.5)
    assert stats["clip_fraction"].item() == pytest.approx(2 / 5)
    kl = sum(r - 1 - math.log(r) for r in (1.5, 0.5, 1.5, 0.5, 1.1)) / 5
    assert stats["approx_kl"].item() == pytest.approx(kl, rel=1e-5)
    assert set(stats) == {"ratio_mean", "ratio_max", "clip_fraction", "approx_kl"}
    assert all(s.shape == () and not s.requires_grad for s in stats.values())


def test_clipped_gradient():
    """Invariants 20, 23: d loss / d logprob = -ratio * A / 5, and 0 where clipped or masked."""
    logprobs = RATIOS.log().requires_grad_()
    _policy(logprobs)[0].backward()
    expected = torch.tensor([[0.0, -0.5, 1.5, 0.0, -2.2, 0.0]]) / 5
    torch.testing.assert_close(logprobs.grad, expected)


def test_policy_loss_at_the_start():
    """Invariants 9 (pure part), 24: same log-probs: ratio 1, clip fraction 0, KL 0."""
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, -0.5, -4.0, NAN]])
    _, stats = policy_loss(logprobs, logprobs, ADVANTAGES, MASK, 0.2)
    got = {key: value.item() for key, value in stats.items()}
    assert got == {"ratio_mean": 1.0, "ratio_max": 1.0, "clip_fraction": 0.0, "approx_kl": 0.0}


def test_zero_advantages():
    """Invariant 11: advantages of 0 give a policy gradient of 0, at any ratio."""
    logprobs = torch.tensor([[-0.1, -2.0, -1.0]], requires_grad=True)
    old, mask = torch.full((1, 3), -1.0), torch.ones(1, 3, dtype=torch.bool)
    policy_loss(logprobs, old, torch.zeros(1, 3), mask, 0.2)[0].backward()
    assert not logprobs.grad.any()


def test_value_loss_by_hand():
    """Invariants 20, 24: 0.5 * max form. V_old 0, clip .2.

    V 1, R 2: V_clipped .2: max(1, 3.24) = 3.24, clip acts. V 1, R 0: max(1, .04) = 1.
    V .1, R 1: not moved far: .81.
    """
    values = torch.tensor([[1.0, 1.0, 0.1, NAN]], requires_grad=True)
    returns = torch.tensor([[2.0, 0.0, 1.0, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    loss, stats = value_loss(values, torch.zeros(1, 4), returns, mask, 0.2)
    assert loss.item() == pytest.approx(0.5 * (3.24 + 1 + 0.81) / 3)
    assert stats["value_clip_fraction"].item() == pytest.approx(1 / 3)
    assert stats["value_error"].item() == pytest.approx((1 + 1 + 0.81) / 3)
    assert set(stats) == {"value_clip_fraction", "value_error"}
    loss.backward()
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, 1.0, -0.9, 0.0]]) / 3)


def test_losses_with_nothing_valid():
    """Invariant 23: a batch without a valid token has loss, gradients and statistics 0."""
    none = torch.zeros(2, 3, dtype=torch.bool)
    junk = torch.full((2, 3), NAN)
    for loss_of in (
        lambda x: policy_loss(x, junk, junk, none, 0.2),
        lambda x: value_loss(x, junk, junk, none, 0.2),
        lambda x: policy_loss(x, junk, junk, none, 0.2, denominator=0),
    ):
        x = junk.clone().requires_grad_()
        loss, stats = loss_of(x)
        loss.backward()
        assert loss.item() == 0
        assert not x.grad.any()
        assert all(s.item() == 0 for s in stats.values())


def test_denominator():
    """Invariant 21: a given denominator replaces the count of valid tokens everywhere."""
    own, own_stats = _policy(RATIOS.log())
    loss, stats = _policy(RATIOS.log(), denominator=torch.tensor(20))
    assert loss.item() == pytest.approx(own.item() * 5 / 20)
    for key in ("ratio_mean", "clip_fraction", "approx_kl"):
        assert stats[key].item() == pytest.approx(own_stats[key].item() * 5 / 20)


def test_masked_mean():
    """Invariants 23, 24: sums and means over the True places only, weights likewise."""
    x = torch.tensor([[1.0, NAN, 5.0]])
    mask = torch.tensor([[True, False, True]])
    assert masked_mean(x, mask, denominator=1) == 6
    assert masked_mean(x, mask, weights=torch.tensor([[4.0, NAN, 2.0]])) == 7
    assert masked_mean(x, mask) == 3
    assert masked_mean(x, mask, denominator=12) == 0.5
    assert masked_mean(x, torch.zeros(1, 3, dtype=torch.bool)) == 0


def test_shapes_that_would_broadcast():
    """(B, T) against (B, 1) would go unnoticed; it is refused."""
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="as the mask"):
        policy_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1), mask, 0.2)
    with pytest.raises(ValueError, match="as the mask"):
        value_loss(torch.zeros(2, 4), torch.zeros(2, 3), torch.zeros(2, 3), mask, 0.2)


def test_repetition_by_hand() -> None:
    """Of five runs of four the last is the first; what lies behind the end is no run, nor like one;
    a row of three tokens has none."""
    ids = torch.tensor(
        [[7, 8, 0, 9, 7, 8, 0, 9], [5, 5, 5, 5, 5, 5, 0, 0], [3, 3, 3, 0, 0, 0, 0, 0]]
    )
    mask = torch.tensor([[True] * 8, [True] * 6 + [False] * 2, [True] * 3 + [False] * 5])
    assert repetition(ids, mask).tolist() == pytest.approx([1 / 5, 2 / 3, 0.0])
    assert repetition(ids[:, :3], mask[:, :3]).tolist() == [0.0, 0.0, 0.0]
    large = torch.tensor([[150_000, 149_999, 3, 150_000] * 3])
    assert repetition(large, torch.ones_like(large, dtype=torch.bool)).item() == pytest.approx(
        5 / 9
    )
