"""What stage 3 learns fastest with: the rounds of the plan, and what is measured of a run."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cores.config import parse_config
from research.experiments.peer_trl import parse_set
from research.jobs import Job
from research.samples import measure, one, page, plan, run

DEMO = plan.TASKS["demo"]


def made(points: list[tuple[float, float, float]], seed: int = 0, **more: Any) -> dict[str, Any]:
    """A run of (update, gold, KL)."""
    rows = [{"update": u, "score": 0.0, "score_gold": g, "kl": k} for u, g, k in points]
    training = {"score": [0.0] * int(points[-1][0]), "kl": []}
    return {"seed": seed, "held_out": rows, "training": training, **more}


def test_updates_and_kl_by_hand() -> None:
    """80% of a gain of 2 above a start of 1 is at 2.6: between the looks at 4 and 8."""
    points = [(0, 1.0, 0.0), (4, 2.0, 1.0), (8, 3.2, 3.0), (12, 2.9, 3.5)]
    told = measure.summary([made(points)], DEMO, 2.0, [2.0, 9.0])
    assert told["updates"]["mean"] == pytest.approx(6)
    assert told["kl_there"]["mean"] == pytest.approx(2)
    assert told["gain"]["mean"] == pytest.approx(1.9)
    assert told["kl"]["mean"] == 3.5
    assert told["at_kl"]["2"]["mean"] == pytest.approx(1.6)
    assert "9" not in told["at_kl"]
    assert told["lost"] == 0


def test_what_never_gets_there() -> None:
    """It counts with one update more than it made; below half the gain, or by an error, it is
    lost."""
    low, high = [(0, 0.0, 0.0), (10, 0.9, 1.0)], [(0, 0.0, 0.0), (10, 1.1, 1.0)]
    told = measure.summary([made(low), made(high, seed=1)], DEMO, 2.0)
    assert (told["updates"]["mean"], told["kl_there"], told["lost"]) == (11, None, 1)
    broken = made([(0, 0.0, 0.0), (10, 5.0, 1.0)], lost="error: ppo: loss not finite")
    assert measure.summary([broken], DEMO, 2.0)["lost"] == 1


@pytest.mark.parametrize("name", list(plan.TASKS))
def test_every_setting_is_of_the_configuration(name: str) -> None:
    """Ours parse with the task's configuration; TRL's are words that its script reads."""
    task = plan.TASKS[name]
    for setting in [*plan.alone(task.knobs), task.start, *plan.around(task, "ours", task.start)]:
        words = [word for key, value in setting for word in (f"--{key}", value)]
        parse_config(["--config", f"configs/{name}.yaml", *words], "script", "")
    for setting in plan.alone(task.theirs):
        assert set(parse_set([f"{k}={v}" for k, v in setting])) <= {"learning_rate", "adam_epsilon"}


def test_values_are_joined_best_first() -> None:
    """One value of each knob, on top of what the pass began with."""
    a, b, c = (("x", "1"),), (("x", "2"),), (("y", "3"),)
    start = (("z", "0"),)
    ranked = [plan.join(start, one) for one in (a, b, c)]
    assert plan.together(ranked, start) == [(("x", "1"), ("y", "3"), ("z", "0"))]


def fake(speed: dict[str, float]) -> Any:
    """In place of training: gold rises with the update, times the speed of the setting."""

    def run_all(jobs: list[Job], *_: Any) -> list[Job]:
        for job in jobs:
            words = list(job.command)
            if "--side" not in words or job.done:
                continue
            seed = int(words[words.index("--seed") + 1])
            chosen = words[words.index("--seed") + 2 :]
            fast = speed.get(",".join(chosen), 1.0)
            points = [(u, min(2.5, 0.2 * u * fast), 0.1 * u * fast) for u in range(17)]
            told = made(points, seed, task="demo", side="ours")
            told["setting"] = dict(word.split("=") for word in chosen)
            job.makes.parent.mkdir(parents=True, exist_ok=True)
            job.makes.write_text(json.dumps(told), encoding="utf-8")
        return []

    return run_all


def test_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is faster goes on, is joined and run on all seeds; what is not, is not run again."""
    speed = {"ppo.lam=1": 1.5, "ppo.clip=0.3": 1.2, "ppo.clip=0.3 ppo.lam=1": 2.0}
    monkeypatch.setattr(run, "run_all", fake({k.replace(" ", ","): v for k, v in speed.items()}))
    knobs = {"ppo.lam": ("0.9", "1"), "ppo.clip": ("0.3",), "ppo.epochs": ("1",)}
    monkeypatch.setitem(run.TASKS, "demo", replace(DEMO, first=2, knobs=knobs))
    run.main(["--task", "demo", "--out", str(tmp_path)])
    runs = page.gather(tmp_path)["demo"]["ours"]
    assert {len(runs[name]) for name in ("as it is", "lam=1", "clip=0.3", "clip=0.3,lam=1")} == {5}
    assert {len(runs[name]) for name in ("epochs=1", "lam=0.9")} == {2}
    assert "actor_learning_rate=0.0002,clip=0.3,critic_learning_rate=0.000667,lam=1" in runs
    first = page.table({"ours": runs}, "demo").splitlines()[2]
    assert first.startswith("| `clip=0.3,lam=1` | 5 | 5.0 ± 0.0 |")


