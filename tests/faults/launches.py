"""Runs on two processes that are killed in every stage and go on, bit for bit as uninterrupted.

    python tests/faults/launches.py OUT [FILE ...]

FILE: of configs/accelerate without its ending; cpu2, zero2, zero3 and fsdp2 unless told otherwise.
A run that was killed on two processes also goes on on one: within rounding. zero3:one:fsdp2 is a
run that is killed under ZeRO-3, goes on on one process, is killed, and ends under FSDP2. Writes
OUT/launches.json.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
for folder in (HERE, ROOT, HERE.parent / "integration", HERE.parent / "unit"):
    sys.path.insert(0, str(folder))

import _tiny  # noqa: E402
from _helpers import environment, good, rows  # noqa: E402

MORE = """--sft.max_steps 4 --sft.learning_rate 1e-2 --reward.max_steps 4
--reward.learning_rate 1e-2 --ppo.updates 4 --ppo.actor_learning_rate 1e-3
--ppo.critic_learning_rate 1e-3 --checkpoint.every_steps 1 --ppo.kl_target 0.01""".split()
POINTS = {"sft": "training:3", "reward": "training:3", "ppo": "update:5"}
"""Where a rank is killed in each stage: behind its second checkpoint."""
AGAIN = "checkpoint-renamed:1"
"""Where one process that went on from there is killed: the third one is whole."""
PATH = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
TIMES = ("seconds", "tokens_per_second", "device_wait")


def command(file: str) -> list[str]:
    """How a launch of that kind begins."""
    if file == "one":
        return [sys.executable]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    return [*launcher, "--config_file", str(ROOT / "configs" / "accelerate" / f"{file}.yaml")]


def launch(
    file: str, point: str, stage: str, words: list[str]
) -> "subprocess.CompletedProcess[str]":
    """One launch of the victim."""
    return subprocess.run(
        [*command(file), str(HERE / "_victim.py"), point, stage, *words],
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
        env=environment(PYTHONPATH=PATH, DS_ACCELERATOR="cpu", CUDA_VISIBLE_DEVICES="",
                        VICTIM="1" if file != "one" else "0"),
    )  # fmt: skip


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that a finished stage holds."""
    return {
        f"{path.relative_to(folder)}:{name}": tensor
        for path in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows, times aside."""
    found = rows(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in found]


def compare(one: Path, other: Path) -> dict[str, Any]:
    """How far two finished stages are apart."""
    a, b = tensors(one), tensors(other)
    gaps = [(a[name] - b[name]).abs().max().item() for name in a]
    return {
        "tensors": len(a),
        "apart": sum(gap > 0 for gap in gaps),
        "largest": max(gaps),
        "rows_equal": metrics(one) == metrics(other),
    }


def trial(legs: list[str], base: Path, files: dict[str, Path], root: Path) -> dict[str, Any]:
    """All stages as the first of `legs`, whole and in parts; each leg but the last is killed."""
    file, *others = legs
    whole, parts = root / f"{file}-whole", root / f"{'-'.join(legs)}-parts"
    found: dict[str, Any] = {}
    for out in (whole, parts):
        out.mkdir(parents=True, exist_ok=True)
    for stage, point in POINTS.items():
        words = [[*good(base, files, out), *MORE] for out in (whole, parts)]
        if not (whole / stage).exists():
            done = launch(file, "none", stage, words[0])
            assert done.returncode == 0, done.stderr[:4000]
        killed = launch(file, point, stage, words[1])
        assert killed.returncode != 0, "the point was not reached"
        for then in others[:-1]:
            killed = launch(then, AGAIN, stage, words[1])
            assert killed.returncode != 0, "the point was not reached"
            assert f"resuming {stage} at step 2" in killed.stdout, killed.stdout
        again = launch(others[-1], "none", stage, words[1])
        assert again.returncode == 0, again.stderr[:4000]
        assert f"resuming {stage} at step {len(legs)}" in again.stdout, again.stdout
        found[stage] = compare(whole / stage, parts / stage)
        if {*others} != {file}:  # the next stage's parents are the same again
            shutil.rmtree(parts / stage)
            (parts / stage).symlink_to(whole / stage)
    return found


def main() -> None:
    """Every chain, and every file: going on with itself, and on one process."""
    root, *names = sys.argv[1:]
    out = Path(root)
    base, files = _tiny.make_llama(out / "base"), _tiny.make_data(out / "data")
    names = names or ["cpu2", "zero2", "zero3", "fsdp2", "zero3:one:fsdp2"]
    chains = [name.split(":") for name in names if ":" in name]
    chains += [[name, then] for name in names if ":" not in name for then in (name, "one")]
    found = {}
    for legs in chains:
        title = " -> ".join(legs)
        found[title] = trial(legs, base, files, out)
        print(f"{title}: {json.dumps(found[title])}", flush=True)
    (out / "launches.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
