"""One Accelerator a trained model under DeepSpeed, one for both elsewhere.

DeepSpeed allows one engine an Accelerator, and reads its settings (clipping among them) from the
plugin selected at `prepare`.
"""

from typing import Any

from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

from cores.config import Config
from cores.runtime.launch import Launch
from cores.runtime.sharding import deepspeed_asked, settings

ACTOR, CRITIC = "actor", "critic"


def accelerators(config: Config, launch: Launch) -> dict[str, Accelerator]:
    """The Accelerators of actor and critic."""
    cpu = launch.device.type == "cpu"
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
    return DeepSpeedPlugin(hf_ds_config=settings(config.model.precision, config.ppo.max_grad_norm))
