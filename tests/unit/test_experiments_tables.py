"""The experiments' tables say what the runs' numbers say; calls that cannot work are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from cores.errors import UserError
from research.experiments import figures, run, tables
from research.experiments.figures import MEASURES, gather, judged, of_seeds, over_seeds
from research.experiments.peer_trl import RELEASE
from research.experiments.tables import NOT_RUN, against, render, versus


def made(seeds: list[int], gold: list[float]) -> dict[str, Any]:
    """A judged run, alike in all measures but gold."""
    halves = {"halves": [0.1 * seed for seed in seeds]}
    others = over_seeds([float(seed) for seed in seeds]) | halves
    return {"seeds": seeds, **dict.fromkeys(MEASURES, others), "gold": over_seeds(gold) | halves}


def test_interval_over_seeds_is_students() -> None:
    found = over_seeds([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["half"] == pytest.approx(4.30 / 3**0.5, abs=1e-3)
    assert over_seeds([1.0])["half"] is None


def test_difference_is_on_the_same_seeds() -> None:
    base = {"seeds": [0, 1, 2], "gold": over_seeds([5.0, 1.0, 2.0])}
    other = {"seeds": [1, 2], "gold": over_seeds([2.0, 3.0])}
    assert versus({"x": other}, base, ["x"]).endswith("| x | +1.00 ± 0.00 | +1.00 +1.00 |")


def test_a_run_of_fewer_seeds_is_computed_anew() -> None:
    found = of_seeds(made([0, 1, 2], [5.0, 1.0, 2.0]), {1, 2, 7})
    assert found["seeds"] == [1, 2]
    assert found["gold"] == over_seeds([1.0, 2.0]) | {"halves": [0.1, 0.2]}
    assert found["kl"]["mean"] == 1.5


def test_ours_is_of_the_groups_seeds_and_defects_are_of_their_base() -> None:
    """Three seeds beside three; with and without a defect, less the estimator without any."""
    runs = {
        "ours": made([0, 1, 2], [9.0, 1.0, 2.0]),
        "none": made([1, 2], [1.0, 1.0]),
        "defect": made([1, 2], [0.5, 0.0]),
    }
    first, second, third = against(runs, ["none", "defect"], "none").split("\n\n")
    assert first.splitlines()[2].startswith("| ours | 2 | +1.50 ± ")
    assert [row.split(" | ")[0] for row in second.splitlines()[2:]] == ["| none", "| defect"]
    assert third.splitlines()[0] == "| run | gold less none, same seeds | by seed |"
    assert [row.split(" | ")[::2] for row in third.splitlines()[2:]] == [
        ["| defect", "-0.50 -1.00 |"]
    ]
    assert len(against(runs, ["none", "defect"]).split("\n\n")) == 2
    assert against(runs, []) == NOT_RUN


def write_judged(file: Path, gold: float) -> None:
    """What judge.py writes of one seed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    found = {name: {"mean": gold, "half": 0.5} for name in MEASURES}
    file.write_text(json.dumps(found | {"samples": [{"prompt": "p", "reply": "r"}]}))


def test_halves_of_single_seeds_are_kept(tmp_path: Path) -> None:
    write_judged(tmp_path / "a.json", 2.0)
    found = judged({3: tmp_path / "a.json", 4: tmp_path / "none.json"})
    assert found is not None
    assert found["seeds"] == [3]
    assert found["gold"] == {"mean": 2.0, "half": None, "seeds": [2.0], "halves": [0.5]}


def results(out: Path, tuning: dict[str, dict[str, float]]) -> Path:
    """As little as the page can be made of."""
    for name in ("ours", "no-kl"):
        write_judged(out / "seed0" / name / "judged.json", 1.0)
    write_judged(out / "seed0" / "best-of-1.json", 0.0)
    (out / "machine.json").write_text('{"hardware": "a box", "versions": {"torch": "9"}}')
    (out / "tuning.json").write_text(json.dumps(tuning))
    return out


def test_without_the_peer_its_comparisons_are_not_run(tmp_path: Path) -> None:
    """run.py without --peer-path leaves the peer's tuning empty."""
    found = gather(results(tmp_path, {"ours": {"rate-1-linear": 1.0}, "trl": {}}))
    assert found["chosen"] == {"ours": "rate-1-linear"}
    places = render(found)
    assert places["frontier"] == places["same"] == places["coati"] == NOT_RUN
    assert places["machine"] == f"a box; torch 9 (the peer: trl {RELEASE})."


def test_the_peers_settings_are_those_of_its_chosen_run(tmp_path: Path) -> None:
    """Without the folder it was written to."""
    tuning = {"ours": {"rate-1-linear": 1.0}, "trl": {"rate-2-linear": 0.0, "rate-3-linear": 1.0}}
    for setting in ("rate-2-linear", "rate-3-linear"):
        folder = tmp_path / "seed0" / f"trl-{setting}-0.1"
        folder.mkdir(parents=True)
        settings = {"output_dir": str(folder), "name": setting}
        record = {"versions": {"trl": "1"}, "settings": settings, "seconds": 3}
        (folder / "peer.json").write_text(json.dumps(record))
    assert gather(results(tmp_path, tuning))["peer"] == {
        "release": RELEASE,
        "versions": {"trl": "1"},
        "settings": {"name": "rate-3-linear"},
    }


def test_calls_that_cannot_work_are_refused(tmp_path: Path) -> None:
    """Each by one sentence, before anything is run or written."""
    missing = str(tmp_path / "none")
    calls = [
        (run.main, ["--out", missing, "--workers", "0"], "--workers 0: "),
        (run.main, ["--out", missing, "--peer-path", missing], f"--peer-path {missing}: "),
        (figures.main, ["--out", missing], f"--out {missing}: there is no machine.json"),
        (tables.main, [missing], f"there is no file {missing};"),
    ]
    for main, words, problem in calls:
        with pytest.raises(UserError) as caught:
            main(words)
        assert str(caught.value).startswith(problem)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
