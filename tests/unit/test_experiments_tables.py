"""The experiments' tables say what the runs' numbers say."""

import pytest

from cores.errors import UserError
from scripts.experiments.figures import over_seeds
from scripts.experiments.tables import (
    at_level,
    equal_kl,
    fill,
    gained,
    samples_needed,
    smooth,
    updates_to,
    versus,
)


def run(kl: list[float], gold: list[float], scores: list[float] | None = None) -> dict:
    """Two seeds of one run; `scores`: a training curve, the second seed's a tenth higher."""
    curves = {}
    if scores is not None:
        for seed, more in (("0", 0.0), ("1", 0.1)):
            curves[seed] = {"score": [s + more for s in scores], "kl": [1.0] * len(scores)}
    return {"seeds": [0, 1], "kl": over_seeds(kl), "gold": over_seeds(gold), "curves": curves}


def test_interval_over_seeds_is_students() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["half"] == pytest.approx(4.30 / 3**0.5, abs=1e-3)
    assert over_seeds([1.0])["half"] is None


def test_level_is_read_off_the_line_between_the_neighbours() -> None:
    points = [(4.0, 8.0), (0.0, 0.0), (2.0, 2.0)]
    assert at_level(points, 1.0) == 1.0
    assert at_level(points, 3.0) == 5.0
    assert at_level(points, 4.5) is None


def test_gold_at_equal_kl_is_ours_less_theirs_seed_by_seed() -> None:
    start = {"seeds": [0, 1], "gold": over_seeds([0.0, 1.0])}
    sides = {
        "ours": {"0.1": run([2.0, 2.0], [2.0, 3.0])},
        "trl": {"0.1": run([4.0, 4.0], [2.0, 3.0])},
    }
    row = equal_kl(sides, start).splitlines()[2]
    # At KL 1 ours has gained half of its 2, theirs a quarter, in both seeds.
    assert row.startswith("| 1 | +1.50 ± ")
    assert "| +0.50 ± 0.00 | 2 |" in row


def test_updates_are_counted_alike_for_both_sides() -> None:
    fast, slow = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    sides = {"ours": {"0.1": run([1.0], [1.0], fast)}, "trl": {"0.1": run([1.0], [1.0], slow)}}
    assert samples_needed(sides).splitlines()[2] == "| 0.1 | 4 4 | 6 6 | -2.0 ± 0.0 |"


def test_a_level_that_is_not_reached_counts_one_more_than_there_are() -> None:
    assert updates_to([0.0, 0.5], 1.0) == 3
    assert updates_to([0.0, 1.0], 1.0) == 2


def test_objective_pays_for_kl_and_is_smoothed_backwards_only() -> None:
    assert gained({"score": [1.0, 2.0], "kl": [0.0, 5.0]}, 0.1) == [1.0, 1.5]
    assert smooth([3.0, 0.0, 0.0, 3.0]) == [3.0, 1.5, 1.0, 1.0]


def test_difference_is_on_the_same_seeds() -> None:
    base = {"seeds": [0, 1, 2], "gold": over_seeds([5.0, 1.0, 2.0])}
    other = {"seeds": [1, 2], "gold": over_seeds([2.0, 3.0])}
    assert versus({"x": other}, base, ["x"]).endswith("| x | +1.00 ± 0.00 | +1.00 +1.00 |")


def test_page_without_its_marks_is_refused() -> None:
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb"
    assert fill(page, {"x": "new"}) == "a\n<!-- x: begin -->\nnew\n<!-- x: end -->\nb"
    with pytest.raises(UserError, match="y: begin"):
        fill(page, {"y": "new"})
