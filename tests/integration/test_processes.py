"""Every launch does what one process does: all stages, full weights and adapters, fixed batches.

One launch a file of configs/accelerate runs everything (_modes_worker.py), so that the price of a
launch is paid once. Under ZeRO-3 every weight is sharded, however small the model.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _models
import pytest
from _compare import facts, weights
from _helpers import ROOT, environment, record, rows
from safetensors.torch import load_file

WORKER = ROOT / "tests" / "integration" / "_modes_worker.py"
OPTIONS = WORKER.with_name("_options_worker.py")
ONE = "gpt2:cpu"
LAUNCHES = [
    "gpt2:cpu2",
    "gpt2:zero3",
    *(
        pytest.param(launch, marks=pytest.mark.long)
        for launch in (
            "gpt2:fsdp2",
            "llama:fsdp2",
            "llama:zero3",  # rotary positions, grouped keys, a head of its own
            *(f"gpt2:{file}" for file in ("zero1", "zero2", "zero3_offload")),
        )
    ),
]
"""Model and accelerate file."""
WEIGHTS = ["full", "lora"]
TOLERANCE = {"sft_trained": 2e-6, "reward_trained": 5e-5, "steps": 2e-6, "steps/critic": 2e-6}
"""Largest difference of a weight, in fp32, after 3 steps of rate 1e-3 (8 in `steps`), in which they
move by 2e-3 and more. The order of additions differs between launches, and Adam divides by the root
of a squared gradient: where that is nearly 0 (in the reward model) rounding grows."""
Run = Callable[[str], Path]


def start(command: list[Any]) -> None:
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, timeout=600,
        env=environment(PYTHONPATH=str(ROOT)), check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


def launcher(file: str, processes: int | None = None) -> list[Any]:
    """`accelerate launch` with a file of configs/accelerate."""
    path = ROOT / "configs" / "accelerate" / f"{file}.yaml"
    more = [] if processes is None else ["--num_processes", processes]
    accelerate = Path(sys.executable).with_name("accelerate")
    return [accelerate, "launch", "--quiet", "--config_file", path, *more]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A base model of the kind asked for, data and parents."""
    root = tmp_path_factory.mktemp("inputs")

    def make(model: str) -> Path:
        if not (root / model).exists():
            start([sys.executable, WORKER, "make", root / model, model])
        return root / model

    return make


