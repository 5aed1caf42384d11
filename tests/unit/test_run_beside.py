"""The doctor's lines and the report beside a run: once each, at little cost, and never its end."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from _stages import begun, config, facts, save_weights, state
from test_doctor import healthy

from cores.run import beside


def sick(step: int) -> dict[str, Any]:
    """A row of a run whose rewards are all equal."""
    row = healthy(step - 1, random.Random(step)) | {"score_std": 0.0, "learning_rate_factor": 1.0}
    return {k: float(v) for k, v in row.items() if k not in ("step", "seconds")}


def test_a_finding_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When it first holds; a run that goes on has said it."""
    run = begun(config(tmp_path), "ppo")
    for step in (1, 2, 3):
        run.log(step, sick(step), "")
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert said[0].startswith("doctor: equal_rewards: all replies of a rollout score")
    run.save(3, state(3))
    run.__exit__(None, KeyboardInterrupt(), None)
    capsys.readouterr()
    again = begun(config(tmp_path), "ppo")
    again.log(4, sick(4), "")
    assert "doctor" not in capsys.readouterr().out


def test_data_and_figures_are_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As soon as they are known."""
    split = {"path": "a", "read": 10, "used": 5, "dropped": {"too long": 5}}
    run = begun(config(tmp_path), "reward", data={"train": split})
    assert "doctor: data_dropped: of the 10 rows of a (train), 5 are" in capsys.readouterr().out
    told = {"pairs": 400, "accuracy": 0.5, "accuracy_longer": 0.5}
    run.finish(save_weights(), facts(metrics=told))
    said = capsys.readouterr().out
    assert "doctor: reward_chance" in said
    assert "data_dropped" not in said
    assert "reward_chance" in (tmp_path / "report.html").read_text()


def test_a_report_that_fails_is_said_once_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "EVERY", 0.0)
    (tmp_path / "report.html").mkdir(parents=True)
    run = begun(config(tmp_path))
    run.log(1, {"loss": 1.0}, "first")
    run.log(2, {"loss": 1.0}, "second")
    run.finish(save_weights(), facts())
    said = capsys.readouterr().out
    assert said.count("note: the report failed: IsADirectoryError") == 1
    assert json.loads((tmp_path / "sft" / "stage.json").read_text())["command"]


def test_the_report_is_made_at_intervals(tmp_path: Path, monkeypatch: Any) -> None:
    """At the end, once a minute in between, less often where that would take too long."""
    now, made, cost = [0.0], [], 1.0

    def write(root: Path) -> None:
        made.append(now[0])
        now[0] += cost

    monkeypatch.setattr(beside, "write_report", write)
    monkeypatch.setattr(beside.time, "monotonic", lambda: now[0])
    run = begun(config(tmp_path))
    for step in range(1, 40):
        now[0] += 10.0
        cost = 1.0 if step < 20 else 3.0
        run.log(step, {"loss": 1.0}, "")
    assert made == [60.0, 121.0, 182.0, 243.0, 396.0]
    run.finish(save_weights(), facts())
    assert len(made) == 6


def test_a_run_that_fails_says_why_in_its_report(tmp_path: Path) -> None:
    run = begun(config(tmp_path))
    run.log(1, {"loss": 1.0}, "first")
    run.__exit__(RuntimeError, RuntimeError("broken"), None)
    assert "stopped: RuntimeError: broken" in (tmp_path / "report.html").read_text()
