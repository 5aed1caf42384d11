"""Learning-rate factors by hand."""

import pytest

from cores.rl.schedule import lr_factor, warmup_steps


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # 8 steps, the first 4 of them warm-up
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1, 1, 0.853553, 0.5, 0.146447]),
        ("restarts", [0.25, 0.5, 0.75, 1, 1, 0.5, 1, 0.5]),
    ],
)
def test_by_hand(kind, expected):
    """Warm-up to 1, then the decay towards the 0 of the step after the last."""
    got = [lr_factor(step, 8, 4, kind, cycles=2) for step in range(8)]
    assert got == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "restarts"])
def test_no_step_is_wasted(kind):
    """No step has a rate of 0: with one step, without warm-up, with nothing but warm-up."""
    for total in (1, 2, 7):
        for warmup in range(total + 1):
            assert all(0 < lr_factor(step, total, warmup, kind) <= 1 for step in range(total))
    assert lr_factor(0, 1, 0, kind) == 1


@pytest.mark.parametrize("kind", ["linear", "cosine", "restarts"])
def test_after_the_end(kind):
    """Past the last step the factor stays 0 and does not rise again."""
    assert [lr_factor(step, 5, 1, kind) for step in (5, 6, 9)] == [0, 0, 0]


def test_unknown_kind():
    """An unknown schedule is an error that names it, in the warm-up too."""
    with pytest.raises(ValueError, match="'step' is unknown"):
        lr_factor(0, 10, 5, "step")


@pytest.mark.parametrize("kind", ["cosine", "restarts"])
def test_the_floor(kind: str) -> None:
    """The curve ends at a tenth of the peak, and half-way down it is .1 + .9 / 2."""
    got = [lr_factor(step, 4, 0, kind, floor=0.1) for step in range(6)]
    assert got == pytest.approx([1, 0.868198, 0.55, 0.231802, 0.1, 0.1], abs=1e-6)


def test_every_cycle_is_alike() -> None:
    """Also where the beginning of one lies below a whole number in floats: 49 cycles of a step."""
    one = [lr_factor(step, 7, 0, "cosine") for step in range(7)]
    got = [lr_factor(step, 21, 0, "restarts", cycles=3) for step in range(21)]
    assert got == pytest.approx(3 * one, abs=1e-6)
    assert {lr_factor(step, 49, 0, "restarts", cycles=49) for step in range(49)} == {1.0}


def test_warmup_is_a_share_or_a_number() -> None:
    """Below 1 a share, rounded up; from 1 on steps, however many there are."""
    found = [warmup_steps(warmup, 10) for warmup in (0, 0.01, 0.3, 0.99, 1, 7.0, 500)]
    assert found == [0, 1, 3, 10, 1, 7, 500]
