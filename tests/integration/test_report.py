"""The report: one small file that asks for nothing, in which texts of models are data."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from _browser import browser
from _helpers import script

from cores.errors import UserError
from cores.report import write_report

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "<!--<script>{{data}} {{script}} \u2028 <a href='javascript:window.hacked=3'>x</a> 你好 \udc80"
)
UPDATES = 500


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(root: Path, samples: bool = True, updates: int = UPDATES) -> Path:
    """Three stages as their folders tell, PPO of so many updates with all its figures."""
    config = {"ppo": {"batch_size": 128, "rewards": {"model": 1.0}}, "reward": {"batch_size": 32},
              "logging": {"samples": samples}, "note": HOSTILE}  # fmt: skip
    data = {"train": {"path": HOSTILE, "format": "prompt", "read": 9, "used": 9, "dropped": {}}}
    told = {"config": config, "data": data, "seconds": 99.5, "processes": 2, "versions": {"a": "1"},
            "command": f"python stage.py {HOSTILE}"}  # fmt: skip
    side = {"prompts": 100, "score": 0.1, "score_interval": 0.1, "kl": 0.0, "kl_interval": 0.0,
            "length": 20.0, "ended": 1.0}  # fmt: skip
    metrics = {
        "sft": {"test_loss_before": 4.0, "test_loss": 1.0},
        "reward": {"pairs": 400, "accuracy": 0.8, "accuracy_longer": 0.5, "prefers_longer": 0.5},
        "ppo": {"updates": updates, "before": side, "after": side | {"score": 1.2, "kl": 3.0}},
    }
    for stage, found in metrics.items():
        (root / stage).mkdir(parents=True)
        whole = told | {"metrics": found}
        (root / stage / "stage.json").write_text(json.dumps(whole), encoding="utf-8")
        few = [{"step": 10 * i + 10, "loss": 1.0, "accuracy": 0.8} for i in range(20)]
        lines(root / stage / "metrics.jsonl", few)
    names = "score kl score_std kl_std entropy response_length ended repetition reward".split()
    names += [f"figure_{i}" for i in range(16)]
    rows = [
        {"step": i + 1} | {n: 1.0 + (7 * i + k) % 13 / 12.34567 for k, n in enumerate(names)}
        for i in range(updates)
    ]
    lines(root / "ppo" / "metrics.jsonl", rows)
    both = [
        {
            "prompt": f"Question {i} {HOSTILE}",
            "before": {"text": f"An old reply {HOSTILE}", "score": i / 50, "kl": 0.0, "ids": [1]},
            "after": {"text": f"A new reply {HOSTILE}", "score": 1 + i / 50, "kl": 2.0, "ids": [1]},
        }
        for i in range(128)
    ]
    lines(root / "ppo" / "held_out_samples.jsonl", both)
    lines(root / "ppo" / "evaluations.jsonl", [{"update": updates // 2, **side, "kl": 1.0}])
    return root


def told_by(page: Path) -> dict[str, Any]:
    """The page's data."""
    text = page.read_text(encoding="utf-8")
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_hostile_text_is_data(tmp_path: Path) -> None:
    """It ends no block, stands for no place of the template, and comes out as it went in; 500
    updates are less than a megabyte."""
    page = write_report(make_run(tmp_path / "run"))
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2 + text.partition("<script>")[2].count("<script")
    assert len(text.encode()) < 1e6
    (first, *_) = told_by(page)["pairs"]
    said = "".join(piece for piece, _ in first["after"]["pieces"])
    assert said == f"A new reply {HOSTILE}"
    assert [piece for piece, changed in first["after"]["pieces"] if changed] == ["A new "]
    assert [piece for piece, changed in first["before"]["pieces"] if changed] == ["An old "]


