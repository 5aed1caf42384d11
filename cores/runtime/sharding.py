"""DeepSpeed: one set of settings for all stages, frozen shards, and whole weights out of shards."""

import copy
import os
from typing import Any

import torch
from torch import nn


def deepspeed_asked() -> bool:
    """Whether the launcher chose DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"


def zero_stage() -> int:
    """0 without DeepSpeed; else its ZeRO stage: 1 optimizer, 2 and gradients, 3 and weights."""
    return launched_settings()["zero_optimization"]["stage"] if deepspeed_asked() else 0


def launched_settings() -> dict[str, Any]:
    """DeepSpeed's settings as the accelerate file gives them, inline or as a file of its own."""
    from accelerate.utils import DeepSpeedPlugin

    return copy.deepcopy(DeepSpeedPlugin().deepspeed_config)


def settings(
    precision: str, max_grad_norm: float = 0.0, micro: int = 1, accumulation: int = 1
) -> dict[str, Any]:
    """The launch's settings with ours: batches, clipping and precision are the configuration's.

    The weights stay in fp32 as in one process: bf16 is autocast, which the engine does itself (it
    turns the caller's off inside it).
    """
    result = launched_settings()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    result.update(
        train_micro_batch_size_per_gpu=micro,
        gradient_accumulation_steps=accumulation,
        train_batch_size=micro * accumulation * world,
        gradient_clipping=max_grad_norm,
        zero_allow_untested_optimizer=True,
        zero_force_ds_cpu_optimizer=False,  # torch's AdamW needs no compiler
        bf16={"enabled": False},
        fp16={"enabled": False},
        torch_autocast={
            "enabled": precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # gradients are exchanged in fp32
        },
    )
    return result


def shard_frozen(module: nn.Module, precision: str) -> Any:
    """`module`, which is never trained, as a ZeRO-3 engine: a part of its weights a rank."""
    import deepspeed

    config = settings(precision)
    config["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = deepspeed.initialize(model=module, config=config)
    return engine


def twin_for_whole_weights(model: nn.Module) -> nn.Module | None:
    """A copy on the CPU that `whole` fills after training with ZeRO-3; None in other launches."""
    return copy.deepcopy(model.cpu()) if zero_stage() == 3 else None


@torch.no_grad()
def whole(trained: nn.Module, twin: nn.Module | None) -> Any:
    """The trained model with all its weights on every rank, out of the reach of DeepSpeed.

    What follows training (held-out rows, calibration, merging, saving) is then as in one process.
    """
    if not deepspeed_asked():
        return trained
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # or models loaded from here on would be shards
    if twin is None:
        return trained
    import deepspeed

    for ours, theirs in zip(twin.parameters(), trained.parameters(), strict=True):
        with deepspeed.zero.GatheredParameters([theirs]):
            ours.copy_(theirs)
    return twin
