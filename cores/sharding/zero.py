"""DeepSpeed's ZeRO: optimizer states, gradients and (stage 3) weights are shards."""

import copy
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import deepspeed
import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
from deepspeed.utils import (
    safe_get_full_optimizer_state,
    safe_get_local_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.cpp_extension import get_default_build_root
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from cores.errors import UserError
from cores.sharding.whole import WEIGHTS, Trained, Whole

SHARDED = ("exp_avg", "exp_avg_sq")
COMPILING = 1800.0
"""Seconds behind which nobody compiles DeepSpeed's kernels any more: it takes a minute or two."""


@dataclass(eq=False)
class ZeroTrained(Trained):
    """The engine clips and steps inside the last backward pass; a step is the same."""

    max_grad_norm: float = 0.0
    steps: int = 0
    """Taken by us; the engine decides by its own count of micro-batches."""

    @property
    def unwrapped(self) -> Any:
        return self.module.module

    def backward(self, loss: Tensor, last: bool) -> None:
        whole = loss * self.accelerator.num_processes  # ranks' gradients are averaged
        self._engine.backward(whole, sync_gradients=last)

    @property
    def _engine(self) -> Any:
        return self.accelerator.deepspeed_engine_wrapped

    def step(self) -> Tensor:
        self.steps += 1
        taken = self.module.global_steps
        if taken != self.steps:
            raise RuntimeError(f"DeepSpeed took {taken} optimizer steps, not {self.steps}.")
        norm = torch.as_tensor(self._engine.get_global_grad_norm(), dtype=torch.float32)
        return norm.detach().to(self.accelerator.device)  # offloaded: it is on the CPU

    def clear(self) -> None:
        """The engine's own affair."""

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Within it DeepSpeed's hooks are off: they would shard each layer again behind its
        forward."""
        if self.module.zero_optimization_stage() < 3:
            yield
            return
        from trl.models.utils import add_hooks, remove_hooks

        with deepspeed.zero.GatheredParameters(list(self.module.parameters())):
            remove_hooks(self.module)
            try:
                yield
            finally:
                add_hooks(self.module)

    @staticmethod
    def whole(tensor: Tensor) -> Tensor:
        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.data.clone()

    def state(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        self._link()
        return super().state(keep)

    def _whole(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        found = {key: safe_get_full_optimizer_state(parameter, key) for key in SHARDED}
        (flat, *_) = self.module.optimizer.optimizer.state.values()  # all step together
        return {WEIGHTS: self.whole(parameter), **found, "step": flat["step"]}

    def load_moments(self, parts: Mapping[str, Any]) -> None:
        step = parts["step"][min(parts["step"].names)]
        zero = self.module.optimizer
        two = hasattr(zero, "single_partition_of_fp32_groups")
        shards = zero.single_partition_of_fp32_groups if two else zero.fp32_partitioned_groups_flat
        for shard in shards:  # zeros, which AdamW would make at its first step
            zeros = {key: torch.zeros_like(shard) for key in SHARDED}
            zero.optimizer.state[shard] = {"step": step.clone(), **zeros}
        self._link()
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        for name, parameter in self.named().items():
            for key in SHARDED:
                value = parts[key][name].to(parameter.device)
                if not hasattr(parameter, "ds_id"):
                    safe_set_full_optimizer_state(parameter, value, key)
                    continue
                size = safe_get_local_optimizer_state(parameter, key).numel()
                flat = value.flatten()
                part = pad(flat, (0, size * world - flat.numel()))[rank * size : (rank + 1) * size]
                safe_set_local_optimizer_state(parameter, part, key)

    def _link(self) -> None:
        """Let DeepSpeed (1 and 2) find each weight's part of the states. It does so by itself once,
        behind the first group's first step, when those of other groups do not exist yet."""
        zero = self.module.optimizer
        if hasattr(zero, "single_partition_of_fp32_groups"):
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()


class Zero(Whole):
    """DeepSpeed as the accelerate file asks for it."""

    kind = ZeroTrained
    fused = False
    apart = False  # shards are sent around, and gradients added, at every micro-batch

    @property
    def stage(self) -> int:  # type: ignore[override]
        """ZeRO stage."""
        return launched_settings()["zero_optimization"]["stage"]

    @property
    def offload(self) -> bool:  # type: ignore[override]
        """Whether anything waits in the machine's memory."""
        zero = launched_settings()["zero_optimization"]
        places = (zero.get(f"offload_{what}") or {} for what in ("param", "optimizer"))
        return any(place.get("device", "none") != "none" for place in places)

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"DeepSpeed ZeRO-{self.stage}"

    @property
    def mixed(self) -> bool:  # type: ignore[override]
        """An engine for shards has one precision."""
        return self.stage < 3

    @cached_property
    def _accelerators(self) -> dict[str, Accelerator]:
        """One for each trained model: DeepSpeed allows one engine an Accelerator, and reads its
        settings (clipping among them) from the plugin selected at `prepare`."""
        return {}

    def prepare(self, name: str, model: nn.Module, optimizer: Any, max_grad_norm: float) -> Trained:
        if name not in self._accelerators:
            first: dict[str, Any] = {}
            if not self._accelerators:
                # It names all plugins there will be; the others take one of them. Micro-batches are
                # ours to count: to DeepSpeed each minibatch is one accumulation.
                config = settings(self.precision, max_grad_norm)
                first["deepspeed_plugins"] = {
                    each: DeepSpeedPlugin(hf_ds_config=copy.deepcopy(config)) for each in ROLES
                }
                if self.cpu:
                    first["kwargs_handlers"] = [InitProcessGroupKwargs(backend="gloo")]
            self._accelerators[name] = Accelerator(**first)
        accelerator = self._accelerators[name]
        accelerator.state.select_deepspeed_plugin(name)
        made = accelerator.prepare(model, optimizer)
        return ZeroTrained(made[0], made[1], accelerator)

    def frozen(self, module: nn.Module, device: torch.device) -> Any:
        """Under ZeRO-3 an engine without an optimizer: a part of the weights a rank."""
        if self.stage < 3:
            return module.to(device)
        config = settings(self.precision)
        config["zero_optimization"].pop("offload_optimizer", None)
        engine, *_ = deepspeed.initialize(model=module, config=config)
        return engine

    def check_skips(self) -> None:
        raise UserError(
            "faults.nonfinite: skip does not go with DeepSpeed, whose engine takes every step; set "
            "it to stop, or launch without DeepSpeed."
        )

    def trainer_arguments(self, max_grad_norm: float, micro: int, passes: int) -> dict[str, Any]:
        return {
            # DeepSpeed's own bf16 mode rounds the weights; its settings ask for autocast instead.
            "bf16": False,
            "use_cpu": False,
            "deepspeed": settings(self.precision, max_grad_norm, micro, passes),
            "accelerator_config": {
                "use_configured_state": True,  # or it forgets gloo
                "dispatch_batches": False,
            },
        }

    def undone(self, trained: nn.Module, stand_in: nn.Module | None) -> Any:
        unset_hf_deepspeed_config()  # or models loaded from here on would be shards
        return super().undone(trained, stand_in)


ROLES = ("actor", "critic")


def check_locks() -> None:
    """UserError for the lock of a compilation that was killed: torch would wait at it, silently and
    for ever (torch.utils.file_baton)."""
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in [*root.glob("*/lock"), *root.glob("*/*/lock")]:
        with suppress(FileNotFoundError):  # it was let go
            minutes = (time.time() - lock.stat().st_mtime) / 60
            if minutes > COMPILING / 60:
                raise UserError(
                    f"{lock}: a compilation of DeepSpeed's kernels began {minutes:.0f} minutes ago "
                    "and has not let go of its lock: it was killed, and whoever needs the kernel "
                    "would wait for ever. Delete that file."
                )


def launched_settings() -> dict[str, Any]:
    """DeepSpeed's settings as the accelerate file gives them, inline or as a file of its own."""
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
