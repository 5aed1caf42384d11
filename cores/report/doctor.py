"""What is wrong with a run, by rules over what it has written so far. Pure: the same rows give the
same findings while training and afterwards."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cores.report.record import Record, Row

Holds = Callable[[list[Row], Row], str | None]
"""Rows of metrics.jsonl so far, and a stage's facts (`config`, `data`, `metrics`): the evidence,
or None."""


@dataclass(frozen=True)
class Rule:
    """One sickness."""

    name: str
    stages: Sequence[str]
    when: Literal["data", "row", "end"]
    """Asked once the data is read, at each row, or when the stage's own figures are known."""
    holds: Holds
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

    def look(self, when: str, step: int | None = None) -> list[Finding]:
        """What holds now and did not before, of the rules that are asked at this time."""
        found = []
        for rule in [rule for rule in self.waiting if rule.when == when]:
            if evidence := rule.holds(self.rows, self.facts):
                self.waiting.remove(rule)
                found.append(
                    Finding(rule.name, self.stage, step, evidence, rule.cause, rule.change)
                )
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
