"""The evidence run's pure parts: intervals, baselines, the plan, tables."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from cores.config import parse_config
from cores.data.mixture import held_out
from cores.errors import UserError
from research.evidence.figures import accuracies, changes, collect
from research.evidence.plan import SEEDS, SETS, WITH_PPO, half_of, jobs, lay_out
from research.evidence.score import first_turn
from research.evidence.seeds import over_seeds
from research.evidence.tables import render
from research.jobs import Job, run_all
from scripts.evaluation.baselines import length_margins, tfidf_margins
from scripts.evaluation.stats import average, effective_rows, share, variance_of_mean, wilson, wins


def test_wilson_by_hand() -> None:
    """8 of 10 at z = 2: (.8 + .2 -+ 2 sqrt(.016 + .01)) / 1.4."""
    low, high = wilson(0.8, 10, z=2.0)
    assert low == pytest.approx((1.0 - 2 * 0.026**0.5) / 1.4)
    assert high == pytest.approx((1.0 + 2 * 0.026**0.5) / 1.4)


def test_variance_of_rows_that_hang_together() -> None:
    """1 1 0 0 in twos: deviations sum to 1 and -1, so 2/1 * 2 / 16; alone, 4/3 * 1/16."""
    values = [1.0, 1.0, 0.0, 0.0]
    assert variance_of_mean(values, "aabb") == pytest.approx(0.25)
    assert variance_of_mean(values, "abcd") == pytest.approx(4 / 3 / 16)


def test_rows_of_one_prompt_that_agree_count_once() -> None:
    """40 pairs, ten of each of four prompts, all alike within a prompt: about as good as four."""
    values = [1.0] * 30 + [0.0] * 10
    clusters = [i // 10 for i in range(40)]
    assert effective_rows(values, clusters) == pytest.approx(3.0)  # G - 1: the mean is estimated
    assert effective_rows(values, list(range(40))) == pytest.approx(39.0)
    assert share(values, clusters).low < share(values, list(range(40))).low
    # All won: the outcomes say nothing of the spread, the number of prompts does.
    assert effective_rows([1.0] * 40, clusters) == 4.0


def test_a_share_of_independent_rows_has_wilsons_interval() -> None:
    """At n - 1 rows, as the variance is estimated about the sample's own mean."""
    estimate = share([1.0] * 80 + [0.0] * 20, list(range(100)))
    assert (estimate.low, estimate.high) == pytest.approx(wilson(0.8, 99))


def test_average_by_hand() -> None:
    """0 and 2: mean 1, variance of the mean 1."""
    estimate = average([0.0, 2.0], "ab")
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((1.0, 1 - 1.96, 1 + 1.96))


def test_seeds_widen_the_interval() -> None:
    """Seeds' means 0, 1, 2 with no spread between rows: t(2) = 4.303 times 1 / sqrt(3)."""
    estimate = over_seeds([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], "ab", "average")
    assert estimate.value == 1.0
    assert estimate.high - 1.0 == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
    rows = over_seeds([[0.0, 2.0]] * 3, "ab", "average")  # and with seeds alike, the rows' alone
    assert rows == average([0.0, 2.0], "ab")
    both = over_seeds([[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]], "ab", "average")
    assert both.high - both.value == pytest.approx(
        math.hypot(1.96, 4.3027 / math.sqrt(3)), abs=1e-3
    )


def test_a_share_over_seeds_stays_a_share() -> None:
    """Seeds far apart must not give limits beyond 0 and 1."""
    estimate = over_seeds([[1.0] * 9 + [0.0], [0.0] * 9 + [1.0], [1.0] * 10], range(10), "share")
    assert (estimate.low, estimate.high) == (0.0, 1.0)


def test_ties_count_half() -> None:
    """Wins, ties and losses."""
    assert wins([3.0, 0.5, 0.0, -1.0]) == [1.0, 1.0, 0.5, 0.0]


def test_tfidf_learns_the_word_that_decides_and_not_the_side() -> None:
    """The word "please" decides in training; a test pair in the wrong order is lost by as much."""
    train = [(f"please take the {x}", f"take the {x}") for x in ("bus", "tram", "lift", "stairs")]
    margins = tfidf_margins(train, [("please sit", "sit"), ("sit", "please sit")])
    assert margins[0] > 0
    assert margins[1] == pytest.approx(-margins[0])
    assert length_margins([("ab", "abc"), ("ab", "a")]) == [-1.0, 1.0]


