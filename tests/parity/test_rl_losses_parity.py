"""The losses against other ways to the same numbers."""

import pytest
import torch
from torch.nn import functional

from cores.rl import policy_loss, value_loss

GENERATOR_SEED = 5


def _batch():
    """logprobs, old_logprobs, advantages, values, old_values, returns (8, 6) float64, mask."""
    generator = torch.Generator().manual_seed(GENERATOR_SEED)
    tensors = torch.randn(6, 8, 6, generator=generator, dtype=torch.float64) * 0.5
    lengths = torch.tensor([6, 1, 0, 3, 6, 2, 5, 4])
    return tensors, torch.arange(6) < lengths[:, None]


def test_gradient_at_ratio_one_is_reinforce():
    """Invariant 11: through a softmax, the gradient of -mean(A * log pi(token))."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 4, 7, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, 7, (3, 4), generator=generator)
    advantages = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    mask = torch.arange(4) < torch.tensor([[4], [2], [1]])

    def gradient(loss_of):
        leaf = logits.clone().requires_grad_()
        logprobs = leaf.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        loss_of(logprobs).backward()
        return leaf.grad

    ppo = gradient(lambda lp: policy_loss(lp, lp.detach(), advantages, mask, 0.2)[0])
    reinforce = gradient(lambda lp: -(advantages[mask] * lp[mask]).sum() / mask.sum())
    torch.testing.assert_close(ppo, reinforce)
    one_hot = functional.one_hot(tokens, 7).double()  # the gradient in closed form
    closed = -(advantages * mask)[..., None] * (one_hot - logits.softmax(-1)) / mask.sum()
    torch.testing.assert_close(ppo, closed)


def _policy_by_cases(logprobs, old, advantages, mask, clip):
    """Eq. 7 by cases, in Python numbers: clip only where it makes the objective smaller."""
    total, clipped, kl = 0.0, 0, 0.0
    rows = zip(logprobs[mask].tolist(), old[mask].tolist(), advantages[mask].tolist(), strict=True)
    for new_logprob, old_logprob, advantage in rows:
        ratio = torch.tensor(new_logprob - old_logprob, dtype=torch.float64).exp().item()
        kl += ratio - 1 - (new_logprob - old_logprob)
        if advantage > 0 and ratio > 1 + clip:
            total, clipped = total + (1 + clip) * advantage, clipped + 1
        elif advantage < 0 and ratio < 1 - clip:
            total, clipped = total + (1 - clip) * advantage, clipped + 1
        else:
            total += ratio * advantage
    n = mask.sum().item()
    return -total / n, clipped / n, kl / n


def test_policy_loss_by_cases():
    """Invariants 20, 24: the min form equals the case distinction, and so do its statistics."""
    (logprobs, old, advantages, *_), mask = _batch()
    loss, stats = policy_loss(logprobs, old, advantages, mask, 0.2)
    expected, clipped, kl = _policy_by_cases(logprobs, old, advantages, mask, 0.2)
    assert clipped > 0
    assert loss.item() == pytest.approx(expected)
    assert stats["clip_fraction"].item() == pytest.approx(clipped)
    assert stats["approx_kl"].item() == pytest.approx(kl)


def test_value_loss_by_cases():
    """Invariant 20: the larger of the two errors, by interval arithmetic on each token."""
    (*_, values, old, returns), mask = _batch()
    loss, _ = value_loss(values, old, returns, mask, 0.1)
    errors = []
    rows = zip(values[mask].tolist(), old[mask].tolist(), returns[mask].tolist(), strict=True)
    for value, old_value, target in rows:
        near = min(max(value, old_value - 0.1), old_value + 0.1)
        errors.append(max((value - target) ** 2, (near - target) ** 2) / 2)
    assert loss.item() == pytest.approx(sum(errors) / len(errors))


def test_value_loss_without_clipping_is_half_mse():
    """Invariant 20: with a clip no value reaches, it is half of torch's mean squared error."""
    (*_, values, old, returns), mask = _batch()
    loss, stats = value_loss(values, old, returns, mask, 1e9)
    mse = functional.mse_loss(values[mask], returns[mask])
    torch.testing.assert_close(loss, mse / 2)
    torch.testing.assert_close(stats["value_error"], mse)
    assert stats["value_clip_fraction"] == 0
