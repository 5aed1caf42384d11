"""The statistics of an evaluation, against closed forms, by hand and by brute force."""

import math
import random
from itertools import combinations
from typing import Any

import pytest

from cores.config.data import SourceSection, WeightedSource
from cores.errors import UserError
from scripts.evaluation.benchmark import Item, by_prompt, credit, is_benchmark, result, ties
from scripts.evaluation.comparisons import both_orders, compared, length_controlled
from scripts.evaluation.preferences import by_difference, by_length, calibration
from scripts.evaluation.reward import named_sources
from scripts.evaluation.stats import Estimate, average, bootstrap, mean, ratio, share, wins
from scripts.evaluation.texts import best_of_kl, expected_best


def test_average_by_hand() -> None:
    estimate = average([1.0, 2.0, 3.0, 6.0])
    half = 1.96 * math.sqrt(14 / 3) / 2  # deviations -2, -1, 0, 3
    found = (estimate.value, estimate.low, estimate.high)
    assert found == pytest.approx((3.0, 3 - half, 3 + half))
    assert Estimate(0.123456, -math.inf, 1.0).to_json() == {"mean": 0.1235, "low": None, "high": 1}


def test_wins_and_ties() -> None:
    assert wins([2.0, 1.0, 0.0], [1.0, 1.0, 1.0]) == [1.0, 0.5, 0.0]
    assert wins([3.0, 0.0, -1.0]) == [1.0, 0.5, 0.0]


def test_one_cluster_tells_no_interval() -> None:
    """Of a mean; a share has that of a single trial."""
    assert average([1.0, 2.0], "aa").to_json() == {"mean": 1.5, "low": None, "high": None}
    assert average([1.0]).to_json() == {"mean": 1.0, "low": None, "high": None}
    assert share([1.0, 0.0], "aa").low == pytest.approx(
        share([1.0, 0.0], "aa").value - 0.5, abs=0.2
    )
    assert bootstrap(mean, [1.0, 2.0], "aa") == Estimate(1.5, -math.inf, math.inf)


def test_a_ratio_of_equal_weights_is_an_average_and_of_doubled_rows_the_same() -> None:
    values = [1.0, 4.0, 2.0, 9.0]
    assert ratio([2 * v for v in values], [2.0] * 4) == average(values)
    weights = [1.0, 2.0, 3.0, 2.0]
    alone = ratio(values, weights)
    twice = ratio(values * 2, weights * 2, [0, 1, 2, 3] * 2)  # each row told twice, as one cluster
    assert (twice.value, twice.high) == pytest.approx((alone.value, alone.high))
    # by hand: 16 / 8; deviations -1, 0, -4, 5
    assert alone.high - 2 == pytest.approx(1.96 * math.sqrt(4 / 3 * 42) / 8)


def test_the_bootstrap_of_a_mean_has_the_normal_interval() -> None:
    """To what 1,000 draws tell; the same each time; of whole clusters."""
    draw = random.Random(0)
    values = [draw.gauss(0, 1) for _ in range(200)]
    found, normal = bootstrap(mean, values), average(values)
    assert found == bootstrap(mean, values)
    assert found is not None
    assert found.low == pytest.approx(normal.low, abs=0.02)
    assert found.high == pytest.approx(normal.high, abs=0.02)
    whole = bootstrap(mean, values * 4, [i % 200 for i in range(800)])
    assert whole is not None
    assert whole.high - whole.low == pytest.approx(found.high - found.low, rel=0.1)


