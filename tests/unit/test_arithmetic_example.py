"""The sums of the arithmetic example: answers are right, files are apart, half the replies are."""

from typing import Any

from scripts.arithmetic.make import SIZES, make_rows
from scripts.arithmetic.reward import correct

ROWS = make_rows(seed=0)


def terms(row: dict[str, Any]) -> tuple[int, int]:
    a, b = row["prompt"].removesuffix("=").split("+")
    return int(a), int(b)


def test_every_sum_is_in_one_file() -> None:
    """In either order of its terms, so that no test sum is known from another file."""
    sums = {name: {tuple(sorted(terms(row))) for row in rows} for name, rows in ROWS.items()}
    assert {name: len(sums[name]) for name in SIZES} == SIZES
    assert sum(map(len, sums.values())) == len(set.union(*sums.values())) == 90 * 91 // 2
    assert sum(map(len, ROWS.values())) == 90 * 90


def test_answers_are_right_and_half_the_replies() -> None:
    for name in ("prompts", "prompts_test"):
        assert all(row["answer"] == str(sum(terms(row))) for row in ROWS[name])
    right = [row["completion"] == str(sum(terms(row))) for row in ROWS["sft"]]
    assert 0.47 < sum(right) / len(right) < 0.53
    carried = {sum(terms(row)) - int(row["completion"]) for row in ROWS["sft"]}
    assert carried == {0, 1, -1, 10, -10}


def test_the_same_rows_for_the_same_seed() -> None:
    assert make_rows(seed=0) == ROWS
    assert make_rows(seed=1) != ROWS


def test_the_reward_is_for_the_answer_alone() -> None:
    replies = ["42", "42 ", "142", "4", "", "43"]
    assert correct([""] * 6, replies, [{"answer": "42"}] * 6) == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