@pytest.fixture(scope="module")
def run(inputs: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Everything with a model in the launch of an accelerate file; gives the folder it left."""
    root = tmp_path_factory.mktemp("launches")

    def launch(name: str) -> Path:
        model, file = name.split(":")
        out = root / model / file
        if not out.exists():
            out.mkdir(parents=True)
            start([*launcher(file), WORKER, "run", inputs(model), out])
        return out

    return launch


def alone(launch: str) -> str:
    """One process with the same model."""
    return launch.split(":")[0] + ":cpu"


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("launch", LAUNCHES)
def test_weights_equal_one_process(run: Run, launch: str, kind: str) -> None:
    """Invariant 21: SFT, reward model, actor and critic move as on one process."""
    one, two = run(alone(launch)) / kind, run(launch) / kind
    for stage, tolerance in TOLERANCE.items():
        difference = _models.largest_difference(weights(one / stage), weights(two / stage))
        assert difference < tolerance, f"{stage}: {difference}"


@pytest.mark.parametrize("kind", WEIGHTS)
def test_the_steps_move_the_weights(run: Run, inputs: Run, kind: str) -> None:
    """The tolerances above would notice a step left out or doubled."""
    one, parents = run(ONE) / kind, inputs("gpt2") / "parents"
    base = weights(inputs("gpt2") / "base")
    trained = weights(one / "sft_trained")
    name = "transformer.h.0.mlp.c_fc.weight"
    assert (trained[name] - base[name]).abs().max() > 1e-3
    for after, before in (("steps", "sft"), ("steps/critic", "reward")):
        moved = weights(one / after)[name] - weights(parents / before)[name]
        assert moved.abs().max() > 1e-3


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("launch", LAUNCHES)
def test_metrics_equal_one_process(run: Run, launch: str, kind: str) -> None:
    """Invariants 19, 24: losses, gradient norms, accuracy and whitening are those of all ranks."""
    one, two = run(alone(launch)) / kind, run(launch) / kind
    assert facts(two)["world"] == 2
    for a, b in zip(facts(one)["stats"], facts(two)["stats"], strict=True):
        assert b == pytest.approx(a, rel=1e-4, abs=2e-5)
    losses = [record(f / "sft_trained")["metrics"] for f in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    for stage in ("sft_trained", "reward_trained"):
        ours, theirs = (rows(f / stage / "metrics.jsonl") for f in (one, two))
        for a, b in zip(ours, theirs, strict=True):
            for row in (a, b):
                row.pop("seconds"), row.pop("tokens_per_second")
            assert b == pytest.approx(a, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("launch", [ONE, *LAUNCHES])
def test_optimizer_steps(run: Run, launch: str) -> None:
    """Invariant 22: 2 updates of 2 epochs of 2 minibatches are 8 steps, by the engine too."""
    for kind in WEIGHTS:
        found = facts(run(launch) / kind)
        assert found["steps"] == {"actor": 8, "critic": 8}
        assert found["engine_steps"] == [8, 8]


@pytest.mark.parametrize("launch", [ONE, *LAUNCHES])
def test_rollout_from_the_trained_weights(run: Run, launch: str) -> None:
    """Invariants 1, 29: what is sampled after training has the log-probs of the trained actor."""
    for kind in WEIGHTS:
        assert facts(run(launch) / kind)["gap"] < 1e-5


@pytest.mark.parametrize("launch", [ONE, *LAUNCHES])
def test_what_is_sharded(run: Run, launch: str) -> None:
    """ZeRO-3 and FSDP2 leave each rank half of every role, also the frozen ones; others do not."""
    share = 0.5 if launch.partition(":")[2].startswith(("zero3", "fsdp")) else 1.0
    roles = {"full": {"actor", "critic", "reference", "reward"}}
    roles["lora"] = {"actor", "critic"}  # without their adapters they are the other two
    for kind in WEIGHTS:
        found = facts(run(launch) / kind)["sharded"]
        assert set(found) == roles[kind]
        assert list(found.values()) == pytest.approx([share] * len(found), abs=0.01)


@pytest.mark.parametrize("launch", LAUNCHES)
def test_the_chain_as_users_run_it(run: Run, launch: str) -> None:
    """All stages finish once, record two processes, and start from the parents' policy."""
    for kind in WEIGHTS:
        folder = run(launch) / kind
        for stage in ("sft_trained", "reward_trained", "ppo"):
            assert record(folder / stage)["processes"] == 2
        metrics = rows(folder / "ppo" / "metrics.jsonl")
        assert [row["step"] for row in metrics] == [1, 2]
        assert metrics[0]["kl"] == pytest.approx(0, abs=1e-5)
        assert metrics[0]["rollout_logprob_gap"] < 1e-4
        assert not list(folder.glob(".*"))


@pytest.fixture(scope="module")
def options(inputs: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 3 with options of every kind, on one process."""
    out = tmp_path_factory.mktemp("options")
    start([*launcher("cpu"), OPTIONS, inputs("gpt2"), out])
    return out


@pytest.mark.long
@pytest.mark.parametrize(
    ("file", "processes"), [("cpu2", 4), ("zero2", 2), ("zero3", 2), ("fsdp2", 2), ("fsdp2", 4)]
)
def test_options_of_stage_3(
    options: Path, inputs: Run, tmp_path: Path, file: str, processes: int
) -> None:
    """Weights, and every figure, the price of KL among them, are those of one process. In bf16 rows
    are rounded by micro-batch."""
    start([*launcher(file, processes), OPTIONS, inputs("gpt2"), tmp_path])
    for case in sorted(folder.name for folder in options.iterdir()):
        one, several = options / case / "ppo", tmp_path / case / "ppo"
        loose = "bf16" in case
        for ours, theirs in zip(*(rows(f / "metrics.jsonl") for f in (one, several)), strict=True):
            for row in (ours, theirs):
                row.pop("seconds"), row.pop("tokens_per_second")
            near = {"rel": 0.1, "abs": 0.05} if loose else {"rel": 1e-4, "abs": 2e-5}
            assert theirs == pytest.approx(ours, **near), case
        name = "adapter/adapter_model.safetensors" if "lora" in case else "model.safetensors"
        a, b = (load_file(folder / name) for folder in (one, several))
        assert _models.largest_difference(a, b) < (1e-2 if loose else 5e-6), case
    prices = [row["kl_coef"] for row in rows(options / "functions" / "ppo" / "metrics.jsonl")]
    assert prices[1] / prices[0] != pytest.approx(prices[2] / prices[1], rel=1e-4)
