"""Torch's FSDP2 (`fully_shard`): weights, gradients and optimizer states are shards, and a layer's
weights are whole while it computes."""

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from cores.sharding.whole import Trained, Whole


class FullyTrained(Trained):
    """The optimizer's parameters are shards; a step is as with whole ones."""

    def backward(self, loss: Tensor, last: bool) -> None:
        (loss * self.accelerator.num_processes).backward()  # ranks' gradients are averaged

    def add_up(self) -> None:
        """Each backward pass does."""

    @staticmethod
    def whole(tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def clip(self) -> Tensor:
        return self.whole(super().clip())

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Plain tensors stand in the modules within it, and forward passes of one rank alone wait
        for nobody. A state dict would make them shards again, on that rank: its hooks are off."""
        module = self.module
        hooks = {each: each._state_dict_pre_hooks for each in module.modules()}
        units = [each for each in hooks if isinstance(each, FSDPModule)]
        module.set_reshard_after_forward(False)
        for unit in units:
            unit.unshard()
        for each in hooks:
            each._state_dict_pre_hooks = OrderedDict()
        try:
            yield
        finally:
            for each, found in hooks.items():
                each._state_dict_pre_hooks = found
            module.set_reshard_after_forward(True)
            for unit in units:
                unit.reshard()

    def _placed(self, key: str, value: Tensor, parameter: nn.Parameter) -> Any:
        if value.shape != parameter.shape or not isinstance(parameter, DTensor):
            return super()._placed(key, value, parameter)
        mesh, places = parameter.device_mesh, parameter.placements
        own = distribute_tensor(value, mesh, places, src_data_rank=None)  # every rank has read it
        return own.to(parameter.device)


class ShardingAccelerator(Accelerator):
    """Makes a model shards where accelerate would wrap it for DDP, and its optimizer theirs."""

    held: "Fully"

    def prepare(self, *given: Any, **how: Any) -> Any:
        """A model with its optimizer; anything else is as it was."""
        if not isinstance(given[0], nn.Module):
            return super().prepare(*given, **how)
        model, optimizer = given
        names = {parameter: name for name, parameter in model.named_parameters()}
        self.held.shard(model)
        shards = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [shards[names[parameter]] for parameter in group["params"]]
        # For its autocast alone: an evaluation is wrapped by nothing.
        model = self.prepare_model(model, device_placement=False, evaluation_mode=True)
        return model, self.prepare_optimizer(optimizer, device_placement=False)

    def clip_grad_norm_(self, *given: Any, **how: Any) -> Any:
        return FullyTrained.whole(super().clip_grad_norm_(*given, **how))


@dataclass(eq=False)
class Fully(Whole):
    """FSDP2 as the accelerate file asks for it."""

    offload: bool = False
    """Whether shards, gradients and the optimizer wait in the machine's memory."""

    kind = FullyTrained
    stage = 3
    name = "FSDP2"
    apart = False  # shards are sent around, and gradients added, at every micro-batch

    @cached_property
    def _mesh(self) -> Any:
        world = int(os.environ.get("WORLD_SIZE", "1"))
        return init_device_mesh("cpu" if self.cpu else "cuda", (world,))

    @cached_property
    def _accelerator(self) -> Accelerator:
        made = ShardingAccelerator(cpu=self.cpu, mixed_precision="no")
        made.held = self
        return made

    def adopt(self, accelerator: Accelerator) -> None:
        accelerator.__class__ = ShardingAccelerator
        vars(accelerator)["held"] = self

    def prepare(self, name: str, model: nn.Module, optimizer: Any, max_grad_norm: float) -> Trained:
        made = self._accelerator.prepare(model, optimizer)
        return FullyTrained(made[0], made[1], self._accelerator, max_grad_norm)

    def frozen(self, module: nn.Module, device: torch.device) -> Any:
        return self.shard(module)

    def shard(self, module: nn.Module) -> nn.Module:
        """`module` in shards: a layer is a unit, and all that is in none (embeddings and heads,
        which may be one tensor) another."""
        layers = [m for m in module.modules() if isinstance(m, GradientCheckpointingLayer)]
        policy = CPUOffloadPolicy() if self.offload and not self.cpu else OffloadPolicy()
        made: Any = None
        for unit in [*reversed(layers), module]:  # what is within another comes before it
            made = fully_shard(
                unit, mesh=self._mesh, reshard_after_forward=True, offload_policy=policy
            )
        # Else the first layer that computes would take itself for the root: `generate` calls no
        # forward pass of ours.
        made._get_fsdp_state()._lazy_init()
        return module
