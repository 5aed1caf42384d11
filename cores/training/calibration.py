"""The stage-1 model as a sampler, for the calibration of stage 2."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.config import Config
from cores.models import load_policy
from cores.models.loading import exclude_from
from cores.rollout import HFEngine
from cores.runtime.launch import Launch, seed_rank


def policy_engine(
    config: Config, folder: Path, tokenizer: PreTrainedTokenizerBase, launch: Launch
) -> HFEngine:
    """An engine over the model in `folder`, sampling as stage 3 will; seeds this rank."""
    policy: Any = load_policy(folder, dropout=False)
    exclude_from(policy, tokenizer)
    seed_rank(config.seed, launch.rank)
    return HFEngine(
        policy.to(launch.device),
        tokenizer.pad_token_id,
        [tokenizer.eos_token_id, *config.ppo.stop_token_ids],
        config.reward.calibration_tokens,
        config.ppo.temperature,
        autocast=launch.precision == "bf16",
    )
