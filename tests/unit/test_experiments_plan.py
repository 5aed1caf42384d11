"""The experiments' plan: what it would run is accepted, and everything it needs is made by it."""

import json
from pathlib import Path

import pytest

from cores.config import parse_config
from scripts.experiments.figures import over_seeds
from scripts.experiments.plan import BEST_OF, LOGGED, SEEDS, best_of, chain, ours, peer, variants
from scripts.experiments.run import best_rates, objective


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


def test_rates_are_chosen_by_the_objective_alone(tmp_path: Path) -> None:
    """Score less 0.1 * KL over the last five updates; runs that are not there are left out."""
    for rate, score, kl in (("0.0001", 1.0, 1.0), ("0.0003", 1.5, 9.0)):
        file = tmp_path / "seed0" / f"rate-{rate}" / "ppo" / "metrics.jsonl"
        file.parent.mkdir(parents=True)
        rows = [{"score": 9.0, "kl": 0.0}, *[{"score": score, "kl": kl}] * 5]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert objective(file) == pytest.approx(score - 0.1 * kl)
    assert best_rates(tmp_path) == {"ours": 1e-4}


def test_interval_over_seeds_by_hand() -> None:
    """Student's t: 4.30 * 1 / sqrt(3) for 1, 2, 3; a single seed has none."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert found["mean"] == 2
    assert found["half"] == pytest.approx(4.30 / 3**0.5, abs=1e-3)
    assert over_seeds([2.0])["half"] is None
