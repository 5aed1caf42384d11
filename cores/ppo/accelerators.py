"""One Accelerator a trained model under DeepSpeed, one for both elsewhere.

DeepSpeed allows one engine an Accelerator, and reads its settings (clipping among them) from the
plugin selected at `prepare`.
"""

import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

from cores.config import Config

ACTOR, CRITIC = "actor", "critic"


def deepspeed_asked() -> bool:
    """Whether the launcher chose DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"


def accelerators(config: Config) -> dict[str, Accelerator]:
    """The Accelerators of actor and critic."""
    cpu = not torch.cuda.is_available()
    if not deepspeed_asked():
        shared = Accelerator(cpu=cpu, mixed_precision="no")
        return {ACTOR: shared, CRITIC: shared}
    plugins = {name: _plugin(config) for name in (ACTOR, CRITIC)}
    kwargs: dict[str, Any] = {}
    if cpu:
        kwargs["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo")]
    first = Accelerator(deepspeed_plugins=plugins, **kwargs)
    return {ACTOR: first, CRITIC: Accelerator()}


def select_plugin(accelerator: Accelerator, name: str) -> None:
    """Make `name`'s DeepSpeed settings the ones that the next `prepare` uses."""
    if deepspeed_asked():
        accelerator.state.select_deepspeed_plugin(name)


def _plugin(config: Config) -> DeepSpeedPlugin:
    """Micro-batches are ours to count: to DeepSpeed each minibatch is one accumulation."""
    plugin = DeepSpeedPlugin(
        gradient_accumulation_steps=1, gradient_clipping=config.ppo.max_grad_norm
    )
    settings = plugin.deepspeed_config
    settings["train_micro_batch_size_per_gpu"] = 1
    settings["train_batch_size"] = int(os.environ.get("WORLD_SIZE", "1"))
    settings["zero_allow_untested_optimizer"] = True
    settings["zero_force_ds_cpu_optimizer"] = False
    return plugin
