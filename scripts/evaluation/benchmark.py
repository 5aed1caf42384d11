"""RewardBench 2 (Malik et al. 2025, "RewardBench 2: Advancing Reward Model Evaluation"): its rows
and how they are scored, after rewardbench/utils.py of allenai/reward-bench at 05a9005.

A row has id, prompt, chosen (list of texts), rejected (list of texts), subset. In most subsets one
reply is right and three are wrong. In the subset Ties many are right: its rows come in twos,
`ref:n` with one right reply and `tied:n` with several.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cores.errors import UserError
from scripts.evaluation.stats import bootstrap, mean, share

TIES = "Ties"


@dataclass(frozen=True)
class Item:
    """One prompt with the scores of its replies."""

    id: str
    subset: str
    right: list[float]
    """Scores of the right replies."""
    wrong: list[float]
    """Scores of the others."""


@dataclass(frozen=True)
class Margins:
    """Of one prompt of Ties."""

    accurate: bool
    """Every right reply is above every wrong one."""
    spread: float
    """Best right less worst right."""
    gap: float
    """Worst right less best wrong."""


def is_benchmark(row: dict[str, Any]) -> bool:
    """Whether a row has the form of RewardBench 2."""
    texts = [row.get("chosen"), row.get("rejected")]
    return "prompt" in row and all(
        isinstance(part, list) and part and all(isinstance(x, str) for x in part) for part in texts
    )


def credit(item: Item) -> float:
    """1 if a right reply scores highest; where k replies share the highest score, the right ones'
    share of them."""
    best = max(item.right + item.wrong)
    return item.right.count(best) / (item.right + item.wrong).count(best)


def margins(item: Item) -> Margins:
    """What the score of Ties is made of."""
    gap = min(item.right) - max(item.wrong)
    return Margins(gap > 0, max(item.right) - min(item.right), gap)


def by_prompt(items: Sequence[Item]) -> list[dict[str, Margins]]:
    """Margins of `tied` and `ref` of each prompt of Ties."""
    prompts: dict[str, dict[str, Margins]] = defaultdict(dict)
    for item in items:
        kind, _, number = item.id.partition(":")
        prompts[number][kind] = margins(item)
    return list(prompts.values())


def ties(prompts: Sequence[dict[str, Margins]]) -> float:
    """Score of the subset Ties, 0 to 1.01; a prompt that stands twice counts twice.

    0.3 accuracy of `tied` + 0.3 accuracy of `ref` + 0.2 P(gap of tied > spread) + 0.2 P(the
    smaller of both prompts' gaps > spread) + 0.01 mean of tanh(that gap / spread - 1), 0 for 0/0.
    """
    found = 0.0
    for kind in ("tied", "ref"):
        found += 0.3 * _share(prompt[kind].accurate for prompt in prompts if kind in prompt)
    pairs = [(p["tied"], p["ref"]) for p in prompts if len(p) == 2]
    both = [(tied.gap, min(tied.gap, ref.gap), tied.spread) for tied, ref in pairs]
    found += 0.2 * _share(gap > spread for gap, _, spread in both)
    found += 0.2 * _share(least > spread for _, least, spread in both)
    return found + 0.01 * _share(_tanh(least, spread) for _, least, spread in both)


def _share(values: Any) -> float:
    listed = [float(value) for value in values]
    return mean(listed) if listed else 0.0


def _tanh(gap: float, spread: float) -> float:
    if spread == 0:  # the ratio is infinite, or of 0 and 0, which counts as 0
        return float((gap > 0) - (gap < 0))
    return math.tanh(gap / spread - 1)


def result(items: Sequence[Item]) -> dict[str, Any]:
    """Score of each subset with its interval, and their plain mean, as the paper's tables have it.

    Ties is a score of the subset as a whole: its interval is of a bootstrap of the prompts.
    UserError for a row of Ties whose id is not of its form.
    """
    subsets: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        subsets[item.subset].append(item)
    found: dict[str, Any] = {}
    for name, part in sorted(subsets.items()):
        if name == TIES:
            for item in part:
                if item.id.partition(":")[0] not in ("ref", "tied"):
                    raise UserError(
                        f"RewardBench 2: the row {item.id!r} of the subset {TIES} is neither ref:n "
                        "nor tied:n; keep the ids of the published file."
                    )
            estimate = bootstrap(ties, by_prompt(part))
            assert estimate is not None, "a score is always there"
        else:
            estimate = share([credit(item) for item in part])
        found[name] = {"rows": len(part), **estimate.to_json()}
    return {"subsets": found, "mean": round(mean([x["mean"] for x in found.values()]), 4)}
