"""Two frontiers are compared at equal KL and by equal objective, seed by seed."""

from typing import Any

import pytest

from cores.config import parse_config
from research.experiments import objective, plan
from research.experiments.figures import CURVES, over_seeds
from research.experiments.frontiers import (
    at_level,
    best_of_n,
    equal_kl,
    gained,
    samples_needed,
    smooth,
    updates_to,
)

Run = dict[str, Any]


def run(kl: list[float], gold: list[float], scores: list[float] | None = None) -> Run:
    """Two seeds of one run; `scores`: a training curve, the second seed's a tenth higher."""
    curves = {}
    if scores is not None:
        for seed, more in (("0", 0.0), ("1", 0.1)):
            curves[seed] = {"score": [s + more for s in scores], "kl": [1.0] * len(scores)}
    return {"seeds": [0, 1], "kl": over_seeds(kl), "gold": over_seeds(gold), "curves": curves}


def lines() -> dict[str, dict[str, Run]]:
    """Ours gains a gold a nat from KL 1 to 4 (4.5 in the second seed), the peer half of it from KL
    1.5 to 6; the second seed of both is 1 higher."""
    return {
        "ours": {"0.4": run([1.0, 1.0], [1.0, 2.0]), "0.1": run([4.0, 4.5], [4.0, 5.5])},
        "trl": {"0.4": run([1.5, 1.5], [0.75, 1.75]), "0.1": run([6.0, 6.0], [3.0, 4.0])},
    }


def test_level_is_read_off_the_line_between_the_neighbours() -> None:
    points = [(4.0, 8.0), (0.0, 0.0), (2.0, 2.0)]
    assert at_level(points, 1.0) == 1.0
    assert at_level(points, 3.0) == 5.0
    assert at_level(points, 4.5) is None


def test_gold_at_equal_kl_is_ours_less_theirs_seed_by_seed() -> None:
    """At KLs that both sides have points around; no point is made up for a KL of 0."""
    rows = equal_kl(lines()).splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| 2", "| 3", "| 4"]
    assert rows[0].startswith("| 2 | +2.50 ± ")
    assert rows[0].endswith("| +1.00 ± 0.00 | 2 |")
    assert rows[2].endswith("| +2.00 ± 0.00 | 2 |")


def test_best_of_n_is_compared_where_both_sides_were_run() -> None:
    """At the KL that bounds it: n = 4 is below the peer's smallest, n = 64 above our largest in the
    first seed."""
    best = {
        "4": run([1.2, 1.2], [9.0, 9.0]),
        "16": run([2.0, 2.0], [3.0, 4.5]),
        "64": run([4.2, 4.2], [9.0, 9.0]),
    }
    rows = best_of_n(lines(), best).splitlines()[2:]
    ours, theirs = over_seeds([1.0, 1.5]), over_seeds([2.0, 2.5])
    assert rows == [
        f"| 16 | 2.00 | +3.75 ± {over_seeds([3.0, 4.5])['half']:.2f} "
        f"| +1.25 ± {ours['half']:.2f} | +1.00 +1.50 | +2.25 ± {theirs['half']:.2f} | +2.00 +2.50 |"
    ]


def test_updates_are_counted_alike_for_both_sides() -> None:
    fast, slow = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    sides = {"ours": {"0.1": run([1.0], [1.0], fast)}, "trl": {"0.1": run([1.0], [1.0], slow)}}
    assert samples_needed(sides).splitlines()[2] == "| 0.1 | 4 4 | 6 6 | -2.0 ± 0.0 |"


def test_the_level_is_of_both_sides_ends() -> None:
    """Ours ends at 1, the peer's at 2: the level is 0.9 * 1.5, which ours never reaches."""
    low, high = [0.0, *[1.0] * 5], [0.0, *[2.0] * 5]
    sides = {"ours": {"0": run([1.0], [1.0], low)}, "trl": {"0": run([1.0], [1.0], high)}}
    assert samples_needed(sides).splitlines()[2] == "| 0 | 7 7 | 4 4 | +3.0 ± 0.0 |"
    sides = {"ours": sides["trl"], "trl": sides["ours"]}
    assert samples_needed(sides).splitlines()[2] == "| 0 | 4 4 | 7 7 | -3.0 ± 0.0 |"


def test_the_last_row_is_each_seeds_mean_over_the_prices() -> None:
    """Differences of 0 and of +3 updates in both seeds: +1.5, of as many seeds as there are."""
    low, high = [0.0, *[1.0] * 5], [0.0, *[2.0] * 5]
    curves = {"0": (high, high), "0.1": (low, high)}
    sides = {
        side: {coef: run([1.0], [1.0], both[i]) for coef, both in curves.items()}
        for i, side in enumerate(("ours", "trl"))
    }
    assert (
        samples_needed(sides).splitlines()[-1] == "| all, mean | 5.5 5.5 | 4.0 4.0 | +1.5 ± 0.0 |"
    )


def test_a_level_that_is_not_reached_counts_one_more_than_there_are() -> None:
    assert updates_to([0.0, 0.5], 1.0) == 3
    assert updates_to([0.0, 1.0], 1.0) == 2


def test_objective_pays_for_kl_and_is_smoothed_backwards_only() -> None:
    assert gained({"score": [1.0, 2.0], "kl": [0.0, 5.0]}, 0.1) == [1.0, 1.5]
    assert smooth([3.0, 0.0, 0.0, 3.0]) == [3.0, 1.5, 1.0, 1.0]


def test_the_missing_eos_penalty_is_off_both_sides_scores() -> None:
    """A quarter of our replies do not end: 0.25 * 2. TRL's rows have no `ended`, and the penalty
    taken off."""
    assert gained({"score": [1.0], "kl": [5.0], "ended": [0.75]}, 0.1) == [0.0]
    assert "ended" in CURVES


def test_constants_are_the_configurations() -> None:
    ppo = parse_config(["--config", "configs/demo.yaml"], "", "").ppo
    assert ppo.missing_eos_penalty == objective.MISSING_EOS_PENALTY
    assert ppo.kl_coef == pytest.approx(plan.KL_COEF)
