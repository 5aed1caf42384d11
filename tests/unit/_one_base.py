"""Parents of stage 3 whose reward model is an adapter on stage 1's model, and trainers on them."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from _models import (
    LORA,
    causal,
    ppo_config,
    toy_tokenizer,
)
from peft import TaskType

from cores.config import ModelSection
from cores.models import add_lora, load_scalar, save_model
from cores.ppo import build_roles
from cores.runtime.fingerprint import model_files
from cores.runtime.launch import Launch
from cores.runtime.parents import Parent
from cores.training.ppo import build_trainer

WIDE: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 64},
    "llama": {"hidden_size": 64, "intermediate_size": 128},
}
"""4 bits on a CPU take layers of 64 inputs."""


def parents_in(root: Path) -> Any:
    """What makes the parents of a kind, once, in `root`: stage 1's model, and a reward model that
    is an adapter on it."""

    @cache
    def parents(kind: str) -> dict[str, Parent]:
        sft, reward = root / kind / "sft", root / kind / "reward"
        save_model(causal(kind, **WIDE[kind]), toy_tokenizer(), sft)
        model = load_scalar(sft, tokenizer=toy_tokenizer(), num_labels=1)
        model.config.reward_mean = 0.75
        torch.manual_seed(5)
        torch.nn.init.normal_(model.score.weight)
        adapted = add_lora(model, LORA, TaskType.SEQ_CLS, "reward.lora")
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.2)
        save_model(adapted, toy_tokenizer(), reward)
        files = model_files(sft)
        return {
            "sft": Parent("sft", sft, {"files": files, "parents": {}}),
            "reward": Parent("reward", reward, {"parents": {"sft": {"files": files}}}),
        }

    return parents


def trainer_of(
    parents: dict[str, Parent], share: str, model: ModelSection | None = None, **options: Any
) -> Any:
    """A trainer whose roles share or do not."""
    config = ppo_config(lora=replace(LORA, share_base=share), **options)
    config = replace(config, model=model or config.model)
    launch = Launch(0, 1, torch.device("cpu"), config.model.precision)
    roles = build_roles(config, toy_tokenizer(), parents, launch)
    return build_trainer(config, roles, toy_tokenizer(), launch)
