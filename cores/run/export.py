"""The model of a stage as it trains it, with the weights of a checkpoint."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import TaskType
from transformers import PreTrainedTokenizerBase

from cores.config import Config, parse_config
from cores.models import Actor, ScalarModel, add_lora, load_policy, load_scalar, load_tokenizer
from cores.models.loading import exclude_from, load_base
from cores.models.vocabulary import settle_pad_token
from cores.run.checkpoint import Checkpoint
from cores.sharding.whole import load_weights


def build(
    state: dict[str, Any], root: Path, saved: Checkpoint, role: str
) -> tuple[Any, PreTrainedTokenizerBase, bool]:
    """The model, its tokenizer, and whether adapters are to be merged; `state` is the run's."""
    config, stage = _config(state, root), state["stage"]
    if stage == "sft":
        tokenizer = load_tokenizer(config.model.path)
        settle_pad_token(tokenizer, config.model.pad_token)
        model = _adapted(config, "sft", load_base(config.model.path, tokenizer), TaskType.CAUSAL_LM)
        load_weights(model, saved.tensors("weights"))
        return model, tokenizer, config.sft.lora.merge
    tokenizer = load_tokenizer(root / "sft")
    if stage == "reward":
        scalar = load_scalar(root / "sft", num_labels=1)
        model = _adapted(config, "reward", scalar, TaskType.SEQ_CLS)
        load_weights(model, saved.tensors("weights"))
        return model, tokenizer, config.reward.lora.merge
    if role == "critic":
        start = "reward" if config.ppo.critic_init == "reward" else "sft"
        scalar = load_scalar(root / start, num_labels=1)
        critic = ScalarModel(_adapted(config, "ppo", scalar, TaskType.SEQ_CLS))
        load_weights(critic, saved.tensors("critic.weights"))
        return critic.model, tokenizer, config.ppo.lora.merge
    policy = load_policy(root / "sft", dropout=False)
    exclude_from(policy, tokenizer)
    actor = Actor(_adapted(config, "ppo", policy, TaskType.CAUSAL_LM), config.ppo.temperature)
    load_weights(actor, saved.tensors("actor.weights"))
    return actor.model, tokenizer, config.ppo.lora.merge


def _config(state: dict[str, Any], root: Path) -> Config:
    """The configuration that the run began with, in the folder where it is now."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "run.yaml")
        file.write_text(json.dumps(state["config"]), encoding="utf-8")  # JSON is YAML
        config = parse_config(["--config", str(file)], "export.py", "")
    return replace(config, output_dir=str(root))


def _adapted(config: Config, stage: str, model: Any, task: TaskType) -> Any:
    lora = getattr(config, stage).lora
    return add_lora(model, lora, task, f"{stage}.lora") if lora.rank else model
