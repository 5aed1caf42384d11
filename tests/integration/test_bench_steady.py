"""A long run's figures: what they are made of, and that a short one has them all."""

import json
from pathlib import Path
from typing import Any

import pytest

from cores.errors import UserError
from scripts.bench import steady, tables
from scripts.bench.workloads import WORKLOADS

SMALL = ["--workload", "W4", "--batch", "4", "--minibatch", "2", "--epochs", "1"]
SMALL += ["--response", "3", "--lengths", "geometric", "--mean", "2"]


def run_of(seconds: list[float], resident: list[int], graphs: list[int]) -> dict[str, Any]:
    updates = {"seconds": seconds, "tokens": [1] * len(seconds), "resident": resident}
    return {
        "kind": "steady",
        "workload": {"name": "W4", "batch": 4, "prompt": 16, "response": 3, "mean_length": 2.0},
        "standard": False,
        "engine": "GraphEngine",
        "options": [],
        "mean_length": 2.0,
        "machine": {"hardware": "CPU", "threads": 1, "versions": {}},
        "updates": {**updates, **dict.fromkeys(steady.FORMS, graphs)},
    }


def test_fifths_leave_out_the_warm_up() -> None:
    """20 slow updates, then ten of which the first two and the last two are looked at."""
    seconds = [9.0] * 20 + [1.0, 3.0] + [7.0] * 6 + [4.0, 6.0]
    assert steady.fifths(seconds) == (2.0, 5.0)


def test_memory_is_compared_from_update_50_on() -> None:
    assert steady.settled(list(range(1, 101))) == (50, 100)


def test_growth_is_seen_in_table_and_report() -> None:
    """Twice the time, 2 GB after 1 GB and a graph more of each kind."""
    found = run_of([1.0] * 60 + [2.0] * 60, [10**9] * 60 + [2 * 10**9] * 60, [3] * 60 + [4] * 60)
    row = tables.steady([found]).splitlines()[2]
    assert "| 120 | 1.00 / 2.00 | **2.00** | 1.000 | 2.000 | 9 / 12 |" in row
    assert "ratio 2.000" in steady.report(found)
    assert tables.steady([]) == tables.NOTHING


def test_prompts_have_all_lengths() -> None:
    """1 to 16 tokens, drawn again for every update."""
    workload = WORKLOADS["W4"]
    rows = [steady.varied_prompts(workload, seed) for seed in range(8)]
    assert {len(prompt) for prompts in rows for prompt in prompts} == set(range(1, 17))
    assert [len(p) for p in rows[0]] != [len(p) for p in rows[1]]


def test_a_short_run_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--updates: 99"):
        steady.main([*SMALL, "--updates", "99"])
    steady.main([*SMALL, "--updates", "100", "--json", str(tmp_path / "steady.json")])
    (found,) = tables.load(tmp_path)
    updates = found["updates"]
    assert {"seconds", "tokens", "resident", *steady.FORMS} <= set(updates)
    assert all(len(numbers) == 100 for numbers in updates.values())
    assert min(updates["seconds"]) > 0
    assert all(4 <= tokens <= 12 for tokens in updates["tokens"])
    assert min(updates["resident"]) > 10**8
    assert "| 100 |" in tables.render([found], [])["steady"]
    assert json.loads((tmp_path / "steady.json").read_text())["kind"] == "steady"
