"""The 2023 original's estimator, each of its switches, by hand. B rows, L positions, T tokens."""

import math

import pytest
import torch

from cores.models.rows import before_replies, last_attended
from cores.rl.coati import coati_advantages, coati_rewards, mean_over_row, read_values

NAN = float("nan")
VALUES = torch.tensor([[9.0, 1.0, 2.0, 3.0, 6.0], [4.0, 5.0, 6.0, 7.0, 100.0]])
"""(B, L): two prompt positions, T = 3. The first row is padded on the left, the second's reply on
the right."""
MASK = torch.tensor([[False, True, True, True, True], [True, True, True, True, False]])
RESPONSE = MASK[:, 2:]


def read_score(values, on):
    """What the trainer reads, with mean_over_positions on or off."""
    return mean_over_row(values, MASK) if on else last_attended(values, MASK)


def read(values, mean_over_positions, r_minus_v):
    """What the trainer makes of the critic's values (B, L)."""
    means = mean_over_row(values, MASK) if mean_over_positions else None
    return read_values(before_replies(values, 3), means, r_minus_v)


def test_score_of_the_last_token():
    """Off: position 4 of the first row, 3 of the second."""
    assert read_score(VALUES, on=False).tolist() == [6.0, 7.0]


def test_score_over_positions():
    """On: the mean over the row's positions but its last: (1 + 2 + 3) / 3, (4 + 5 + 6) / 3."""
    assert read_score(VALUES, on=True).tolist() == [2.0, 5.0]


def test_values_of_each_token():
    """Both off: the states before the tokens, positions 1 to 3."""
    assert read(VALUES, False, False).tolist() == [[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]]


def test_value_before_the_reply():
    """r_minus_v alone: position 1, the state before the first token, at every token."""
    assert read(VALUES, False, True).tolist() == [[1.0] * 3, [5.0] * 3]


@pytest.mark.parametrize("r_minus_v", [True, False])
def test_values_over_positions(r_minus_v):
    """mean_over_positions: the mean over all but the row's last, whatever else is on."""
    assert read(VALUES, True, r_minus_v).tolist() == [[2.0] * 3, [5.0] * 3]


@pytest.mark.parametrize("on", [True, False])
def test_padding_is_not_read(on):
    """Invariants 4, 15: what stands at a padded position changes no score and no value, NaN
    included, with mean_over_positions or without."""
    other = VALUES.clone()
    other[~MASK] = NAN
    found = [(read_score(v, on), read(v, on, True)) for v in (VALUES, other)]
    (score, values), (score2, values2) = found
    assert torch.equal(score, score2)
    assert torch.equal(values, values2)


def _rewards(reversed_kl):
    logprobs = torch.tensor([[-1.0, -1.0, -2.0], [-1.0, NAN, NAN]])
    ref = torch.tensor([[-1.5, -1.0, -1.0], [-3.0, NAN, NAN]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    scores = torch.tensor([1.0, 2.0])
    return coati_rewards(scores, logprobs, ref, mask, 0.5, reversed_kl)


def test_reward_by_hand():
    """Score - .5 * mean over the tokens of e^x - 1 - x, x = ref - policy: -.5, 0, 1; and -2."""
    k3 = [math.exp(x) - 1 - x for x in (-0.5, 0.0, 1.0, -2.0)]
    expected = [1 - 0.5 * sum(k3[:3]) / 3, 2 - 0.5 * k3[3]]
    assert _rewards(reversed_kl=False).tolist() == pytest.approx(expected)


def test_reversed_kl_swaps_the_two():
    """x = policy - ref."""
    k3 = [math.exp(x) - 1 - x for x in (0.5, 0.0, -1.0, 2.0)]
    expected = [1 - 0.5 * sum(k3[:3]) / 3, 2 - 0.5 * k3[3]]
    assert _rewards(reversed_kl=True).tolist() == pytest.approx(expected)


def test_reply_without_a_token():
    """Invariant 23: its reward is its score, not NaN."""
    none, junk = torch.zeros(1, 2, dtype=torch.bool), torch.full((1, 2), NAN)
    assert coati_rewards(torch.tensor([3.0]), junk, junk, none, 0.5, True).item() == 3.0
    advantages, returns = coati_advantages(torch.tensor([3.0]), junk, none, True, 1.0, 0.95)
    assert not advantages.any()
    assert not returns.any()


def test_advantage_is_reward_less_value():
    """r_minus_v: R - V at every token and R as the target, 0 outside the mask."""
    values = torch.tensor([[2.0, 2.0, NAN], [0.5, 0.5, 0.5]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = torch.tensor([5.0, -1.0])
    advantages, returns = coati_advantages(rewards, values, mask, True, 0.9, 0.5)
    assert advantages.tolist() == [[3.0, 3.0, 0.0], [-1.5, -1.5, -1.5]]
    assert returns.tolist() == [[5.0, 5.0, 0.0], [-1.0, -1.0, -1.0]]


def test_advantage_by_gae():
    """Invariant 13: without r_minus_v R comes with the last token: rewards 0, 5 and values 2, 1,
    gamma .9, lambda .5: A1 = 5 - 1 = 4, A0 = .9 * 1 - 2 + .45 * 4 = .7; returns A + V."""
    values = torch.tensor([[2.0, 1.0, NAN]])
    mask = torch.tensor([[True, True, False]])
    advantages, returns = coati_advantages(torch.tensor([5.0]), values, mask, False, 0.9, 0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.7, 4.0, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[2.7, 5.0, 0.0]]))
