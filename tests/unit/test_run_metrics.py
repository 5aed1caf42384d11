"""Rows of metrics: JSON lines, cut where a run goes on, trackers that may fail."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _models import LAUNCH
from _stages import begun, config
from torch import nn

from cores.errors import UserError
from cores.run import metrics
from cores.run.folder import cut
from cores.run.metrics import Metrics, append


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_metrics_are_one_json_object_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant 24: each entry is on disk at once, with its step and seconds, and on the screen."""
    run = begun(config(tmp_path))
    run.going_on(3, nn.Linear(1, 1))
    run.log(1, {"loss": 2.5}, "loss 2.5")
    path = run.path / "metrics.jsonl"
    assert rows(path)[0].items() >= {"step": 1, "loss": 2.5}.items()
    run.log(2, {"loss": 1.25, "kl": 0.1234567891}, "loss 1.25")
    run.log(3, {"loss": 1.25, "kl": 0.1234567891}, "loss 1.25")
    found = rows(path)
    assert [(r["step"], r["loss"]) for r in found] == [(1, 2.5), (2, 1.25), (3, 1.25)]
    assert found[1]["seconds"] >= found[0]["seconds"] >= 0
    assert run.last_row() == {"loss": 1.25, "kl": 0.123457}
    told, *lines = capsys.readouterr().out.splitlines()
    assert told == "sft: Linear, 0.0 M weights, CPU, fp32, 3 steps"
    # The first and the last: no minute has passed.
    assert [line.split("  ")[:2] for line in lines] == [
        ["sft 1/3", "loss 2.5"],
        ["sft 3/3", "loss 1.25"],
    ]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none_are_refused(number: float, tmp_path: Path) -> None:
    """By key and step, and no row is written: others could not read it."""
    path = tmp_path / "metrics.jsonl"
    append(path, {"step": 1, "loss": 1.0})
    with pytest.raises(UserError, match=rf"kl \({number}\) is no finite number at step 2"):
        append(path, {"step": 2, "loss": 1.0, "kl": number})
    with pytest.raises(UserError, match=r"parts\.1 \(nan\) is no finite number at step 3"):
        append(path, {"update": 3, "parts": [1.0, math.nan]})
    assert rows(path) == [{"step": 1, "loss": 1.0}]


def test_rows_behind_a_checkpoint_are_cut(tmp_path: Path) -> None:
    """They are made again: those behind it, half a row of a kill, what is no row of this file."""
    path = tmp_path / "a.jsonl"
    good = ['{"step": 1}\n', '{"step": 2, "text": "é"}\n']
    bad = ['{"step": 3}\n', "[]\n", '{"update": 1}\n', "{\n", '{"step": "x"}\n', '{"step": 2}']
    path.write_text("".join([*bad[:5], *good, bad[5]]), encoding="utf-8")
    cut(path, "step", 2)
    assert path.read_text(encoding="utf-8") == "".join(good)
    cut(path, "step", 0)
    assert path.read_text() == ""
    cut(tmp_path / "absent", "step", 1)
    assert not (tmp_path / "absent").exists()


class Broken:
    """A tracker that fails in one of its methods."""

    name = "broken"

    def __init__(self, method: str) -> None:
        self.method = method
        self.calls: list[str] = []

    def log(self, values: dict[str, float], step: int) -> None:
        self._call("log")

    def finish(self) -> None:
        self._call("finish")

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == self.method:
            raise ConnectionError("no route to host")


@pytest.mark.parametrize("method", ["start", "log", "finish"])
def test_a_tracker_that_fails_costs_no_run(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """It is left out from there on, and said once."""
    tracker = Broken(method)

    def start(*_: Any) -> list[Any]:
        tracker._call("start")
        return [tracker]

    monkeypatch.setattr(metrics, "start_trackers", start)
    made = Metrics(config(tmp_path), "sft", tmp_path, LAUNCH)
    for step in (1, 2):
        made.log(step, {"loss": 1.0})
    made.close()
    assert len(rows(tmp_path / "metrics.jsonl")) == 2
    said = f"note: trackers fail to {method} (ConnectionError: no route to host)"
    assert capsys.readouterr().out.count(said) == 1
    assert tracker.calls == {"start": ["start"], "log": ["start", "log"]}.get(
        method, ["start", "log", "log", "finish"]
    )


def test_other_ranks_have_none(tmp_path: Path) -> None:
    made = Metrics(config(tmp_path), "sft", tmp_path, replace(LAUNCH, rank=1, world=2))
    made.log(1, {"loss": 1.0})
    made.close()
    assert list(tmp_path.iterdir()) == []