def test_names_in_a_table() -> None:
    """Short on top of the start of the pass, whole elsewhere; what was stopped is said."""
    assert page.shown("as it is", "fourth polite") == "as it is"
    start = "actor_learning_rate=4e-5,critic_learning_rate=8e-5"
    assert page.shown(start, "fourth polite") == "start"
    assert page.shown(f"{start},lam=1", "fourth polite") == "start + `lam=1`"
    assert page.shown(f"{start},lam=1", "first polite") == f"`{start},lam=1`"
    slower = "actor_learning_rate=1e-5,critic_learning_rate=2e-5"
    assert page.shown(slower, "fourth polite") == f"`{slower}`"
    assert page.shown("as it is", "fourth demo") == "as it was"
    assert page.shown("minibatch_size=32", "fourth demo") == "as it is"
    runs = [made([(0, 0.0, 0.0), (n, 1.0, 1.0)]) for n in (16, 12, 9)]
    assert page.cut_off(runs, 16) == ", 2 stopped at 9, 12"
    assert page.cut_off(runs[:1], 16) == ""


def test_the_curves_of_a_run(tmp_path: Path) -> None:
    """Before, in between and after; the missing-EOS penalty is off our training score."""
    stage = tmp_path / "ppo"
    stage.mkdir()
    look = {"score": 1.0, "kl": 0.5, "length": 9.0, "ended": 1.0, "score_gold": 2.0, "other": 3}
    told = {"metrics": {"updates": 4, "before": look, "after": look | {"kl": 2.0}}}
    (stage / "stage.json").write_text(json.dumps(told), encoding="utf-8")
    (stage / "evaluations.jsonl").write_text(json.dumps({"update": 2, **look}), encoding="utf-8")
    row = {"score": 1.0, "kl": 0.25, "ended": 0.75}
    (stage / "metrics.jsonl").write_text(json.dumps(row), encoding="utf-8")
    found = one.gather(DEMO, tmp_path, "ours", penalty=2.0)
    assert [(row["update"], row["kl"]) for row in found["held_out"]] == [(0, 0.5), (2, 0.5), (4, 2)]
    assert "other" not in found["held_out"][0]
    assert found["training"] == {"score": [0.5], "kl": [0.25]}


def test_a_run_is_stopped_behind_an_update(tmp_path: Path) -> None:
    """Once the line behind it is there, so that its look is; what came later is left out."""
    line = '{"score": 1.0, "kl": 0.5}\\n'
    code = f"import time\nfor _ in range(3): open('metrics.jsonl', 'a').write('{line}')\n"
    words = [sys.executable, "-c", f"import os\nos.chdir({str(tmp_path)!r})\n{code}time.sleep(60)"]
    result = one.trained(words, {}, tmp_path, "trl", until=2)
    assert result.returncode == 0
    looked = [{"update": update, "score": 1.0, "kl": 0.5} for update in (0, 2, 3)]
    (tmp_path / "evaluations.jsonl").write_text("\n".join(map(json.dumps, looked)))
    found = one.gather(DEMO, tmp_path, "trl", penalty=1.0, until=2)
    assert [row["update"] for row in found["held_out"]] == [0, 2]
    assert found["training"]["kl"] == [0.5, 0.5]
