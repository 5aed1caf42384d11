"""Rows, configurations and folders for tests that train stages 1 and 2."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import WORDS

from cores.config import Config, RewardSection, SFTSection
from cores.training.lasting import common_arguments


def random_rows(count: int, seed: int = 0) -> list[list[int]]:
    """Rows of 2 to 9 ids."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 10, (count,), generator=generator).tolist()
    return [torch.randint(2, WORDS, (n,), generator=generator).tolist() for n in lengths]


def sft_rows(count: int) -> list[dict[str, list[int]]]:
    """Rows whose first token is not trained."""
    return [{"input_ids": r, "labels": [-100, *r[1:]]} for r in random_rows(count)]


def pairs(count: int) -> list[dict[str, Any]]:
    """Pairs of random rows."""
    rows = random_rows(2 * count, seed=1)
    return [
        {"chosen_ids": a, "rejected_ids": b, "prompt_length": 1, "margin": 0.0}
        for a, b in zip(rows[::2], rows[1::2], strict=True)
    ]


def training_config(folder: Path, micro: int, **changes: Any) -> Config:
    sections = {"batch_size": 8, "microbatch_size": micro, "max_steps": 2, "warmup": 0.0}
    return Config(
        output_dir=str(folder),
        sft=replace(SFTSection(learning_rate=1e-3), **sections, **changes),
        reward=replace(RewardSection(learning_rate=1e-3), **sections, **changes),
    )


def gradient_descent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps almost proportional to the gradient: AdamW's first steps are its sign, which for the
    exact zeros of GPT-2 (key biases) is rounding error."""

    def arguments(*args: Any) -> dict[str, Any]:
        return {**common_arguments(*args), "adam_epsilon": 1.0, "max_grad_norm": 1e9}

    monkeypatch.setattr("cores.training.lasting.common_arguments", arguments)


def several_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Trainers that believe in `count` GPUs, on whatever machine this is."""

    def arguments(*args: Any) -> dict[str, Any]:
        return {**common_arguments(*args), "use_cpu": False}

    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr("cores.training.lasting.common_arguments", arguments)
