"""Which of two replies to a prompt is the better one: win rates, by whatever judges. No model here.

An outcome is 1 where the first reply wins, 0.5 for a tie, 0 where the second does.
"""

import math
from collections.abc import Sequence
from typing import Any

from scripts.evaluation.stats import bootstrap, mean, share

MATCHED = 5
"""Replies that are longer, and as many that are shorter, which a group of `length_controlled` needs
to tell length from the rest."""

Outcome = tuple[float, int]
"""What the judge said, and how many characters the first reply is longer than the second."""


def length_controlled(rows: Sequence[Outcome]) -> float | None:
    """The win rate as if the first reply were as often longer as shorter; None if too few are.

    Rows go by their difference in length into groups that have at least `MATCHED` replies of both
    kinds. A group counts by its rows, and in it being longer and being shorter count alike: (mean
    outcome of the longer + mean outcome of the shorter) / 2. Replies of one length count as they
    are. So a judge that always takes the longer reply gives 1/2, whoever writes more.

    AlpacaEval's regression (Dubois et al. 2024, arXiv 2404.04475) has the same aim; its intercept
    is not 1/2 for such a judge where most replies are longer, and it says something where all are.
    """
    same = [outcome for outcome, longer in rows if longer == 0]
    parts = [(len(same), mean(same))] if same else []
    differing = sorted((abs(n), n > 0, outcome) for outcome, n in rows if n)
    groups: list[tuple[list[float], list[float]]] = []
    filling: tuple[list[float], list[float]] = ([], [])
    for i, (size, longer, outcome) in enumerate(differing):
        filling[longer].append(outcome)
        last = i + 1 == len(differing) or differing[i + 1][0] != size
        if last and min(map(len, filling)) >= MATCHED:
            groups.append(filling)
            filling = ([], [])
    if not groups:
        return None if differing else mean(same)
    for part, rest in zip(groups[-1], filling, strict=True):
        part += rest
    for shorter, longer_ones in groups:
        both = (mean(shorter) + mean(longer_ones)) / 2
        parts.append((len(shorter) + len(longer_ones), both))
    return sum(n * value for n, value in parts) / sum(n for n, _ in parts)


def both_orders(first: Sequence[int | None], swapped: Sequence[int | None]) -> list[float | None]:
    """Outcomes of a judge that was asked twice, the second time with the replies exchanged.

    Answers: 1 the reply shown first, -1 the one shown second, 0 neither, None: there is none. Where
    the two answers do not name the same reply, it is a tie: the judge went by the place.
    """
    found: list[float | None] = []
    for a, b in zip(first, swapped, strict=True):
        if a is None or b is None:
            found.append(None)
        else:
            found.append(0.5 if a != -b or a == 0 else float(a > 0))
    return found


def compared(
    told: Sequence[float | None], lengths: Sequence[tuple[int, int]], prompts: Sequence[str]
) -> dict[str, Any]:
    """Win rate with its interval, the length-controlled one, and how often the reply is longer.

    told: outcomes, None where there is none: such prompts are counted, and in no other figure;
    lengths: characters of both replies. Intervals by a bootstrap of the prompts; where all
    outcomes are alike, of which a bootstrap makes a point, by Wilson's formula.
    """
    judged = [i for i, outcome in enumerate(told) if outcome is not None]
    outcomes = [outcome for outcome in told if outcome is not None]
    lengths, prompts = [lengths[i] for i in judged], [prompts[i] for i in judged]
    rows = [(o, a - b) for o, (a, b) in zip(outcomes, lengths, strict=True)]
    rate = share(outcomes, prompts)
    if len(set(outcomes)) > 1:
        drawn = bootstrap(lambda some: mean([o for o, _ in some]), rows, prompts)
        assert drawn is not None, "a mean is always there"
        rate = drawn if math.isfinite(drawn.low) else rate
    controlled = bootstrap(length_controlled, rows, prompts)
    longer = share([0.5 if n == 0 else float(n > 0) for _, n in rows], prompts)
    return {
        "win_rate": rate.to_json(),
        "length_controlled": None if controlled is None else controlled.to_json(),
        "longer": longer.to_json(),
        "ties": sum(outcome == 0.5 for outcome in outcomes),
        "prompts": len(outcomes),
        "not_judged": len(told) - len(outcomes),
    }
