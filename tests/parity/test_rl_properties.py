"""Properties of cores.rl on any batch, found by hypothesis. Tensors (B, T)."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cores.rl import (
    gae,
    kl_estimate,
    masked_mean,
    masked_moments,
    policy_loss,
    shape_rewards,
    value_loss,
    whiten,
)

quick = settings(deadline=None, max_examples=60, derandomize=True)

NAN, INF = float("nan"), float("inf")
FLOATS = st.floats(-5, 5, width=32)
JUNK = st.sampled_from([NAN, INF, -INF, 1e30, 0.0])


@st.composite
def batches(draw, count):
    """count tensors (B, T) float32 of moderate numbers, and any bool mask (B, T)."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    size = rows * width
    mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    tensors = [
        torch.tensor(draw(st.lists(FLOATS, min_size=size, max_size=size))).view(rows, width)
        for _ in range(count)
    ]
    return tensors, torch.tensor(mask).view(rows, width)


def outcomes(function, tensors, mask):
    """What function(*tensors) gives, then the gradients of its sum, as a flat list."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    results = [x for x in function(*leaves) if x.dim() == 2 or x.requires_grad]
    sum(x.sum() for x in results).backward()
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    for x in [*gradients, *(r for r in results if r.dim() == 2)]:
        assert not x[~mask].any(), "not 0 outside the mask"
    return [x.detach() for x in function(*leaves)] + gradients


def assert_no_leak(function, tensors, mask, junk):
    """Assert that junk in the masked slots changes no result and no gradient."""
    dirty = [torch.where(mask, x, junk) for x in tensors]
    pairs = zip(outcomes(function, tensors, mask), outcomes(function, dirty, mask), strict=True)
    for clean_result, dirty_result in pairs:
        assert torch.isfinite(clean_result).all()
        assert torch.equal(clean_result, dirty_result)


@quick
@given(batches(3), JUNK)
def test_policy_loss_never_leaks(batch, junk):
    """Invariants 23, 24: loss, statistics and gradients ignore masked slots of any content."""
    tensors, mask = batch

    def function(logprobs, old_logprobs, advantages):
        loss, stats = policy_loss(logprobs, old_logprobs, advantages, mask, 0.2)
        return [loss, *stats.values()]

    assert_no_leak(function, tensors, mask, junk)


@quick
@given(batches(3), JUNK)
def test_value_loss_never_leaks(batch, junk):
    """Invariants 23, 24: the same for the critic."""
    tensors, mask = batch

    def function(values, old_values, returns):
        loss, stats = value_loss(values, old_values, returns, mask, 0.2)
        return [loss, *stats.values()]

    assert_no_leak(function, tensors, mask, junk)


@quick
@given(batches(2), JUNK, st.sampled_from(["k1", "k2", "k3"]))
def test_kl_and_rewards_never_leak(batch, junk, kind):
    """Invariants 14, 23: KL and rewards, in value and gradient."""
    tensors, mask = batch
    scores = torch.linspace(-1, 1, len(mask))

    def function(logprobs, ref_logprobs):
        kl = kl_estimate(logprobs, ref_logprobs, kind, response_mask=mask)
        return [kl, shape_rewards(scores, logprobs, mask, 0.1)]

    assert_no_leak(function, tensors, mask, junk)


@quick
@given(batches(2), JUNK, st.floats(0, 1), st.floats(0, 1))
def test_gae_never_leaks(batch, junk, gamma, lam):
    """Invariants 15, 23: advantages and returns, in value and gradient, any mask."""
    tensors, mask = batch
    assert_no_leak(lambda r, v: gae(r, v, mask, gamma, lam), tensors, mask, junk)


@quick
@given(batches(1), JUNK)
def test_whiten_never_leaks(batch, junk):
    """Invariants 19, 23: whitened values and the masked mean, in value and gradient."""
    tensors, mask = batch
    assert_no_leak(lambda x: [whiten(x, mask), masked_mean(x, mask)], tensors, mask, junk)


@quick
@given(batches(1))
def test_whitened_moments(batch):
    """Invariant 19: mean 0 and variance 1 (biased) over the mask, or all 0."""
    (x,), mask = batch
    _, var = masked_moments(x, mask)
    got = whiten(x, mask)
    mean, whitened_var = masked_moments(got, mask)
    assert abs(mean) < 1e-4
    if var > 1e-3:  # well above eps
        assert abs(whitened_var - 1) < 1e-3
    if x[mask].numel() == 0 or (x[mask] == x[mask][0]).all():
        assert not got.any()


@quick
@given(batches(2))
def test_k2_k3_are_not_negative(batch):
    """Invariant 17: k2, k3 >= 0, in float32 too, and k3 stays so for tiny differences."""
    (logprobs, ref), _ = batch
    for scale in (1.0, 1e-3, 1e-6):
        for kind in ("k2", "k3"):
            assert (kl_estimate(logprobs * scale, ref * scale, kind) >= 0).all()


@quick
@given(batches(3), st.floats(0.05, 0.5))
def test_clip_gradient_half_planes(batch, clip):
    """Invariant 20: no gradient above 1 + clip for A > 0 and below 1 - clip for A < 0; else
    -ratio * A / n."""
    (logprobs, old, advantages), mask = batch
    leaf = logprobs.clone().requires_grad_()
    policy_loss(leaf, old, advantages, mask, clip)[0].backward()
    ratio = (logprobs - old).exp()
    cut = ((advantages > 0) & (ratio > 1 + clip)) | ((advantages < 0) & (ratio < 1 - clip))
    free = -ratio * advantages / max(1, mask.sum().item())
    expected = torch.where(mask & ~cut, free, 0.0)
    edge = ((ratio - 1).abs() - clip).abs() < 1e-5  # either side is right there
    torch.testing.assert_close(
        torch.where(edge, 0.0, leaf.grad), torch.where(edge, 0.0, expected), rtol=1e-4, atol=1e-6
    )


@quick
@given(batches(1), st.floats(0, 2))
def test_sum_of_rewards(batch, kl_coef):
    """Invariant 14: a row's rewards sum to score - kl_coef * its KL; 0 if it has no token."""
    (kl,), mask = batch
    scores = torch.linspace(-3, 3, len(mask))
    got = shape_rewards(scores, kl, mask, kl_coef).sum(1)
    kl_sums = torch.where(mask, kl, 0.0).sum(1)
    expected = torch.where(mask.any(1), scores - kl_coef * kl_sums, 0.0)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@quick
@given(batches(2), st.floats(0, 1))
def test_gae_limits(batch, gamma):
    """Invariant 13: lambda 1: returns are the discounted rewards to come, advantages those - V;
    lambda 0: returns are r + gamma V'; always returns = advantages + values."""
    (rewards, values), mask = batch
    monte_carlo, mc_returns = gae(rewards, values, mask, gamma, 1.0)
    one_step, td_returns = gae(rewards, values, mask, gamma, 0.0)
    for row in range(len(mask)):
        places = mask[row].nonzero()[:, 0].tolist()
        to_come, next_value = 0.0, 0.0
        for t in reversed(places):
            reward, value = rewards[row, t].item(), values[row, t].item()
            to_come = reward + gamma * to_come
            assert abs(mc_returns[row, t] - to_come) < 1e-4
            assert abs(monte_carlo[row, t] - (to_come - value)) < 1e-4
            assert abs(td_returns[row, t] - (reward + gamma * next_value)) < 1e-4
            assert abs(one_step[row, t] + value - td_returns[row, t]) < 1e-4
            next_value = value