def test_a_judge_of_length_is_even_at_equal_length() -> None:
    """Whoever writes more: nine of ten replies are longer and win, and the rate is one half."""
    draw = random.Random(1)
    differences = [draw.randint(1, 80) * (1 if draw.random() < 0.9 else -1) for _ in range(400)]
    rows = [(float(d > 0), d) for d in differences] + [(0.5, 0)] * 10
    assert mean([outcome for outcome, _ in rows]) > 0.8
    assert length_controlled(rows) == pytest.approx(0.5)
    found = compared(
        [o for o, _ in rows], [(100 + d, 100) for _, d in rows], list(map(str, range(410)))
    )
    assert found["length_controlled"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert found["ties"] == 10


def test_a_judge_blind_to_length_keeps_its_rate() -> None:
    """Wins that do not hang on length stay what they are, to the noise of the rows."""
    draw = random.Random(2)
    rows = [
        (float(draw.random() < 0.7), draw.randint(1, 60) * (1 if draw.random() < 0.8 else -1))
        for _ in range(4000)
    ]
    assert length_controlled(rows) == pytest.approx(0.7, abs=0.03)
    draw.shuffle(rows)
    assert length_controlled(rows) == pytest.approx(length_controlled(sorted(rows)))


def test_length_that_always_differs_one_way_is_not_told_from_the_rest() -> None:
    assert length_controlled([(1.0, 5)] * 50) is None
    assert length_controlled([(1.0, 0), (0.5, 0)]) == 0.75
    assert compared([1.0] * 9, [(9, 1)] * 9, list("abcdefghi"))["length_controlled"] is None


def test_length_control_by_hand() -> None:
    """One group: five longer replies of which four win, five shorter ones of which one wins; two
    of one length that tie. (10 * (4/5 + 1/5) / 2 + 2 * 1/2) / 12."""
    rows = [(1.0, 3)] * 4 + [(0.0, 3)] + [(1.0, -3)] + [(0.0, -3)] * 4 + [(0.5, 0)] * 2
    assert length_controlled(rows) == pytest.approx(0.5)
    rows = [(1.0, 3)] * 5 + [(1.0, -3)] + [(0.0, -3)] * 4 + [(0.0, 0)] * 2
    assert length_controlled(rows) == pytest.approx((10 * (1.0 + 0.2) / 2 + 0) / 12)
    # Five more that are far longer and lose have no counterpart: they join the last group.
    rows = [(1.0, 3)] * 5 + [(0.0, -3)] * 5 + [(0.0, 9)] * 5
    assert length_controlled(rows) == pytest.approx((0.5 + 0.0) / 2)


def test_a_judge_that_goes_by_the_place_ties() -> None:
    """First and second named alike in both orders; one that says neither once is no verdict."""
    assert both_orders([1, 1, -1, 0, 1], [-1, 1, 1, 0, 0]) == [1.0, 0.5, 0.0, 0.5, 0.5]


def test_all_wins_have_an_interval() -> None:
    found = compared([1.0] * 20, [(1, 2)] * 20, list(map(str, range(20))))
    assert found["win_rate"]["mean"] == 1.0
    assert 0.8 < found["win_rate"]["low"] < 1.0


def test_the_best_of_n_is_the_mean_over_all_choices() -> None:
    draw = random.Random(3)
    wanted = [draw.random() for _ in range(6)]
    told = [draw.random() for _ in range(6)]
    for n in range(1, 7):
        best = [max(chosen, key=wanted.__getitem__) for chosen in combinations(range(6), n)]
        assert expected_best(wanted, told, n) == pytest.approx(mean([told[i] for i in best]))
    assert best_of_kl(1) == 0
    with pytest.raises(ValueError, match="best of 7 among 6"):
        expected_best(wanted, told, 7)


def test_calibration_by_hand() -> None:
    """A model that is always sure by log 3 (3/4) and right three times of four is calibrated; one
    that is sure by the same and right half the time is off by a quarter."""
    sure = math.log(3)
    assert calibration([sure, sure, sure, -sure])["expected_error"] == 0
    found = calibration([sure, -sure])
    assert found["expected_error"] == 0.25
    assert found["bins"] == [
        {"from": 0.75, "to": 0.8, "pairs": 2, "probability": 0.75, "right": 0.5}
    ]
    assert calibration([1e6, -1e6])["bins"][0]["to"] == 1.0
    assert calibration([0.0])["expected_error"] == 0


def test_groups_by_length() -> None:
    lengths = [(3.0, 1.0), (2.0, 2.0), (1.0, 9.0), (5.0, 4.0)]

    def told(of: Any) -> list[tuple[Any, ...]]:
        found = of([1.0, 0.5, 0.0, 0.0], lengths, list("abcd"))
        return [(g["name"], g["pairs"], g["accuracy"]["mean"]) for g in found]

    assert told(by_difference) == [
        ("chosen is shorter", 1, 0.0), ("of one length", 1, 0.5), ("chosen is longer", 2, 0.5),
    ]  # fmt: skip
    assert told(by_length) == [
        ("up to 3 tokens", 2, 0.75), ("up to 5 tokens", 1, 0.0), ("longer replies", 1, 0.0),
    ]  # fmt: skip


def test_sources_of_one_path_stay_apart() -> None:
    """Two subsets of a data set are two sources; a path that stands once is its name."""
    parts = [WeightedSource(path="me/pairs", name=name) for name in ("helpful", "harmless")]
    found = named_sources(SourceSection(sources=[*parts, WeightedSource(path="own.jsonl")]))
    assert [one.name for one in found.values()] == ["helpful", "harmless", None]
    assert list(found)[2] == "own.jsonl"
    assert list(named_sources(SourceSection(path="own.jsonl"))) == ["own.jsonl"]


def item(right: list[float], wrong: list[float], name: str = "1", subset: str = "Math") -> Item:
    return Item(name, subset, right, wrong)


def test_best_of_four_with_ties_at_the_top() -> None:
    """1/k where the right reply shares the highest score with k - 1 others."""
    assert credit(item([2.0], [1.0, 0.0, -1.0])) == 1.0
    assert credit(item([2.0], [2.0, 0.0, -1.0])) == 0.5
    assert credit(item([2.0], [2.0, 2.0, 2.0])) == 0.25
    assert credit(item([2.0], [3.0, 0.0, 0.0])) == 0.0


def tie(number: str, tied: tuple, ref: tuple) -> list[Item]:
    return [item(*tied, f"tied:{number}", "Ties"), item(*ref, f"ref:{number}", "Ties")]


def score(items: list[Item]) -> float:
    return ties(by_prompt(items))


def test_ties_by_hand() -> None:
    """Right replies within .5 of each other and 1 above the rest, the reference 3 above: all of it,
    and tanh(1 / .5 - 1) / 100."""
    good = tie("1", ([2.0, 1.5], [0.5]), ([3.0], [0.0]))
    assert score(good) == pytest.approx(1 + 0.01 * math.tanh(1))
    # The spread of 2 is more than the gap of 1, but not than the reference's 3: accurate alone.
    wide = tie("2", ([3.0, 1.0], [0.0]), ([3.0], [0.0]))
    assert score(wide) == pytest.approx(0.6 + 0.01 * math.tanh(1 / 2 - 1))
    # A gap of 1 over a spread of .5; the reference's of .25 is less: not by the harder measure.
    hard = tie("3", ([2.0, 1.5], [0.5]), ([0.25], [0.0]))
    assert score(hard) == pytest.approx(0.8 + 0.01 * math.tanh(0.25 / 0.5 - 1))
    # Wrong everywhere; no spread at all, so that the ratio is minus infinity.
    bad = tie("4", ([1.0, 1.0], [2.0]), ([0.0], [1.0]))
    assert score(bad) == pytest.approx(-0.01)
    assert score(tie("5", ([1.0, 1.0], [1.0]), ([1.0], [1.0]))) == 0.0  # 0 / 0
    assert score(good + bad) == pytest.approx(0.5 + 0.005 * (math.tanh(1) - 1))


def test_the_benchmark_tells_each_subset_and_their_mean() -> None:
    items = [
        item([1.0], [0.0] * 3),
        item([0.0], [1.0] * 3),
        *tie("1", ([2.0, 1.5], [0.5]), ([3.0], [0.0])),
    ]
    found = result(items)
    assert list(found["subsets"]) == ["Math", "Ties"]
    assert found["subsets"]["Math"]["mean"] == 0.5
    assert found["mean"] == pytest.approx((0.5 + score(items[2:])) / 2, abs=1e-4)
    with pytest.raises(UserError, match="neither ref:n nor tied:n"):
        result([item([1.0], [0.0], "7", "Ties")])


def test_the_interval_of_ties_is_that_of_its_prompts() -> None:
    """Where each prompt is all right or all wrong the score is a mean of prompts; one that is drawn
    twice counts twice."""
    items: list[Item] = []
    for number in range(100):
        items += tie(f"{number}", ([2.0, 1.5], [0.5]), ([3.0], [0.0]))
        items += tie(f"-{number}", ([1.0, 1.0], [2.0]), ([0.0], [1.0]))
    found = result(items)["subsets"]["Ties"]
    one = average([score(items[:2]), score(items[2:4])] * 100)
    assert found["mean"] == pytest.approx(one.value, abs=1e-4)
    assert found["high"] - found["low"] == pytest.approx(one.high - one.low, rel=0.1)


def test_which_rows_are_the_benchmarks() -> None:
    row = {"prompt": "p", "chosen": ["a"], "rejected": ["b", "c", "d"]}
    assert is_benchmark(row)
    assert not is_benchmark({"prompt": "p", "chosen": "a", "rejected": "b"})
    turns = [{"role": "assistant", "content": "a"}]
    assert not is_benchmark({"prompt": "p", "chosen": turns, "rejected": turns})
