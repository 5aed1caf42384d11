"""GAE and whitening against independently written second implementations."""

import math
import statistics

import torch

from cores.rl import explained_variance

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
