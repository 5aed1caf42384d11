"""Advantages without a critic, by hand. Two prompts with two or three replies each. (B, T)."""

import pytest
import torch

from cores.rl import grpo, reinforce_pp, rloo
from cores.rl.advantages import EPS

NAN = float("nan")
MASK = torch.tensor([[True, True], [True, False], [True, False], [True, True]])
REWARDS = torch.tensor([[1.0, 3.0], [2.0, NAN], [5.0, NAN], [-1.0, 0.0]])
"""Returns 4 and 2 of the first prompt, 5 and -1 of the second; NaN outside the mask."""
ESTIMATORS = {
    "grpo": lambda r, m: grpo(r, m, 2, std=True),
    "dr_grpo": lambda r, m: grpo(r, m, 2, std=False),
    "rloo": lambda r, m: rloo(r, m, 2),
    "reinforce_pp": lambda r, m: reinforce_pp(r, m, 0.9),
}


def test_grpo_without_deviation_by_hand():
    """Means 3 and 2: 1 and -1, 3 and -3, on every token of the row."""
    expected = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [3.0, 0.0], [-3.0, -3.0]])
    torch.testing.assert_close(grpo(REWARDS, MASK, 2, std=False), expected)


def test_grpo_by_hand():
    """Population deviations 1 and 3 (the sample's would be root 2 of that)."""
    expected = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [1.0, 0.0], [-1.0, -1.0]])
    got = grpo(REWARDS, MASK, 2, std=True)
    torch.testing.assert_close(got, expected, atol=2 * EPS, rtol=0)


@pytest.mark.parametrize("group", [2, 3, 5, 6, 8, 12])
@pytest.mark.parametrize("std", [True, False])
def test_grpo_of_replies_that_score_alike(std, group):
    """A constant group teaches nothing: exactly 0, not 0 / 0, and not the rounding of its mean over
    a deviation as small."""
    torch.manual_seed(0)
    rewards = (10 * torch.rand(200, 1) - 5).repeat_interleave(group, dim=0)
    assert not grpo(rewards, torch.ones(200 * group, 1, dtype=torch.bool), group, std).any()


def test_rloo_by_hand():
    """Returns 4, 2, 3: less (2 + 3) / 2, (4 + 3) / 2, (4 + 2) / 2; the second prompt apart."""
    rewards = torch.tensor([[4.0], [2.0], [3.0], [10.0], [10.0], [40.0]])
    got = rloo(rewards, torch.ones(6, 1, dtype=torch.bool), 3)
    torch.testing.assert_close(got[:, 0], torch.tensor([1.5, -1.5, 0.0, -15.0, -15.0, 30.0]))


def test_rloo_is_reinforce_with_the_others_as_baseline():
    """Over a group it sums to 0, and is group / (group - 1) times what lies above the mean."""
    torch.manual_seed(0)
    rewards, mask = torch.randn(12, 1), torch.ones(12, 1, dtype=torch.bool)
    got = rloo(rewards, mask, 4)
    torch.testing.assert_close(got.view(3, 4).sum(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(got, grpo(rewards, mask, 4, std=False) * 4 / 3)
    for i in range(12):
        others = [j for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
        baseline = sum(rewards[j, 0].item() for j in others) / 3
        assert got[i, 0].item() == pytest.approx(rewards[i, 0].item() - baseline, abs=1e-6)


def test_rloo_of_one_reply():
    """It has no others."""
    with pytest.raises(ValueError, match="at least 2"):
        rloo(torch.ones(2, 1), torch.ones(2, 1, dtype=torch.bool), 1)


def test_reinforce_pp_by_hand():
    """Gamma .5: 1 + .5 * (2 + .5 * 4) = 3, 2 + .5 * 4 = 4, 4; the other row ends earlier."""
    rewards = torch.tensor([[1.0, 2.0, 4.0], [1.0, 8.0, NAN]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    got = reinforce_pp(rewards, mask, 0.5)
    torch.testing.assert_close(got, torch.tensor([[3.0, 4.0, 4.0], [5.0, 8.0, 0.0]]))
    whole = reinforce_pp(rewards, mask, 1.0)
    torch.testing.assert_close(whole, torch.tensor([[7.0, 6.0, 4.0], [9.0, 8.0, 0.0]]))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_is_masked_is_harmless(name):
    """Invariant 23: NaN and large numbers outside the mask, and a row without a valid token."""
    mask = MASK.clone()
    mask[3] = False
    clean = torch.where(mask, REWARDS, 0.0)
    expected = ESTIMATORS[name](clean, mask)
    assert torch.isfinite(expected).all()
    assert not expected[~mask].any()
    for junk in (NAN, 1e9):
        spoiled = torch.where(mask, clean, junk)
        assert torch.equal(ESTIMATORS[name](spoiled, mask), expected)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_groups_are_rows_in_a_row(name):
    """A change in one prompt's replies leaves the next prompt's advantages alone."""
    other = REWARDS.clone()
    other[1, 0] += 3
    before, after = (ESTIMATORS[name](r, MASK) for r in (REWARDS, other))
    assert torch.equal(before[2:], after[2:])
    assert (before[:2] != after[:2])[MASK[:2]].any()


def test_rows_that_do_not_divide():
    """Refused, rather than grouped across prompts."""
    mask = torch.ones(3, 2, dtype=torch.bool)
    for estimator in (lambda r: grpo(r, mask, 2, True), lambda r: rloo(r, mask, 2)):
        with pytest.raises(ValueError, match="3 rows do not divide into groups of 2"):
            estimator(torch.ones(3, 2))
