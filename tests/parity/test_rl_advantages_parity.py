"""GAE and whitening against independently written second implementations."""

import math
import random
import statistics

import pytest
import torch

from cores.rl import explained_variance, gae, whiten

LENGTHS = [7, 4, 1, 0]


def double_sum(rewards, values, gamma, lam):
    """One row without masks, from the definition: sum over l of (gamma lam)^l delta_{t+l}."""
    n = len(rewards)
    after = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * after[t] - values[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


def mixture_of_n_step(rewards, values, gamma, lam):
    """The same by Schulman et al. 2016's other form: the lambda-weighted n-step advantages."""
    n = len(rewards)
    result = []
    for t in range(n):
        total, discounted = 0.0, 0.0
        for k in range(1, n - t + 1):
            discounted += gamma ** (k - 1) * rewards[t + k - 1]
            last = k == n - t
            bootstrap = 0.0 if last else gamma**k * values[t + k]
            weight = lam ** (k - 1) * (1.0 if last else 1 - lam)
            total += weight * (discounted + bootstrap - values[t])
        result.append(total)
    return result


@pytest.mark.parametrize("second", [double_sum, mixture_of_n_step])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (0.7, 0.0)])
def test_gae_against_the_definitions(second, gamma, lam):
    """Invariant 13: the recursion is the sum it stands for, rows of unequal length."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 4, 7, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, n in enumerate(LENGTHS):
        expected = second(rewards[row, :n].tolist(), values[row, :n].tolist(), gamma, lam)
        assert advantages[row, :n].tolist() == pytest.approx(expected, abs=1e-12)
        expected_returns = [a + v for a, v in zip(expected, values[row].tolist(), strict=False)]
        assert returns[row, :n].tolist() == pytest.approx(expected_returns, abs=1e-12)


def test_whiten_against_statistics():
    """Invariant 19: Python's own population standard deviation gives the same z-scores."""
    rng = random.Random(0)
    numbers = [rng.gauss(3, 20) for _ in range(50)]
    x = torch.tensor([[*numbers, 1e6]], dtype=torch.float64)
    mask = torch.arange(51)[None] < 50
    mean, std = statistics.fmean(numbers), statistics.pstdev(numbers)
    got = whiten(x, mask)[0].tolist()
    assert got == pytest.approx([*((n - mean) / std for n in numbers), 0.0], abs=1e-9)


def test_whiten_over_two_ranks():
    """Invariant 19: two halves with the moments of both are the whole batch whitened."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 5, generator=generator) * 3 + 10
    mask = torch.rand(4, 5, generator=generator) < 0.7
    valid = x[mask]
    moments = {"mean": valid.mean(), "var": valid.var(unbiased=False)}
    halves = [whiten(x[:2], mask[:2], **moments), whiten(x[2:], mask[2:], **moments)]
    torch.testing.assert_close(torch.cat(halves), whiten(x, mask), rtol=1e-5, atol=1e-6)


def test_explained_variance_against_regression():
    """Invariant 24: values on the least-squares line explain the squared correlation."""
    generator = torch.Generator().manual_seed(2)
    x, noise = torch.randn(2, 100, generator=generator, dtype=torch.float64)
    returns = 2 * x + noise
    correlation = statistics.correlation(x.tolist(), returns.tolist())
    slope, intercept = statistics.linear_regression(x.tolist(), returns.tolist())
    fitted = slope * x + intercept
    mask = torch.ones(4, 25, dtype=torch.bool)
    got = explained_variance(fitted.view(4, 25), returns.view(4, 25), mask)
    assert math.isclose(got.item(), correlation**2, rel_tol=1e-9)
