"""Learning-rate factors by hand."""

import pytest

from cores.ppo.roles import lr_factor


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # 8 steps, the first 4 of them warm-up
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_by_hand(kind, expected):
    """Warm-up to 1, then the decay towards the 0 of the step after the last."""
    got = [lr_factor(step, 8, 4, kind) for step in range(8)]
    assert got == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_no_step_is_wasted(kind):
    """No step has a rate of 0: with one step, without warm-up, with nothing but warm-up."""
    for total in (1, 2, 7):
        for warmup in range(total + 1):
            assert all(0 < lr_factor(step, total, warmup, kind) <= 1 for step in range(total))
    assert lr_factor(0, 1, 0, kind) == 1


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_after_the_end(kind):
    """Past the last step the factor stays 0 and does not rise again."""
    assert [lr_factor(step, 5, 1, kind) for step in (5, 6, 9)] == [0, 0, 0]


def test_unknown_kind():
    """An unknown schedule is an error that names it, in the warm-up too."""
    with pytest.raises(ValueError, match="'step' is unknown"):
        lr_factor(0, 10, 5, "step")
