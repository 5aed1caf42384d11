"""Runs on two processes that are killed in every stage and go on, bit for bit as uninterrupted.

    python tests/faults/launches.py OUT [FILE ...]

FILE: of configs/accelerate without its ending; cpu2, zero2 and zero3 unless told otherwise. A run
that was killed on two processes also goes on on one: within rounding. Writes OUT/launches.json.
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
POINTS = {"sft": "training:4", "reward": "training:3", "ppo": "update:5"}
"""Where a rank is killed in each stage: behind its second or third checkpoint."""
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


def trial(file: str, then: str, base: Path, files: dict[str, Path], root: Path) -> dict[str, Any]:
    """All stages with `file`, whole and in parts; the parts go on with `then`."""
    whole, parts = root / f"{file}-whole", root / f"{file}-{then}-parts"
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
        again = launch(then, "none", stage, words[1])
        assert again.returncode == 0, again.stderr[:4000]
        assert f"resuming {stage} at step" in again.stdout, again.stdout
        found[stage] = compare(whole / stage, parts / stage)
        if then != file:  # the next stage's parents are the same again
            shutil.rmtree(parts / stage)
            (parts / stage).symlink_to(whole / stage)
    return found


def main() -> None:
    """Every file, going on with itself; the first also on one process."""
    root, *names = sys.argv[1:]
    out = Path(root)
    base, files = _tiny.make_llama(out / "base"), _tiny.make_data(out / "data")
    names = names or ["cpu2", "zero2", "zero3"]
    pairs = [*((name, name) for name in names), *((name, "one") for name in names)]
    found = {}
    for file, then in pairs:
        found[f"{file} -> {then}"] = trial(file, then, base, files, out)
        print(f"{file} -> {then}: {json.dumps(found[f'{file} -> {then}'])}", flush=True)
    (out / "launches.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
