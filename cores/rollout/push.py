"""Weights from the trainer's model to vLLM's in the same process, and whether they arrived."""

import os
from collections.abc import Iterator, Mapping
from functools import cache
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from cores.errors import ANEW, UserError
from cores.models.vocabulary import rounded

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process, which has the weights
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the trainer's threads are not bound either
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}
"""Read from the environment when vLLM is imported; one's own stay."""
EXACT = 1e-12
"""The same of sums in float64, as a share: their terms come in another order."""
PART = 2**25
"""Numbers of a tensor that are in float64 at a time."""


class Sums(NamedTuple):
    """Of the numbers of a tensor and of their squares, in float64: they change with any of them,
    but neither with the order of rows nor with zeros beside them, so however vLLM lays it out."""

    name: str
    size: int
    total: float
    square: float


def offered(model: Any, dtype: torch.dtype) -> Iterator[tuple[Tensor, Sums]]:
    """Each tensor of `weights` in vLLM's precision. UserError for one that is no number: what it
    makes of prompts would stay in vLLM's cache behind the next push."""
    for name, tensor in weights(model):
        known = sums(name, tensor := tensor.to(dtype))
        if not isfinite(known.square):
            raise UserError(f"ppo: {name} is not finite. Lower the learning rate, {ANEW}.")
        yield tensor, known


def stale(module: Any, sent: Mapping[str, list[Sums]], dtype: torch.dtype) -> str | None:
    """Which weight of vLLM's model `module` is not what was sent to it, if any."""
    for name, parameter in module.named_parameters():
        if not (parts := sent[name]):
            return f"nothing was pushed to {name}"
        size, total, square = (sum(each) for each in list(zip(*parts, strict=True))[1:])
        held, wide = sums(name, parameter.to(dtype)), parameter[0].numel()
        table = rounded(size // wide) * wide  # vLLM's have rows of zeros at the end
        whole = held.size == size or (len(parts) == 1 and held.size == table)
        apart = abs(held.total - total) > EXACT * (size * square) ** 0.5
        if not whole or apart or abs(held.square - square) > EXACT * square:
            return f"{name} is not what was pushed to it ({', '.join(p.name for p in parts)})"
    return None


def weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Each weight of a plain model by its name in a folder, adapters merged into theirs."""
    for name, parameter in model.named_parameters():
        place, _, own = name.rpartition(".")
        if "lora_" in name:
            continue
        value, layer = parameter.detach(), model.get_submodule(place.removesuffix(".base_layer"))
        added: Any = getattr(layer, "get_delta_weight", None)  # an adapted layer of peft's has it
        if added is not None and own == "weight":
            active = [adapter for adapter in layer.active_adapters if adapter in layer.r]
            value = sum((added(adapter).float() for adapter in active), value.float())
        yield from revert_weight_conversion(model, {name.replace(".base_layer", ""): value}).items()


def sums(name: str, tensor: Tensor) -> Sums:
    """The `Sums` of a tensor."""
    total = square = 0.0
    for part in tensor.reshape(-1).split(PART):
        numbers = part.double()
        total, square = total + numbers.sum().item(), square + numbers.square().sum().item()
    return Sums(name, tensor.numel(), total, square)


@cache
def imported() -> Any:
    """The module vllm, set up for a trainer in the same process."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import vllm
    from vllm.model_executor.layers import utils

    def plain(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    # On CPUs it multiplies by packed copies, which cannot be read; that of a head which is tied to
    # the embedding stays as it was, whatever is pushed.
    utils.dispatch_cpu_unquantized_gemm = plain
    return vllm


@cache
def transfer() -> Any:
    """vLLM's interface for weights from elsewhere, as a class that takes them from this process:
    `source`, tensors and their sums, and `sent`, which of them went to which of its own."""
    imported()
    from vllm.distributed.weight_transfer import (
        WeightTransferEngine,
        WeightTransferEngineFactory,
        base,
    )
    from vllm.model_executor.model_loader import reload

    class InProcess(WeightTransferEngine):
        init_info_cls = base.WeightTransferInitInfo
        update_info_cls = base.WeightTransferUpdateInfo
        source: Any = None
        sent: Any = None

        def init_transfer_engine(self, info: Any) -> None: ...

        def shutdown(self) -> None: ...

        def start_weight_update(self) -> None:
            reload.initialize_layerwise_reload(self.model)

        def receive_weights(self, info: Any) -> None:
            for tensor, known in InProcess.source:  # one by one, so that each tells its place
                for place in self.model.load_weights([(known.name, tensor)]) or ():
                    InProcess.sent[place].append(known)

        def finish_weight_update(self) -> None:
            reload.finalize_layerwise_reload(self.model, self.model_config)

    WeightTransferEngineFactory.register_engine("in_process", InProcess)
    return InProcess
