"""Random numbers as functions of (seed, purpose, position)."""

import random

import numpy as np
import torch

from cores.draws import in_epochs, key, permutation, seeded, uniforms


def test_a_row_has_its_numbers_whoever_draws_them() -> None:
    """Rows 3 to 6 of eight are those that a process draws which has them alone."""
    every = uniforms(8, 13, 5, "replies", 2)
    assert torch.equal(uniforms(4, 13, 5, "replies", 2, first=3), every[3:7])
    assert every.dtype == torch.float32
    assert every.shape == (8, 13)
    assert 0 <= every.min() <= every.max() < 1


def test_no_two_rows_share_numbers() -> None:
    """Nor rows of another update, purpose or seed."""
    drawn = [
        uniforms(16, 4, 0, "replies", 1),
        uniforms(16, 4, 0, "replies", 2),
        uniforms(16, 4, 0, "evaluation", 1),
        uniforms(16, 4, 1, "replies", 1),
    ]
    rows = {tuple(row) for block in drawn for row in block.tolist()}
    assert len(rows) == 64


def test_uniforms_are_uniform() -> None:
    """Mean 1/2 and variance 1/12 within five standard errors of 40,000 numbers."""
    drawn = uniforms(200, 200, 0, "replies", 0).double()
    assert abs(drawn.mean().item() - 0.5) < 5 * (1 / 12) ** 0.5 / 200
    assert abs(drawn.var().item() - 1 / 12) < 5 * (1 / 180) ** 0.5 / 200


def test_nobody_elses_seed_matters() -> None:
    """What a reward function may do to the global generators changes no number."""
    before = uniforms(2, 3, 0, "replies", 1), permutation(9, 0, "prompts", 0)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    after = uniforms(2, 3, 0, "replies", 1), permutation(9, 0, "prompts", 0)
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


def test_every_row_comes_once_an_epoch_wherever_one_begins() -> None:
    """Five rows, in parts of three: two epochs are two permutations; a part is what it was."""
    parts = [in_epochs(5, start, 3, 0, "prompts") for start in range(0, 12, 3)]
    flat = [row for part in parts for row in part]
    assert sorted(flat[:5]) == sorted(flat[5:10]) == [0, 1, 2, 3, 4]
    assert flat[:5] != flat[5:10]
    assert in_epochs(5, 4, 7, 0, "prompts") == flat[4:11]
    assert in_epochs(5, 0, 5, 0, "ptx") != flat[:5]


def test_positions_are_told_apart() -> None:
    """1 and 23 are not 12 and 3."""
    assert key(0, "a", 1, 23) != key(0, "a", 12, 3)


def test_a_seeded_block_draws_the_same_and_disturbs_nothing() -> None:
    """torch's own generator goes on behind it as if nothing had been drawn."""
    torch.manual_seed(3)
    alone = torch.rand(2)
    torch.manual_seed(3)
    with seeded(0, "head"):
        first = torch.rand(4)
    assert torch.equal(torch.rand(2), alone)
    with seeded(0, "head"):
        assert torch.equal(torch.rand(4), first)
    with seeded(0, "head", 1):
        assert not torch.equal(torch.rand(4), first)
