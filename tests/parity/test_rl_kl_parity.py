"""The KL estimators against the exact KL of two distributions over a small vocabulary."""

import pytest
import torch

from cores.rl import kl_estimate, shape_rewards

SAMPLES = 200_000


def _setting():
    """Log-probs (V,) of two distributions over three tokens, float64, and tokens (SAMPLES,) of
    the first. KL(policy || reference) = .277, the other way round .347."""
    policy = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.multinomial(policy, SAMPLES, replacement=True, generator=generator)
    return policy.log(), reference.log(), tokens


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_monte_carlo_mean_is_the_exact_kl(kind):
    """Invariant 17: k1 and k3 are unbiased: four standard errors from the sum over V."""
    policy, reference, tokens = _setting()
    exact = (policy.exp() * (policy - reference)).sum()
    got = kl_estimate(policy[tokens][None], reference[tokens][None], kind)
    assert abs(got.mean() - exact) < 4 * got.std() / SAMPLES**0.5
    assert got.std() / SAMPLES**0.5 < 0.01 * exact
    swapped = (reference.exp() * (reference - policy)).sum()
    assert abs(got.mean() - swapped) > 4 * got.std() / SAMPLES**0.5


def test_k2_is_biased_but_near():
    """Invariant 17: k2's mean is the sum of p x^2 / 2, near the KL of near distributions."""
    policy, reference, tokens = _setting()
    x = policy - reference
    expectation = (policy.exp() * x.square() / 2).sum()
    got = kl_estimate(policy[tokens][None], reference[tokens][None], "k2")
    assert abs(got.mean() - expectation) < 4 * got.std() / SAMPLES**0.5
    exact = (policy.exp() * x).sum()
    assert abs(expectation - exact) < 0.3 * exact


def test_exact_over_the_vocabulary():
    """Invariant 17: the estimators' expectation taken exactly, without sampling noise."""
    policy, reference, _ = _setting()
    exact = (policy.exp() * (policy - reference)).sum()
    for kind in ("k1", "k3"):
        per_token = kl_estimate(policy[None], reference[None], kind)[0]
        torch.testing.assert_close((policy.exp() * per_token).sum(), exact)


def test_rewards_against_a_loop():
    """Invariant 14: rewards by a plain loop over rows and tokens."""
    generator = torch.Generator().manual_seed(3)
    kl = torch.randn(5, 6, generator=generator)
    mask = torch.rand(5, 6, generator=generator) < 0.5
    mask[0], mask[1] = False, True
    scores = torch.randn(5, generator=generator)
    expected = torch.zeros(5, 6)
    for row in range(5):
        last = None
        for t in range(6):
            if mask[row, t]:
                expected[row, t] = -0.2 * kl[row, t]
                last = t
        if last is not None:
            expected[row, last] += scores[row]
    torch.testing.assert_close(shape_rewards(scores, kl, mask, 0.2), expected)
