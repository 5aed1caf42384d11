"""Losses of reward models by hand."""

import math

import pytest
import torch

from cores.rl.preferences import binned_loss, pairwise_loss, pointwise_loss


def test_pairwise() -> None:
    """Leads of 0, 2 - .5 and -1: log 2, log(1 + e^-1.5), log(1 + e); the sums are 0, 2 and 5."""
    chosen, rejected = torch.tensor([0.0, 2.0, 2.0]), torch.tensor([0.0, 0.0, 3.0])
    margins = torch.tensor([0.0, 0.5, 0.0])
    leads = [math.log(2), math.log1p(math.exp(-1.5)), math.log1p(math.e)]
    assert pairwise_loss(chosen, rejected, margins).tolist() == pytest.approx(leads, rel=1e-5)
    centred = [lead + 0.1 * total**2 for lead, total in zip(leads, (0, 2, 5), strict=True)]
    found = pairwise_loss(chosen, rejected, margins, 0.1)
    assert found.tolist() == pytest.approx(centred, rel=1e-5)


def test_pointwise() -> None:
    """A score of 0 is one: errors of 0, 2 and -.5."""
    found = pointwise_loss(torch.tensor([0.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 3.5]))
    assert found.tolist() == [0.0, 4.0, 0.25]


def test_binned() -> None:
    """Ratings 1 and 3 of three, at odds of 1 : 1 : 2."""
    logits = torch.tensor([[0.0, 0.0, math.log(2)]] * 2)
    found = binned_loss(logits, torch.tensor([1.0, 3.0]))
    assert found.tolist() == pytest.approx([math.log(4), math.log(2)], rel=1e-5)


def test_half_precision_is_computed_in_fp32() -> None:
    """Losses of bf16 scores are those of their values in fp32."""
    a, b = torch.tensor([1.5], dtype=torch.bfloat16), torch.tensor([-0.25], dtype=torch.bfloat16)
    wide = pairwise_loss(a.float(), b.float(), torch.zeros(1), 0.3)
    assert torch.equal(pairwise_loss(a, b, torch.zeros(1), 0.3), wide)
    assert pointwise_loss(a, torch.tensor([0.1])).dtype == torch.float32
    logits = torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16)
    assert binned_loss(logits, torch.ones(1)).dtype == torch.float32