def test_the_plan_parses_and_every_parent_is_planned(tmp_path: Path) -> None:
    """36 stages; each set's configuration reads, and parents come from the plan itself."""
    plan = jobs(tmp_path / "data", tmp_path / "model", tmp_path / "out")
    assert len(plan) == len(SEEDS) * (2 * len(SETS) + 3 * len(WITH_PPO)) == 36
    made = {job.makes for job in plan}
    assert len(made) == len(plan)
    for job in plan:
        assert set(job.needs) <= made
    for job in [job for job in plan if job.run.startswith("seed1")]:
        config = parse_config(list(job.arguments), "stage.py", "")
        assert config.seed == 1
        assert Path(config.output_dir) == job.folder.parent
    ppo = next(job for job in plan if job.stage == "ppo")
    parents = tmp_path / "out/hh_harmless/seed0/sft", ppo.folder.parent / "reward"
    assert ppo.needs == tuple(parent / "stage.json" for parent in parents)


def test_halves_share_no_first_turn_and_cut_across_the_held_out_rows(tmp_path: Path) -> None:
    """Every row and turn is in one half; both halves hold training and held-out turns."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    turns = [f"turn {i % 150}" for i in range(300)]
    replies = {"chosen": "a", "rejected": "b"}
    with (data / "polite_pref_train.jsonl").open("w") as file:
        for turn in turns:
            row = {"instruction": turn, "input": "", "output": "", **replies}
            file.write(json.dumps(row) + "\n")
    with (data / "hh_harmless_train.jsonl").open("w") as file:
        for i, turn in enumerate(turns):
            later = f"\n\nHuman: {i}\n\nAssistant:"
            prompt = f"\n\nHuman: {turn}\n\nAssistant: Yes?{later}"
            file.write(json.dumps({"prompt": prompt, **replies}) + "\n")
    lay_out(data, out)
    for name in WITH_PPO:
        halves = []
        for half in "ab":
            lines = (out / "data" / f"{name}-{half}.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            if name == "polite":
                halves.append([row["instruction"] for row in rows])
            else:
                halves.append([row["prompt"].split("\n\n")[1].split(": ")[1] for row in rows])
            assert (out / name / f"seed0-{half}" / "sft").readlink() == Path("../seed0/sft")
        assert len(halves[0]) + len(halves[1]) == 300
        assert not set(halves[0]) & set(halves[1])
        for half_turns in halves:
            assert 100 < len(half_turns) < 200
            sides = {held_out(turn, 0.2) for turn in half_turns}
            assert sides == {True, False}
    assert half_of("turn 1") == half_of("turn 1")


def _touch_job(folder: Path, run: str, stage: str, needs: tuple[Path, ...]) -> Job:
    return Job(f"set.{run}.{stage}", (), needs, folder / run / stage / "stage.json")


def test_jobs_wait_for_what_they_need_and_a_failure_takes_its_children_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain runs in order, a failed stage's children are not run, the rest is."""
    make = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.parent.mkdir(parents=True); "
    good = make + "p.write_text('{}')"

    def start(job: Job, *_: object) -> "subprocess.Popen[bytes]":
        code = "raise SystemExit(1)" if job.name == "set.bad.sft" else good
        order.append(job.name)
        return subprocess.Popen([sys.executable, "-c", code, str(job.makes)])

    order: list[str] = []
    monkeypatch.setattr("research.jobs._start", start)
    monkeypatch.setattr("research.jobs.POLL", 0.01)
    plan: list[Job] = []
    for run in ("bad", "good"):
        sft = _touch_job(tmp_path, run, "sft", ())
        plan = [_touch_job(tmp_path, run, "reward", (sft.makes,)), sft, *plan]
    unfinished = run_all(plan, tmp_path, 2, deadline=math.inf)
    assert sorted(job.name for job in unfinished) == ["set.bad.reward", "set.bad.sft"]
    assert order.index("set.good.sft") < order.index("set.good.reward")
    assert "set.bad.reward" not in order
    order.clear()
    assert len(run_all(plan, tmp_path, 2, deadline=math.inf)) == 2  # what is done stays done
    assert order == ["set.bad.sft"]


