"""Training that has gone to NaN ends with an error rather than with a model."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import policy_of
from _stages import begun
from _training import sft_rows, training_config
from torch import nn

from cores.config import Config, FaultsSection
from cores.errors import UserError
from cores.training.sft import train_sft


class Infinite(torch.autograd.Function):
    """The identity, whose gradient is infinite."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *slope: Any) -> Any:
        return torch.full_like(slope[0], math.inf)


def infinite_at(model: nn.Module, *passes: int) -> None:
    """The gradient of the model's last norm is infinite in the forward passes of these numbers."""
    count = [0]

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        count[0] += 1
        return Infinite.apply(output) if count[0] in passes else output

    model.transformer.ln_f.register_forward_hook(hook)


def test_weights_that_are_no_numbers_stop_the_stage(tmp_path: Path) -> None:
    """The message names stage, step, what is at fault and the keys to change; the folder tells of
    it, and holds no checkpoint."""
    model = policy_of("gpt2")
    torch.nn.init.constant_(model.transformer.ln_f.weight, math.nan)
    run = begun(training_config(tmp_path, 8))
    message = r"sft: the gradient is not finite at step 1.*bad weights \(transformer\.ln_f"
    with pytest.raises(UserError, match=message) as caught, run:
        train_sft(model, sft_rows(16), run)
    assert "(--faults.nonfinite skip; so" in str(caught.value)
    assert "lower sft.learning_rate, or compute in fp32" in str(caught.value)
    assert str(caught.value).endswith("begins the run anew (--resume never).")
    assert not list(tmp_path.glob("**/*.safetensors"))
    assert "not finite at step 1" in (run.path / "state.json").read_text()


def test_a_gradient_that_is_no_number_stops_the_stage(tmp_path: Path) -> None:
    """Of sound weights: they stay as they were, whatever the gradient."""
    model = policy_of("gpt2")
    infinite_at(model, 1)
    run = begun(training_config(tmp_path, 8))
    with pytest.raises(UserError, match=r"not finite at step 1, in the gradients of .* from sound"):
        train_sft(model, sft_rows(16), run)
    start = dict(policy_of("gpt2").named_parameters())
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())


def skipping(root: Path, steps: int) -> Config:
    config = training_config(root, 8)
    config = replace(config, sft=replace(config.sft, max_steps=steps))
    return replace(config, faults=FaultsSection(nonfinite="skip", max_skips=1))


def test_steps_left_out(tmp_path: Path) -> None:
    """With faults.nonfinite skip: the weights stay finite and move by the other steps; the rows say
    how many were left out, and have no number that is none."""
    config, model = skipping(tmp_path, 4), policy_of("gpt2")
    infinite_at(model, 1, 3)
    run = begun(config)
    train_sft(model, sft_rows(32), run)
    start = dict(policy_of("gpt2").named_parameters())
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(p, start[name]) for name, p in model.named_parameters())
    rows = [json.loads(x) for x in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped_steps"] for row in rows] == [1, 0, 1, 0]
    assert ["grad_norm" in row for row in rows] == [False, True, False, True]
    assert all(row["loss"] > 0 for row in rows)


def test_too_many_steps_left_out(tmp_path: Path) -> None:
    """One more in a row than max_skips ends the stage."""
    config, model = skipping(tmp_path, 3), policy_of("gpt2")
    infinite_at(model, 1, 2)
    with pytest.raises(UserError, match="not finite at step 2"):
        train_sft(model, sft_rows(24), begun(config))
