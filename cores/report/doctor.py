"""What is wrong with a run, by rules over what it has written so far. Pure: the same rows give the
same findings while training and afterwards."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any, Literal

from cores.report.record import Record, Row

FEW, MANY = 3, 8
"""Rows whose mean noise does not make, and rows of patience: a sickness is told within ten."""


class Seen:
    """What a stage has written so far, as rules ask for it. A figure that is not there is NaN, of
    which no comparison holds."""

    def __init__(self, rows: list[Row], facts: Row) -> None:
        """Rows of metrics.jsonl so far, and a stage's facts (`config`, `data`, `metrics`)."""
        self.rows, self.config, self.data = rows, facts["config"], facts["data"]
        self.ppo: Row = self.config.get("ppo") or {}
        self.exact = self.config.get("model", {}).get("precision") == "fp32"
        self.told = facts["metrics"]

    def figure(self, name: str) -> float:
        """Of the stage's own, which are known at its end."""
        value = self.told.get(name)
        return math.nan if value is None else value

    def last(self, key: str, count: int = FEW, of: Callable[..., float] = fmean) -> float:
        """The mean, or `of`, the last `count` values."""
        return over(self.rows[-count:], key, of) if len(self.rows) >= count else math.nan

    def ends(self, key: str, least: int = 2 * FEW) -> tuple[float, float]:
        """Means of the first and of the last FEW rows, once there are `least`."""
        if len(self.rows) < least:
            return math.nan, math.nan
        return over(self.rows[:FEW], key), over(self.rows[-FEW:], key)

    def spread(self) -> float:
        """What a score of 1 is in these units: its deviation over replies, the larger of the first
        and the last FEW rows; where it is not told 1, which it is after calibration."""
        told = [x for x in self.ends("score_std", FEW) if x > 0]
        return max(told, default=1.0)

    def rise(self, key: str, sign: int = 1, least: float = 0.0) -> float:
        """How far the mean of the last FEW rows is above that of the first (below it: sign -1), if
        it is so by `least` and by five standard errors: at every update the question is put anew.
        0 if it is not."""
        first, now = self.ends(key, MANY)
        values = [row[key] for row in self.rows[-20:] if key in row]
        if math.isnan(first) or math.isnan(now):
            return 0.0
        steps = [b - a for a, b in pairwise(values)]
        error = stdev(steps) / 2**0.5 * (2 / FEW) ** 0.5  # of rows around a trend
        change = sign * (now - first)
        return change if change > max(5 * error, least) else 0.0


def over(rows: Sequence[Row], key: str, of: Callable[..., float] = fmean) -> float:
    """The mean, or `of`, the rows' values; NaN unless all have one."""
    values = [row[key] for row in rows if key in row]
    return of(values) if values and len(values) == len(rows) else math.nan


def largest(values: Iterable[float]) -> float:
    """In size."""
    return max(map(abs, values))


@dataclass(frozen=True)
class Rule:
    """One sickness."""

    name: str
    stages: Sequence[str]
    when: Literal["data", "row", "end"]
    """Asked once the data is read, at each row, or when the stage's own figures are known."""
    holds: Callable[[Seen], object]
    """The evidence, where it holds; something false else."""
    cause: str
    """What most often brings it about."""
    change: str
    """What to try first."""


@dataclass(frozen=True)
class Finding:
    """A rule that held."""

    rule: str
    stage: str
    step: int | None
    """Of the first row at which it held; None for what is known at the beginning or the end."""
    evidence: str
    cause: str
    change: str

    def line(self) -> str:
        """For the screen."""
        return f"doctor: {self.rule}: {self.evidence}. {self.cause} {self.change}"

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


class Watch:
    """A stage's rules, each told once."""

    def __init__(self, rules: Sequence[Rule], stage: str, facts: Row) -> None:
        self.stage, self.facts = stage, facts
        self.rows: list[Row] = []
        self.waiting = [rule for rule in rules if stage in rule.stages]
        self.told: set[str] = set()

    def look(self, when: str, step: int | None = None) -> list[Finding]:
        """What holds now and did not before, of the rules that are asked at this time."""
        found, seen = [], Seen(self.rows, self.facts)
        for rule in self.waiting:
            if rule.when == when and rule.name not in self.told and (evidence := rule.holds(seen)):
                self.told.add(rule.name)
                about = (rule.name, self.stage, step, str(evidence), rule.cause, rule.change)
                found.append(Finding(*about))
        return found

    def add(self, row: Row) -> list[Finding]:
        """What holds since this row. Rules read the first and the last rows alone."""
        self.rows.append(row)
        return self.look("row", row.get("step"))


def examine(rules: Sequence[Rule], records: Sequence[Record]) -> list[Finding]:
    """All that is found in the stages of a run, in the order in which it showed."""
    found: list[Finding] = []
    for record in records:
        facts = {"config": record.config, "data": record.data, "metrics": record.metrics}
        watch = Watch(rules, record.name, facts)
        found += watch.look("data")
        for row in record.rows:
            found += watch.add(row)
        found += watch.look("end")
    return found
