"""The experiments' plan: what it would run is accepted, and everything it needs is made by it."""

import json
from pathlib import Path

import pytest

from cores.config import parse_config
from research.experiments.plan import BEST_OF, LOGGED, SEEDS, best_of, chain, ours, peer, variants
from research.experiments.run import best, frontier, objective


@pytest.mark.parametrize("variant", variants(), ids=lambda variant: variant.name)
def test_every_variant_is_accepted(variant: object, tmp_path: Path) -> None:
    """Its words make a configuration, and the reward is logged where it is not learned from."""
    train, judged = ours(tmp_path, 1, variant)  # type: ignore[arg-type]
    config = parse_config(list(train.command[2:]), "stage3_ppo.py", "")
    assert config.seed == 1
    assert any(source.endswith(":gold") for source in config.ppo.rewards)
    assert judged.needs == (train.makes,)


def test_all_that_is_needed_is_made(tmp_path: Path) -> None:
    """Stages 1 and 2 of every seed come before what starts from them."""
    plan = chain(tmp_path)
    for variant in variants():
        for seed in variant.seeds:
            plan += ours(tmp_path, seed, variant)
    plan += [best_of(tmp_path, seed, n) for seed in SEEDS for n in BEST_OF]
    plan += peer(tmp_path, 0, "trl-0.1", ("--kl-coef", "0.1"), {"PYTHONPATH": "x"}, "python")
    made = [job.makes for job in plan]
    assert len(set(made)) == len(made)
    for job in plan:
        assert set(job.needs) <= set(made), job.name
    assert json.loads(LOGGED)["model"] == 1


def write_run(folder: Path, score: float, kl: float) -> Path:
    """Metrics of a run that stays where it is."""
    folder.mkdir(parents=True)
    file = folder / "metrics.jsonl"
    file.write_text((json.dumps({"score": score, "kl": kl}) + "\n") * 3)
    return file


def test_settings_are_chosen_by_the_objective_alone(tmp_path: Path) -> None:
    """Score less 0.1 * KL over all updates; runs that are not there are left out."""
    place = tmp_path / "seed0"
    file = write_run(place / "rate-0.0001-constant" / "ppo", 1.0, 1.0)
    write_run(place / "rate-0.0003-linear" / "ppo", 1.5, 9.0)
    assert objective(file) == pytest.approx(0.9)
    assert best(tmp_path) == {"ours": "rate-0.0001-constant"}


def test_the_objective_is_of_the_whole_of_training(tmp_path: Path) -> None:
    """Learning sooner counts, and what replies that do not end lose: 2 times their share, where
    the run logs it; TRL's score has lost it already."""
    file = tmp_path / "metrics.jsonl"
    rows = [{"score": 0.0, "kl": 0.0}, {"score": 1.0, "kl": 5.0}, {"score": 2.0, "kl": 10.0}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert objective(file) == pytest.approx((0.0 + 0.5 + 1.0) / 3)
    file.write_text("\n".join(json.dumps({**row, "ended": 0.75}) for row in rows))
    assert objective(file) == pytest.approx((0.0 + 0.5 + 1.0) / 3 - 0.5)


def test_both_sides_run_at_both_sides_best(tmp_path: Path) -> None:
    """So that a difference of settings is told from one of implementations."""
    place = tmp_path / "seed0"
    write_run(place / "rate-0.0001-constant" / "ppo", 1.0, 1.0)
    write_run(place / "trl-rate-0.0003-linear", 1.0, 1.0)
    jobs = {job.name: job for job in frontier(tmp_path, {"PYTHONPATH": "x"})}
    for setting in ("rate-0.0001-constant", "rate-0.0003-linear"):
        for side in ("frontier", "trl"):
            assert f"seed4.{side}-{setting}-0.4" in jobs
    words = " ".join(jobs["seed4.trl-rate-0.0003-linear-0.4"].command)
    assert "--learning-rate 0.0003 --set lr_scheduler_type=linear --kl-coef 0.4" in words
    words = " ".join(jobs["seed4.frontier-rate-0.0003-linear-0.4"].command)
    assert "--ppo.actor_learning_rate 0.0003 --ppo.lr_schedule linear --ppo.kl_coef 0.4" in words
