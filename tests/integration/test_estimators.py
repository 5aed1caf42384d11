"""Stage 3 with each estimator, and with everything at once, behind one run of stages 1 and 2."""

import math
from pathlib import Path
from typing import Any

import pytest
from _helpers import good, record, rows

ESTIMATORS = {
    "gae": "",
    "coati": "--ppo.whiten_advantages false",
    "grpo": "--ppo.samples_per_prompt 2 --ppo.kl_in loss --ppo.kl_kind k3",
    "rloo": "--ppo.samples_per_prompt 4",
    "reinforce_pp": "",
}
EVERYTHING = """--ppo.updates 3 --ppo.samples_per_prompt 2 --ppo.critic_init zero
--ppo.critic_warmup 1 --ppo.kl_in loss --ppo.kl_kind k2 --ppo.kl_target 1 --ppo.kl_horizon 16
--ppo.clip_high 0.28 --ppo.dual_clip 3 --ppo.entropy_coef 0.01 --ppo.early_stop_kl 1
--ppo.ptx_coef 0.5 --ppo.ptx_mix convex --ppo.loss_mean sequences --ppo.length_penalty 0.01
--ppo.rollout_correction truncate --ppo.min_new_tokens 2 --ppo.stop_token_ids [20]
--ppo.temperature 0.9 --ppo.microbatch_size 3 --ppo.critic_adam.eps 1e-6""".split()
COMPARED = set(
    """rollout_logprob_gap rollout_kl rollout_ratio rollout_ratio_max
rollout_ratio_outside""".split()
)
BOTH = """step score score_std kl kl_std repetition first_kl entropy response_length ended reward
kl_coef optimizer_steps policy_loss ratio_mean ratio_max clip_fraction approx_kl
actor_grad_norm learning_rate_factor tokens_per_second seconds""".split()
CRITIC = "explained_variance value_loss value_clip_fraction value_error critic_grad_norm".split()


@pytest.fixture(scope="module")
def run_stage(
    finished: Path, llama: Path, files: dict, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """Stage 3 with options on a link to the finished stages; gives its folder."""

    def run(call: Any, options: list[str]) -> Path:
        out = tmp_path_factory.mktemp("ppo")
        for stage in ("sft", "reward"):
            (out / stage).symlink_to(finished / stage)
        status, _, err = call("ppo", [*good(llama, files, out), *options])
        assert (status, err) == (0, "")
        return out / "ppo"

    return run


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_estimator(run_stage: Any, call: Any, name: str) -> None:
    """Two updates: finite figures under their names, and a critic only where there is one."""
    folder = run_stage(call, ["--ppo.estimator", name, *ESTIMATORS[name].split()])
    critic = name in ("gae", "coati")
    logged = rows(folder / "metrics.jsonl")
    extra = {"kl_loss"} if name == "grpo" else set()
    assert len(logged) == 2
    compared = COMPARED  # with the engine's log-probs, until they serve
    for row, more in zip(logged, (compared, set()), strict=True):
        assert row.keys() == {*BOTH, *extra, *more} | set(CRITIC if critic else ())
        assert all(math.isfinite(value) for value in row.values())
        assert row["optimizer_steps"] == 2
    assert logged[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert (folder / "model.safetensors").is_file()
    assert (folder / "critic" / "model.safetensors").is_file() == critic
    found = record(folder)
    assert found["metrics"]["optimizer_steps"] == 4
    assert {"before", "after"} <= found["metrics"].keys()
    assert len(rows(folder / "held_out_samples.jsonl")) == 4


def test_everything_at_once(run_stage: Any, call: Any) -> None:
    """Options do not stand in each other's way; each leaves its figure."""
    folder = run_stage(call, EVERYTHING)
    first, *rest = rows(folder / "metrics.jsonl")
    assert first["explained_variance"] == 0  # all values are 0
    assert not {"policy_loss", "ptx_loss", "actor_grad_norm"} & first.keys()
    assert (first["kl_coef"], first["optimizer_steps"]) == (0.05, 2)
    for row in rest:
        assert row.keys() == {
            *BOTH, *CRITIC, *COMPARED, "kl_loss", "ptx_loss", "rollout_weight",
        }  # fmt: skip
        assert all(math.isfinite(value) for value in row.values())
        assert row["rollout_weight"] == pytest.approx(1, abs=1e-4)
        assert row["ptx_loss"] > 0
        assert row["response_length"] >= 2
    assert rest[0]["kl_coef"] == 0.05  # the critic's warm-up steers nothing
    assert rest[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert (folder / "critic" / "model.safetensors").is_file()
    assert record(folder)["metrics"]["optimizer_steps"] == 4
