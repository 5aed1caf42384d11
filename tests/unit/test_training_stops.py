"""Training that has gone to NaN ends with an error rather than with a checkpoint."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _models import LAUNCH, PAD, policy_of
from cores.runtime.stage import StageFolder

from cores.config import Config, SFTSection
from cores.errors import UserError
from cores.training.sft import train_sft


def test_a_loss_that_is_no_number_stops_the_stage(tmp_path: Path) -> None:
    """The message names stage, step and the keys to change."""
    model = policy_of("gpt2")
    torch.nn.init.constant_(model.transformer.ln_f.weight, math.nan)
    section = replace(SFTSection(), batch_size=4, microbatch_size=4, max_steps=1)
    config = Config(output_dir=str(tmp_path), sft=section)
    rows = [{"input_ids": [5, 6, 7, 1], "labels": [-100, 6, 7, 1]}] * 4
    message = r"sft: the training loss is nan at step 1.*sft\.learning_rate"
    with (
        pytest.raises(UserError, match=message),
        StageFolder(config, "sft", LAUNCH, 0.0) as folder,
    ):
        train_sft(config, model, rows, PAD, folder, LAUNCH)
    assert not list(tmp_path.glob("**/*.safetensors"))