def test_curves_have_intervals_and_long_runs_are_thinned(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run", updates=1000))
    assert page.stat().st_size < 1e6
    sft, reward, ppo = told_by(page)["stages"]
    assert ppo["curves"]["rows"] == 2
    assert len(ppo["curves"]["x"]) == len(ppo["curves"]["series"]["score"]) == 500
    assert {*ppo["curves"]["half"]} == {"score", "kl"}
    half = 1.96 * (0.8 * 0.2 / (10 * 32)) ** 0.5
    assert reward["curves"]["half"]["accuracy"] == pytest.approx([half] * 20, rel=1e-3)
    assert sft["figures"] == [["held-out loss", "4.000 → 1.000 nats a token"]]
    assert [p["update"] for p in told_by(page)["frontier"]] == [0, 500, 1000]


def test_the_interval_of_few_pairs_is_wide(tmp_path: Path) -> None:
    """Wilson's (1927): of 6 right in 6 the lower limit is n / (n + 1.96^2) = 0.610, not 1 - 0."""
    run = make_run(tmp_path / "run")
    file = run / "reward" / "stage.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    record["metrics"] |= {"pairs": 6, "accuracy": 1.0}
    file.write_text(json.dumps(record), encoding="utf-8")
    reward = told_by(write_report(run))["stages"][1]
    assert reward["figures"][0] == ["held-out accuracy", "1.000 [0.610, 1.000]"]


def test_two_may_write_at_once(tmp_path: Path) -> None:
    """A stage that runs, and the command beside it."""
    root = make_run(tmp_path / "run", updates=3)
    with ThreadPoolExecutor(4) as pool:
        pages = [told_by(page) for page in pool.map(write_report, [root] * 12)]
    assert len({page["name"] for page in pages}) == 1
    assert [path.name for path in root.glob(".report*")] == []


def test_prompts_and_replies_stay_out(tmp_path: Path) -> None:
    """With logging.samples false, whatever files are there."""
    root = make_run(tmp_path / "run", samples=False, updates=5)
    found = {"version": 1, "samples": [{"prompt": "Question"}]}
    (root / "evaluation.json").write_text(json.dumps(found))
    lines(root / "ppo" / "samples.jsonl", [{"update": 1, "prompt": "Question", "reply": "A new"}])
    page = write_report(root)
    text = page.read_text(encoding="utf-8")
    assert "Question" not in text
    assert "A new" not in text
    assert told_by(page)["evaluation"] == {}  # the version is no figure


def test_an_unfinished_run_and_a_folder_that_is_none(tmp_path: Path, capsys: Any) -> None:
    """Why it stopped; the rollouts where there is no evaluation yet."""
    root = make_run(tmp_path / "run", updates=5)
    left = (root / "ppo").rename(root / "ppo.unfinished")
    (left / "held_out_samples.jsonl").unlink()
    state = {"config": {}, "facts": {"data": {}}, "stopped": "UserError: no", "resume": "python x"}
    (left / "stage.json").rename(left / "state.json").write_text(json.dumps(state))
    lines(left / "samples.jsonl", [{"update": 1, "prompt": "Q", "reply": "R", "score": 1.0}])
    script("report.py", [root])
    assert capsys.readouterr().out.startswith(f"wrote {root / 'report.html'} (")
    told = told_by(root / "report.html")
    ppo = told["stages"][-1]
    assert (ppo["state"], ppo["step"], ppo["command"]) == ("stopped: UserError: no", 5, "python x")
    assert [row["reply"] for row in told["rollouts"]] == ["R"]
    with pytest.raises(UserError, match="holds no stage of a run"):
        write_report(tmp_path)


def test_in_a_browser(tmp_path: Path) -> None:
    """No error, no request, nothing of a reply runs; readable on a phone and in the dark; the
    search finds; what is folded opens."""
    root = make_run(tmp_path / "run")
    found = {"accuracy": {"mean": 0.9, "low": 0.8, "high": 0.95}, "best_of_n": [
        {"n": 2, "kl": 0.2, "score": {"mean": 0.5, "low": 0.4, "high": 0.6}}],
        "language": {"rows": 15, "sft": {"perplexity": {"mean": 1.71, "low": 1.6, "high": 1.8}}},
        "reward_model": {"by_length": [
            {"name": HOSTILE, "pairs": 7, "accuracy": {"mean": 0.7, "low": 0.6, "high": 0.8}}]},
        "benchmark": {"rows": 9, "cut": 3, "mean": 0.523, "subsets": {
            "Ties": {"rows": 4, "mean": 0.61, "low": 0.5, "high": 0.7}}},
        "left_out": {"base": HOSTILE}}  # fmt: skip
    (root / "evaluation.json").write_text(json.dumps(found))
    page = write_report(root)
    with browser() as b:
        b.look(1200, 900, dark=False)
        started = time.monotonic()
        b.open(page.as_uri())
        assert time.monotonic() - started < 20  # under a second on a machine of one's own
        assert b.run("document.querySelectorAll('.plot').length") == 11
        assert b.run("document.querySelectorAll('.reply').length") == 20
        said = " ".join(b.run("document.getElementById('worth').innerText").split())
        for words in ("of 15 rows", "perplexity – 1.71 (1.6 to 1.8) –", "Ties 4 0.61 (0.5 to 0.7)",
                      "mean of the subsets 9 0.523", "cut, without their end 3",
                      "7 0.7 (0.6 to 0.8)", "Left out: base: </script>"):  # fmt: skip
            assert words in said
        assert b.run("document.querySelector('#replies .gone').textContent") == "An old "
        b.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        b.until("document.querySelectorAll('.plot').length >= 30")
        b.run("document.querySelectorAll('.plot')[29].scrollIntoView()")
        b.run("window.scrollTo(0, 0)")
        b.until("document.querySelectorAll('.plot canvas').length >= 3")
        for i in range(0, 30, 3):
            b.run(f"document.querySelectorAll('.plot')[{i}].scrollIntoView()")
            b.until(f"document.querySelectorAll('.plot')[{i}].querySelector('canvas') !== null")
        b.run(
            "(() => { const s = document.querySelector('input'); s.value = 'question 77';"
            "s.dispatchEvent(new Event('input')); })()"
        )
        assert b.run("document.querySelectorAll('.reply').length") == 1
        assert b.run("document.querySelectorAll('img, a, iframe').length") == 0
        b.look(390, 844, dark=True)
        b.until("document.documentElement.scrollWidth <= 390")
        assert b.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
        assert b.run("'hacked' in window") is False
        assert b.problems == []
        assert set(b.asked) == {page.as_uri()}