def test_no_time_left_stops_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline ends running jobs, and they count as unfinished."""
    processes = []

    def start(job: Job, *_: object) -> "subprocess.Popen[bytes]":
        processes.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return processes[-1]

    monkeypatch.setattr("research.jobs._start", start)
    import time

    plan = [_touch_job(tmp_path, "one", "sft", ()), _touch_job(tmp_path, "two", "sft", ())]
    assert run_all(plan, tmp_path, 1, time.monotonic() + 0.6) == plan
    assert [process.poll() is not None for process in processes] == [True]


def _replies(before: list[float], after: list[float]) -> dict[str, object]:
    def side(values: list[float]) -> dict[str, list[float]]:
        return dict.fromkeys(("score", "judge", "kl", "tokens"), values)

    return {"clusters": list("abcd"), "before": side(before), "after": side(after)}


def test_changes_are_of_the_same_prompts() -> None:
    """The change's interval is that of differences; preferred is the judge's share of gains."""
    before, after = [0.0, 5.0, 10.0, 15.0], [1.0, 6.0, 11.0, 15.0]
    result = changes({"0": _replies(before, after), "1": _replies(before, after)})
    assert result["score"]["change"]["all"]["value"] == pytest.approx(0.75)
    half = result["score"]["change"]["all"]["high"] - 0.75
    assert half == pytest.approx(1.96 * 0.25)
    assert result["preferred"]["all"]["value"] == pytest.approx(0.875)
    other = {**_replies(before, after), "clusters": list("abce")}
    with pytest.raises(UserError, match="prompts differ"):
        changes({"0": _replies(before, after), "1": other})


def test_tables_say_what_the_figures_say() -> None:
    """The mean over the seeds with its interval, the seeds', both baselines, changes."""
    outcomes = {f"seed{s}": [1.0, 1.0, 1.0, 0.0] for s in SEEDS}
    pairs = {
        "train_pairs": 16,
        "clusters": list("abcd"),
        "tfidf": [1.0, 0.0, 1.0, 0.0],
        "longer": [0.0, 0.0, 1.0, 0.0],
        "runs": outcomes,
    }
    ppo = changes({"0": _replies([0.0] * 4, [1.0] * 4)})
    reply = {"text": "a|b\nc", "score": 0.5, "judge": -1.0}
    sample = {"prompt": "p", "before": reply, "after": reply}
    facts = {
        "pairs": accuracies(pairs),
        "ppo": {**ppo, "curves": {"0": {}}, "samples": [sample]},
        "seconds": {
            "polite.seed0.sft": 10.0,
            "polite.seed1.sft": 12.4,
            "polite.seed0-a.reward": 20.0,
        },
    }
    figures = {"hardware": "a GPU", "versions": {"torch": "2"}, "sets": {"polite": facts}}
    text = render(figures)
    row = next(line for line in text.splitlines() if line.startswith("| polite"))
    assert "| 16, 4 | 4 | **.750 [" in row
    assert "| 3: .750 .750 .750 | .500 [" in row
    assert row.rpartition("| .250 [")[1]
    assert "| +0.00 [+0.00, +0.00] | +1.00 [+1.00, +1.00] | +1.00 [+1.00, +1.00] | +1.00 |" in text
    assert "| 1 seed | before | after |" in text
    assert "- polite: stage 1 10 to 12 (2 runs), stage 2 on half 20 to 20 (1 run)" in text
    assert "less the longer reply, on the same pairs: polite +.250 [" in text
    assert r"| p | a\|b / c (+0.50, -1.00) | a\|b / c (+0.50, -1.00) |" in text


def test_the_reward_models_gain_is_on_the_same_pairs() -> None:
    """Two of four pairs lost by the baseline alone: +0.5, with variance 4/3 * 1/16 of the mean."""
    ones = [1.0, 1.0, 1.0, 0.0]
    pairs = {"train_pairs": 1, "clusters": list("abcd"), "runs": {"seed0": ones}}
    gain = accuracies({**pairs, "tfidf": ones, "longer": [0.0, 0.0, 1.0, 0.0]})["gain"]
    assert gain["tfidf"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert gain["longer"]["value"] == 0.5
    assert gain["longer"]["high"] - 0.5 == pytest.approx(1.96 * math.sqrt(4 / 3 / 16))


def test_a_copied_run_says_where_it_was_scored_and_may_lack_records(tmp_path: Path) -> None:
    """Hardware comes from scores.json; without metrics.jsonl there is no curve, but a table."""
    losses = {"test_loss_before": 2.0, "test_loss": 1.0}
    stage = {"seconds": 1.0, "versions": {"torch": "2"}, "metrics": losses}
    for place in ("seed0/sft", "seed0-a/ppo"):
        (tmp_path / "polite" / place).mkdir(parents=True)
        (tmp_path / "polite" / place / "stage.json").write_text(json.dumps(stage))
    (tmp_path / "polite/seed1-a/ppo").mkdir(parents=True)  # cut off: no stage.json
    pairs = {"train_pairs": 1, "clusters": ["a", "b"], "runs": {"seed0": [1.0, 0.0]}}
    pairs |= {"tfidf": [1.0, 1.0], "longer": [0.0, 1.0]}
    replies = {"0": _replies([0.0] * 4, [1.0, 2.0, 3.0, 4.0])}
    scores = {"hardware": "GPU X", "pairs": {"polite": pairs}, "replies": {"polite": replies}}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    figures = collect(tmp_path)
    assert figures["hardware"] == "GPU X"
    assert figures["sets"]["polite"]["ppo"]["curves"] == {"0": {"score": [], "kl": []}}
    assert render(figures).startswith("GPU X; torch 2.")
    assert "one seed, so the 95% intervals are of the prompts alone" in render(figures)


def test_rows_hang_together_by_the_first_user_turn() -> None:
    """Of a ChatML prompt, whatever comes after it."""
    prompt = "<|im_start|>user\nHi\nthere<|im_end|>\n<|im_start|>user\nAgain<|im_end|>\n"
    assert first_turn(f"<|im_start|>system\nBe nice<|im_end|>\n{prompt}") == "Hi\nthere"
