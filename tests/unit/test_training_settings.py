"""Settings of stages 1 and 2, each by what it does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _models import (
    LAUNCH,
    PROMPTS,
    classifier,
    model_config,
    policy_of,
    ppo_config,
    sft_folder,
    toy_tokenizer,
)
from _stages import begun
from _training import pairs, sft_rows, training_config

from cores.config import Config, SFTSection
from cores.errors import UserError
from cores.models import ScalarModel
from cores.run import StageRun
from cores.training.calibration import calibrate, calibration_asked, prompt_of
from cores.training.lasting import common_arguments
from cores.training.reward import score_rows, train_reward
from cores.training.sft import held_out_loss


def test_held_out_loss_is_without_dropout() -> None:
    """Invariant 7: of a model that has dropout and is in training, it is that without, and the
    same again."""
    rows = sft_rows(5)
    expected = held_out_loss(policy_of("gpt2"), rows, 2, LAUNCH)
    model = policy_of("gpt2", dropout=True).train()
    found = [held_out_loss(model, rows, 2, LAUNCH) for _ in range(2)]
    assert found == [pytest.approx(expected, rel=1e-6)] * 2


def test_the_loss_of_pairs(tmp_path: Path) -> None:
    """Invariant 26: the first step's is the mean of -log sigmoid(chosen - rejected - margin), and
    center_coef times that of (chosen + rejected)^2."""
    margins = torch.arange(8) / 4
    config = training_config(tmp_path, 8)
    rows = [{**pair, "margin": m} for pair, m in zip(pairs(8), margins.tolist(), strict=True)]
    config = replace(config, reward=replace(config.reward, center_coef=0.5))
    model = classifier("gpt2")
    for module in model.modules():  # as it is loaded for stage 2
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    sides = ([pair[name] for pair in rows] for name in ("chosen_ids", "rejected_ids"))
    chosen, rejected = (
        torch.tensor(score_rows(ScalarModel(model), side, 8, LAUNCH)) for side in sides
    )
    run = begun(config, "reward")
    train_reward(model, rows, run)
    first, *_ = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lead = -torch.nn.functional.logsigmoid(chosen - rejected - margins).mean()
    centre = 0.5 * (chosen + rejected).square().mean()
    assert json.loads(first)["loss"] == pytest.approx((lead + centre).item(), rel=1e-3)
    assert centre > 0.1
    assert abs(lead + torch.nn.functional.logsigmoid(chosen - rejected).mean()) > 0.1


def test_calibration_asks_the_prompts_of_the_pairs() -> None:
    """Invariant 12: tokens before the reply, none of the reply; only those with room for one."""
    config = replace(Config(), reward=replace(Config().reward, calibration_samples=8))
    config = replace(config, reward=replace(config.reward, calibration_tokens=4))
    rows = [{"chosen_ids": [*p, 50, 1], "prompt_length": len(p)} for p in PROMPTS]
    model = model_config("llama", max_position_embeddings=9)
    found = [prompt_of(row) for row in calibration_asked(config, rows, model)]
    fitting = [p for p in PROMPTS if len(p) <= 5]
    assert len(fitting) < len(PROMPTS)
    assert sorted(found) == sorted(2 * fitting + found[-2:])
    assert all(prompt in fitting for prompt in found)


def test_rows_of_a_step() -> None:
    """Invariant 22: 8 rows as two passes of 4."""
    section = SFTSection(batch_size=8, microbatch_size=4)
    made = common_arguments(StageRun(Config(sft=section), "sft", LAUNCH, 0.0), 40)
    assert made["gradient_accumulation_steps"] == 2


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_a_reward_model_that_does_not_vary_is_refused(weight: float) -> None:
    """Invariant 12: scores all equal, or no numbers, cannot be calibrated."""
    model = classifier("gpt2")
    with torch.no_grad():
        model.score.weight.fill_(weight)
    policy, asked = sft_folder("gpt2"), [{"input_ids": prompt} for prompt in PROMPTS]
    with pytest.raises(UserError, match="teaches nothing"):
        calibrate(ppo_config(), ScalarModel(model), policy, asked, toy_tokenizer(), LAUNCH)
