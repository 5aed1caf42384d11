"""How far two launches of _modes_worker.py ended from each other."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

KINDS = ("full", "lora")
STAGES = ("sft_trained", "reward_trained", "steps", "steps/critic")
"""Folders with a model, of SFT, reward model, actor and critic."""


def weights(folder: Path) -> dict[str, Any]:
    """The tensors of a folder; a reward head scaled to length 1, as calibration scales it."""
    found = load_file(folder / "model.safetensors")
    if folder.name == "reward_trained":
        found["score.weight"] = found["score.weight"] / found["score.weight"].norm()
    return found


def facts(folder: Path) -> dict[str, Any]:
    """What the PPO steps noted."""
    return json.loads((folder / "steps" / "facts.json").read_text(encoding="utf-8"))


def weight_differences(one: Path, two: Path) -> dict[str, float]:
    """Largest difference of a weight, by stage."""
    result = {}
    for stage in STAGES:
        a, b = weights(one / stage), weights(two / stage)
        assert a.keys() == b.keys()
        result[stage] = max((a[n].float() - b[n].float()).abs().max().item() for n in a)
    return result


def metric_difference(one: Path, two: Path) -> float:
    """Largest difference of a PPO statistic, as a share of the larger of itself and 1."""
    pairs = zip(facts(one)["stats"], facts(two)["stats"], strict=True)
    return max(abs(a[k] - b[k]) / max(1.0, abs(a[k])) for a, b in pairs for k in a)
