"""Two CPU processes do what one does: DDP for the whole chain, DDP and ZeRO-3 for PPO steps."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import _models
import pytest
from _helpers import FEW_STEPS, GPT2, ROOT, TORCHRUN, environment, record, rows, sources
from safetensors.torch import load_file

PPO_WORKER = ROOT / "tests" / "integration" / "_ppo_worker.py"
CHAIN_WORKER = ROOT / "tests" / "integration" / "_chain_worker.py"
TOLERANCE = 5e-6
"""Of weights after 8 optimizer steps of rate 1e-3 in fp32; the order of additions differs."""


def run(command: list[Any], **env: str) -> None:
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env=environment(PYTHONPATH=str(ROOT), **env), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def difference(a: Path, b: Path, name: str = "model.safetensors") -> float:
    one, two = load_file(a / name), load_file(b / name)
    return _models.largest_difference(one, two)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of actor and critic after the same PPO steps in three launches."""
    root = tmp_path_factory.mktemp("steps")
    sft = shutil.copytree(_models.sft_folder("gpt2"), root / "sft")
    reward = shutil.copytree(_models.reward_folder("gpt2"), root / "reward")
    zero3 = root / "zero3.json"
    # Threshold 0: every weight is sharded, however small the model.
    sharding = {"stage": 3, "stage3_param_persistence_threshold": 0}
    zero3.write_text(
        json.dumps(
            {
                "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
                "gradient_clipping": 0.5, "zero_optimization": sharding,
            }
        )
    )  # fmt: skip
    accelerate = [
        Path(sys.executable).with_name("accelerate"), "launch", "--quiet", "--use_deepspeed",
        "--deepspeed_config_file", zero3, "--num_processes", 2, "--num_machines", 1,
        "--dynamo_backend", "no",
    ]  # fmt: skip
    launches = {"one": [sys.executable], "ddp": TORCHRUN, "zero3": accelerate}
    for name, launcher in launches.items():
        run([*launcher, PPO_WORKER, sft, reward, root / name, 0], DS_ACCELERATOR="cpu")
    return {name: root / name for name in (*launches, "sft", "reward")}


@pytest.mark.parametrize("launch", ["ddp", "zero3"])
def test_ppo_steps_equal_one_process(steps: dict[str, Path], launch: str) -> None:
    """Invariant 21: actor and critic move as on one process given the same global batch."""
    facts = json.loads((steps[launch] / "facts.json").read_text())
    assert facts["world"] == 2
    assert difference(steps["one"], steps["sft"]) > 100 * TOLERANCE, "nothing was learnt"
    assert difference(steps["one"], steps[launch]) < TOLERANCE
    assert difference(steps["one"] / "critic", steps[launch] / "critic") < TOLERANCE


@pytest.mark.parametrize("launch", ["ddp", "zero3"])
def test_statistics_equal_one_process(steps: dict[str, Path], launch: str) -> None:
    """Invariants 19, 24: whitening, losses, gradient norms and metrics are global."""
    one, two = (json.loads((steps[n] / "facts.json").read_text()) for n in ("one", launch))
    for a, b in zip(one["stats"], two["stats"], strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("launch", ["one", "ddp", "zero3"])
def test_optimizer_steps(steps: dict[str, Path], launch: str) -> None:
    """Invariant 22: 2 updates of 2 epochs of 2 minibatches are 8 steps, by the engine too."""
    facts = json.loads((steps[launch] / "facts.json").read_text())
    assert facts["steps"] == {"actor": 8, "critic": 8}
    assert facts["engine_steps"] == [8, 8]


@pytest.mark.parametrize("launch", ["one", "ddp", "zero3"])
def test_rollout_from_the_trained_weights(steps: dict[str, Path], launch: str) -> None:
    """Invariants 1, 29: what is sampled after training has the log-probs of the trained actor."""
    assert json.loads((steps[launch] / "facts.json").read_text())["gap"] < 1e-5


@pytest.fixture(scope="module")
def chains(
    tmp_path_factory: pytest.TempPathFactory, llama: Path, files: dict[str, Path]
) -> dict[str, Path]:
    """The whole chain in one launch, on one process and on two."""
    root = tmp_path_factory.mktemp("chains")
    arguments = [
        "--config", GPT2, "--model.path", llama, *sources(files), *FEW_STEPS,
        "--template.kind", "chat", "--template.user.prefix=", "--template.user.suffix=",
        "--template.assistant.prefix=",
    ]  # fmt: skip
    for name, launcher in {"one": [sys.executable], "two": TORCHRUN}.items():
        run([*launcher, CHAIN_WORKER, *arguments, "--output_dir", root / name])
    return {name: root / name for name in ("one", "two")}


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_chain_equals_one_process(chains: dict[str, Path], stage: str) -> None:
    """Invariant 21: stages 1 and 2 end at one process's weights (the head: before calibration)."""
    one, two = (load_file(chains[n] / stage / "model.safetensors") for n in ("one", "two"))
    if stage == "reward":  # calibrated on samples, which differ: compare the head's direction
        for weights in (one, two):
            weights["score.weight"] = weights["score.weight"] / weights["score.weight"].norm()
    assert _models.largest_difference(one, two) < 1e-5


def test_chain_on_two_processes(chains: dict[str, Path]) -> None:
    """All stages finish once, each recording two processes; ranks saw different prompts."""
    for stage in ("sft", "reward", "ppo"):
        assert record(chains["two"] / stage)["processes"] == 2
    metrics = rows(chains["two"] / "ppo" / "metrics.jsonl")
    assert [row["step"] for row in metrics] == [1, 2]
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert metrics[0]["rollout_logprob_gap"] < 1e-4
