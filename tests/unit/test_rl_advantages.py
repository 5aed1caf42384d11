"""GAE, whitening and explained variance against numbers by hand. All tensors (B, T)."""

import pytest
import torch

from cores.rl import explained_variance, gae, whiten

NAN = float("nan")
ALL = torch.ones(1, 3, dtype=torch.bool)


def test_gae_by_hand():
    """Invariant 13: GAE by hand, gamma 0.9, lambda 0.5.

    delta = [1 + .9*.5 - 2, 0 + .9*1 - .5, 2 - 1] = [-.55, .4, 1], gamma * lambda = .45
    A2 = 1, A1 = .4 + .45*1 = .85, A0 = -.55 + .45*.85 = -.1675; R = A + V
    """
    rewards, values = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[2.0, 0.5, 1.0]])
    advantages, returns = gae(rewards, values, ALL, gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[-0.1675, 0.85, 1.0]]))
    torch.testing.assert_close(returns, torch.tensor([[1.8325, 1.35, 2.0]]))


def test_value_after_the_end_is_zero():
    """Invariant 15: the last valid token's advantage is r - V; padding's value is not read."""
    rewards = torch.tensor([[1.0, 3.0, NAN, 9.0]])
    values = torch.tensor([[2.0, 0.5, 100.0, NAN]])
    mask = torch.tensor([[True, True, False, False]])
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert advantages.tolist() == [[2.0, 2.5, 0.0, 0.0]]
    assert returns.tolist() == [[4.0, 3.0, 0.0, 0.0]]


def test_value_is_of_the_state_before_the_token():
    """Invariant 15: with lambda 0 A_t = r_t + gamma V_{t+1} - V_t: V_t is subtracted."""
    values = torch.tensor([[10.0, 20.0, 40.0]])
    advantages, _ = gae(torch.zeros(1, 3), values, ALL, gamma=1.0, lam=0.0)
    assert advantages.tolist() == [[10.0, 20.0, -40.0]]


def test_gaps_are_not_there():
    """Invariants 13, 15: a mask with gaps gives what the valid tokens alone give."""
    mask = torch.tensor([[False, True, False, True, True, False]])
    rewards = torch.tensor([[NAN, 1.0, NAN, 0.0, 2.0, NAN]])
    values = torch.tensor([[NAN, 2.0, NAN, 0.5, 1.0, NAN]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages[mask], torch.tensor([-0.1675, 0.85, 1.0]))
    torch.testing.assert_close(returns[mask], torch.tensor([1.8325, 1.35, 2.0]))
    assert not advantages[~mask].any()
    assert not returns[~mask].any()


def test_gae_of_an_empty_response():
    """Invariants 16, 23: a fully masked row is 0 and leaves its neighbour alone."""
    mask = torch.tensor([[False], [True]])
    advantages, returns = gae(torch.tensor([[NAN], [3.0]]), torch.ones(2, 1), mask, 1.0, 0.95)
    assert advantages.tolist() == [[0.0], [2.0]]
    assert returns.tolist() == [[0.0], [3.0]]


def test_whiten_by_hand():
    """Invariant 19: masked, biased variance: [1, 3] has mean 2 and variance 1."""
    x = torch.tensor([[1.0, 3.0, 1e9]])
    got = whiten(x, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(got, torch.tensor([[-1.0, 1.0, 0.0]]))


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 12345.678, 1e-6])
def test_whiten_of_constant_and_single(value):
    """Invariant 19: a constant input and a single token give exactly 0, never NaN."""
    x = torch.full((1, 7), value)
    assert not whiten(x, torch.ones(1, 7, dtype=torch.bool)).any()
    single = torch.tensor([[False, False, True, False, False, False, False]])
    assert not whiten(x, single).any()


def test_explained_variance_by_hand():
    """Invariant 24: masked. Returns [0, 2, 4]: variance 8/3; errors [1, 0, -1]: variance 2/3."""
    returns = torch.tensor([[0.0, 2.0, 4.0, NAN]])
    values = torch.tensor([[-1.0, 2.0, 5.0, 50.0]])
    mask = torch.tensor([[True, True, True, False]])
    torch.testing.assert_close(explained_variance(values, returns, mask), torch.tensor(0.75))
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full((1, 4), 3.0), returns, mask) == 0


def test_explained_variance_of_constant_returns():
    """Invariant 24: returns without variance, or nothing valid, give 0, not NaN."""
    constant = torch.full((1, 3), 0.1)
    assert explained_variance(torch.randn(1, 3), constant, ALL) == 0
    assert explained_variance(torch.randn(1, 3), constant, ~ALL) == 0
