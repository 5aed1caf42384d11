"""The stage-1 model as a sampler, for the calibration of stage 2."""

import math
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cores.config import Config
from cores.errors import UserError
from cores.models import load_policy
from cores.models.loading import exclude_from, max_length
from cores.ppo.prompts import PromptSampler
from cores.rollout import RolloutEngine, build_engine
from cores.runtime.launch import Launch

Row = list[int]


def reply_tokens(config: Config) -> int:
    """New tokens of a calibration reply at most."""
    return config.reward.calibration_tokens or config.ppo.max_new_tokens


def calibration_prompts(config: Config, pairs: list[dict], model: PretrainedConfig) -> list[Row]:
    """Prompts of the training pairs, drawn at random; UserError if none leaves room for a reply."""
    tokens = reply_tokens(config)
    room = (max_length(model) or math.inf) - tokens
    prompts = [pair["chosen_ids"][: pair["prompt_length"]] for pair in pairs]
    short = [prompt for prompt in prompts if len(prompt) <= room]
    if not short:
        raise UserError(
            f"reward.calibration_tokens: {tokens} new tokens after any "
            f"prompt are more than the {max_length(model)} positions of the model. Lower it."
        )
    sampler = PromptSampler(len(short), config.reward.calibration_samples, config.seed)
    return [short[i] for i in sampler.next()]


def policy_engine(
    config: Config, folder: Path, tokenizer: PreTrainedTokenizerBase, launch: Launch
) -> RolloutEngine:
    """An engine over the model in `folder`, sampling as stage 3 will."""
    policy: Any = load_policy(folder, dropout=False)
    exclude_from(policy, tokenizer)
    return build_engine(config, policy.to(launch.device), tokenizer, reply_tokens(config), launch)
