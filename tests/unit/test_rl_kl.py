"""Per-token KL estimators against numbers by hand. All tensors (B, T)."""

import math

import pytest
import torch

from cores.rl import kl_estimate

# x = logprobs - ref_logprobs = [0.5, -1, 0]
LOGPROBS = torch.tensor([[-1.0, -2.0, -0.3]])
REF = torch.tensor([[-1.5, -1.0, -0.3]])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("k1", [0.5, -1.0, 0.0]),
        ("k2", [0.125, 0.5, 0.0]),
        ("k3", [math.exp(-0.5) - 0.5, math.e - 2.0, 0.0]),  # 0.10653, 0.71828
    ],
)
def test_kinds_by_hand(kind, expected):
    """Invariant 17: the formulas of k1, k2 and k3."""
    torch.testing.assert_close(kl_estimate(LOGPROBS, REF, kind), torch.tensor([expected]))


def test_reference_is_the_second_argument():
    """Invariant 17: the order of the arguments matters (the original had k3's reversed)."""
    swapped = kl_estimate(REF, LOGPROBS, "k3")
    torch.testing.assert_close(
        swapped, torch.tensor([[math.exp(0.5) - 1.5, math.exp(-1.0), 0.0]]), rtol=1e-5, atol=1e-6
    )


def test_zero_outside_the_mask():
    """Invariant 23: what is outside the mask is 0, whatever was there."""
    logprobs = torch.tensor([[-1.0, float("nan"), float("inf")]])
    ref = torch.tensor([[-1.5, -1.0, float("-inf")]])
    mask = torch.tensor([[True, False, False]])
    for kind in ("k1", "k2", "k3"):
        got = kl_estimate(logprobs, ref, kind, response_mask=mask)
        assert got[0, 0] > 0
        assert got[0, 1:].tolist() == [0.0, 0.0]


def test_half_precision_is_computed_in_float32():
    """bfloat16 inputs give float32, float64 stays: a difference of log-probs needs the digits."""
    assert kl_estimate(LOGPROBS.bfloat16(), REF.bfloat16(), "k1").dtype == torch.float32
    assert kl_estimate(LOGPROBS.double(), REF.double(), "k1").dtype == torch.float64


def test_unknown_kind():
    """An unknown estimator is an error that names it."""
    with pytest.raises(ValueError, match="'k4' is unknown"):
        kl_estimate(LOGPROBS, REF, "k4")
