"""What a run has left in its output_dir, of stages that are finished, under way or stopped, and
what is wrong with it, by rules over that. Pure: the same rows give the same findings while
training and afterwards."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

from cores.errors import UserError, readable
from cores.files import read_json

STAGES = ("sft", "reward", "ppo")
AGAIN = "The stage has to be run again."
Row = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One stage, as its folder tells."""

    name: str
    folder: Path
    finished: bool
    told: Row
    """stage.json, or of an unfinished stage state.json."""
    rows: list[Row]
    """Of metrics.jsonl."""

    @property
    def config(self) -> Row:
        """The configuration, nested."""
        return self.told.get("config") or {}

    @property
    def data(self) -> Row:
        """What became of the data, `data` of stage.json: see `cores.data.report`."""
        return (self.told if self.finished else self.told.get("facts") or {}).get("data") or {}

    @property
    def metrics(self) -> Row:
        """The stage's own figures, known at its end."""
        return self.told.get("metrics") or {}

    def lines(self, name: str) -> list[Row]:
        """The rows of another file of JSON lines; none where it is not there."""
        return json_lines(self.folder / name)


def read_run(root: Path) -> list[Record]:
    """The stages of an output_dir, in their order; of one that is made anew the newer folder.

    UserError if there is none, or a file of one cannot be read.
    """
    found = [stage for name in STAGES if (stage := read_stage(root, name)) is not None]
    if not found:
        stages = [name for name in ("stage.json", "state.json") if (root / name).is_file()]
        hint = " It is a stage's folder: give the one above it." if stages else ""
        raise UserError(
            f"{root}: holds no stage of a run ({', '.join(STAGES)}, or one of them with "
            f".unfinished behind its name). Give the output_dir of a run.{hint}"
        )
    return found


def read_stage(root: Path, name: str) -> Record | None:
    """One stage, if there is anything of it."""
    for folder, file in ((root / f"{name}.unfinished", "state.json"), (root / name, "stage.json")):
        if (folder / file).exists():
            told = read_json(folder / file, AGAIN)
            for key in ("config", "data", "metrics", "facts"):
                if not isinstance(told.get(key) or {}, dict):
                    raise UserError(f"{folder / file}: damaged ({key} is no object). {AGAIN}")
            return Record(name, folder, file == "stage.json", told, metrics(folder))
    return None


def metrics(folder: Path) -> list[Row]:
    """The rows of a stage's metrics.jsonl, all of them finite numbers; UserError otherwise."""
    path = folder / "metrics.jsonl"
    rows = json_lines(path)
    for number, row in enumerate(rows, start=1):
        for key, value in row.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise UserError(
                    f"{path}:{number}: {key} is {json.dumps(value)}, no finite number. No stage "
                    "writes that: put the file back as it was."
                )
    return rows


def json_lines(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none where there is no file. A last line without its end is
    still being written, and left out. UserError for any other that is no JSON object."""
    if not path.exists():
        return []
    rows = []
    with readable(str(path)):
        lines = path.read_text(encoding="utf-8", errors="backslashreplace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}:{number}: is no JSON object. Something else has written to this file: "
                "remove the line."
            )
        rows.append(row)
    return rows


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
