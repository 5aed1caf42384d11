"""Margins of stage 2: from the row to the loss."""

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _data_helpers import NONE, config, write_jsonl
from _models import PAD, reward_folder
from _stages import begun
from _tokenizers import gpt2_like
from _training import training_config

from cores.data import preference_data, right_pad
from cores.models import ScalarModel, load_scalar
from cores.training.reward import train_reward

ROWS = [
    {"prompt": "Q", "chosen": " A", "rejected": " B"},
    {"prompt": "Q", "chosen": " A", "rejected": " No", "margin": None},
    {"prompt": "Q", "chosen": " Of course", "rejected": " B", "margin": 1.5},
    {"prompt": "Q", "chosen": " Yes", "rejected": " B", "margin": 3},
]


def test_margins_are_read(tmp_path: Path) -> None:
    """A missing margin is 0, also where the first row has none."""
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    pairs = preference_data(config(path, NONE), gpt2_like()).train
    assert [pair["margin"] for pair in pairs] == [0.0, 0.0, 1.5, 3.0]


def test_margins_reach_the_loss(tmp_path: Path) -> None:
    """The first step's loss is the mean of log(1 + exp(-(chosen - rejected - margin)))."""
    margins = [0.0, 0.0, 1.5, 3.0]
    pairs = [
        {"chosen_ids": [5, 6 + i, 7], "rejected_ids": [5, 20 + i], "prompt_length": 1, "margin": m}
        for i, m in enumerate(margins)
    ]
    model = load_scalar(reward_folder("gpt2"))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    scorer = ScalarModel(copy.deepcopy(model).eval())
    with torch.no_grad():
        chosen, rejected = (
            scorer.scores(*right_pad([pair[side] for pair in pairs], PAD)).tolist()
            for side in ("chosen_ids", "rejected_ids")
        )
    leads = [c - r for c, r in zip(chosen, rejected, strict=True)]
    by_hand = [math.log1p(math.exp(m - lead)) for m, lead in zip(margins, leads, strict=True)]
    without = [math.log1p(math.exp(-lead)) for lead in leads]
    made = training_config(tmp_path, 2)
    made = replace(made, reward=replace(made.reward, batch_size=4, max_steps=1))
    run = begun(made, "reward")
    train_reward(model, pairs, run)
    (first, *_) = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    loss = json.loads(first)["loss"]
    assert loss == pytest.approx(sum(by_hand) / 4, rel=1e-3)
    assert abs(loss - sum(without) / 4) > 0.1
