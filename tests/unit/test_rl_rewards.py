"""Scores and rewards against numbers by hand. Scores (B,), the rest (B, T)."""

import pytest
import torch

from cores.rl import adjust_scores, shape_rewards

NAN = float("nan")


def test_score_on_the_last_valid_token():
    """Invariant 14: -kl_coef * kl everywhere, the score once, at the last valid token."""
    kl = torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, NAN]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    got = shape_rewards(torch.tensor([5.0, -1.0]), kl, mask, 0.1)
    expected = torch.tensor([[-0.1, -0.2, 4.7], [-0.1, -0.8, 0.0]])
    torch.testing.assert_close(got, expected)


def test_last_valid_token_of_a_mask_with_gaps():
    """Invariant 14: last means the last True, not the number of them."""
    mask = torch.tensor([[False, True, False, True, False]])
    got = shape_rewards(torch.tensor([2.0]), torch.zeros(1, 5), mask, 0.1)
    assert got.tolist() == [[0.0, 0.0, 0.0, 2.0, 0.0]]


def test_empty_response_gets_nothing():
    """Invariants 16, 23: a fully masked row has rewards 0, whatever its score."""
    mask = torch.tensor([[False, False], [True, False]])
    got = shape_rewards(torch.tensor([NAN, 3.0]), torch.full((2, 2), NAN).where(~mask, 0), mask, 1)
    assert got.tolist() == [[0.0, 0.0], [3.0, 0.0]]


def test_response_of_one_token():
    """Invariant 16: EOS first: that token carries both the KL and the score."""
    got = shape_rewards(torch.tensor([3.0]), torch.tensor([[0.5]]), torch.tensor([[True]]), 2.0)
    assert got.tolist() == [[2.0]]


def test_scores_of_another_shape():
    """Scores (B, 1) would broadcast to one score a token; they are refused."""
    with pytest.raises(ValueError, match="one score a reply"):
        shape_rewards(torch.zeros(2, 1), torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), 1.0)
    with pytest.raises(ValueError, match="as the mask"):
        shape_rewards(torch.zeros(2), torch.zeros(2, 1), torch.ones(2, 2, dtype=torch.bool), 1.0)


def test_penalties_after_the_clip():
    """Invariant 16: penalties are taken after clipping; that of a missing EOS where it is."""
    scores, lengths = torch.tensor([7.0, -7.0, 7.0, 1.0]), torch.tensor([1, 2, 4, 0])
    ended = torch.tensor([True, False, False, True])
    got = adjust_scores(scores, ended, lengths, 1.0, length_penalty=0.0, clip=5.0)
    assert got.tolist() == [5.0, -6.0, 4.0, 1.0]
    got = adjust_scores(scores, ended, lengths, 1.0, length_penalty=0.25, clip=5.0)
    assert got.tolist() == [4.75, -6.5, 3.0, 1.0]


def test_every_response_truncated():
    """Invariant 16: all replies without EOS each lose the penalty; clip 0 does not clip."""
    scores, ended = torch.tensor([7.0, -7.0]), torch.tensor([False, False])
    got = adjust_scores(scores, ended, torch.tensor([3, 3]), 0.5, 0.0, clip=0.0)
    assert got.tolist() == [6.5, -7.5]


def test_ended_of_another_shape():
    """ended (B, 1) would make scores (B, B); it is refused."""
    with pytest.raises(ValueError, match="ended has shape"):
        adjust_scores(
            torch.zeros(2), torch.ones(2, 1, dtype=torch.bool), torch.ones(2), 1.0, 0.0, 0.0
        )
