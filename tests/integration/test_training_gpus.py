"""Stages 1 and 2 on a machine with several GPUs."""

from pathlib import Path

import pytest
from _models import (
    largest_difference,
    parameters,
    policy_of,
    reward_folder,
)
from _stages import begun
from _training import pairs, several_gpus, sft_rows, training_config
from torch import Tensor

from cores.models import load_scalar
from cores.training.reward import train_reward
from cores.training.sft import train_sft


def trained_by(name: str, folder: Path) -> dict[str, Tensor]:
    """The weights after the stage's two steps."""
    config = training_config(folder, 2)
    if name == "sft":
        model = policy_of("gpt2")
        train_sft(model, sft_rows(13), begun(config))
    else:
        model = load_scalar(reward_folder("gpt2"))
        train_reward(model, pairs(13), begun(config, "reward"))
    return parameters(model)


@pytest.mark.parametrize("name", ["sft", "reward"])
def test_a_process_trains_on_one_gpu(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it sees two, the trainers would run nn.DataParallel on batches twice as large."""
    several_gpus(monkeypatch, 1)
    alone = trained_by(name, tmp_path / "one")
    several_gpus(monkeypatch, 2)
    assert largest_difference(alone, trained_by(name, tmp_path / "two")) == 0
