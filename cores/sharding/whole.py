"""Whole weights on every process: one process, or several that exchange gradients (DDP)."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from cores.errors import UserError

WEIGHTS = "weights"
COPIES = 8
"""Tensors copied at a time."""


@dataclass(eq=False)
class Trained:
    """A model that is trained, as its launch holds it, with its optimizer."""

    module: Any
    """What is called: the model itself, or what wraps it."""
    optimizer: Any
    accelerator: Accelerator
    max_grad_norm: float

    @property
    def unwrapped(self) -> Any:
        """The model itself."""
        return self.accelerator.unwrap_model(self.module)

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer changes."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def named(self) -> dict[str, nn.Parameter]:
        """The same by name, each once."""
        return {n: p for n, p in self.unwrapped.named_parameters() if p.requires_grad}

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and `backward`: ranks exchange gradients at the last one only."""
        return nullcontext() if last else self.accelerator.no_sync(self.module)

    def backward(self, loss: Tensor, last: bool) -> Tensor | None:
        """Add the gradients of `loss`, this rank's part of a sum over all ranks; at the last
        micro-batch clip, step and clear them, and return their norm, 0-d."""
        (loss * self.accelerator.num_processes).backward()  # ranks' gradients are averaged
        if not last:
            return None
        norm = self.descend()
        self.module.zero_grad()
        return norm

    def clear(self) -> None:
        """Let go of gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def descend(self) -> Tensor:
        """Clip and step; the norm before it, 0-d. The kernel leaves out a step that is no number.

        It does so by `found_inf`, meant for gradient scalers (torch.optim.AdamW, fused), so that
        nobody has to wait for the norm before the step.
        """
        norm = self.clip()
        # Torch's own: accelerate's around it counts micro-batches by itself, and might not step.
        optimizer = self.optimizer.optimizer
        optimizer.found_inf = (~norm.isfinite()).float()
        optimizer.step()
        return norm

    def clip(self) -> Tensor:
        """Scale gradients down to `max_grad_norm`; their norm before it, 0-d."""
        return torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm).detach()

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Whole weights on every rank for as long as it is open."""
        yield

    @staticmethod
    def whole(tensor: Tensor) -> Tensor:
        """All of a weight, or of what belongs to one, on every rank; every rank calls it."""
        return tensor

    def state(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """Copies of the trained weights and of what the optimizer knows of them, whole, on the CPU,
        by part and name; every rank calls it, and where `keep` is off nothing is kept."""
        kept: dict[str, dict[str, Future[Tensor]]] = defaultdict(dict)
        with ThreadPoolExecutor(COPIES) as pool:  # fresh memory costs more than the copy
            for name, parameter in self.named().items():
                for part, tensor in self._whole(parameter).items():
                    if keep:
                        kept[part][name] = pool.submit(_copy, tensor)
        return {
            part: {name: copy.result() for name, copy in copies.items()}
            for part, copies in kept.items()
        }

    def _whole(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        known = self.optimizer.optimizer.state.get(parameter, {})
        return {
            WEIGHTS: self.whole(parameter.data),
            **{k: self.whole(torch.as_tensor(v)) for k, v in known.items()},
        }

    def load_moments(self, parts: Mapping[str, Any]) -> None:
        """What `state` said of the optimizer, a `Reader` a part, wherever it was written."""
        known = self.optimizer.optimizer.state
        for name, parameter in self.named().items():
            found = {k: r[name] for k, r in parts.items() if k != WEIGHTS and name in r.names}
            if found:  # else it had no gradient yet
                known[parameter] = {k: self._placed(k, v, parameter) for k, v in found.items()}

    def _placed(self, key: str, value: Tensor, parameter: nn.Parameter) -> Any:
        """As the optimizer had it: whole numbers are counts of steps, and no tensors."""
        optimizer = self.optimizer.optimizer
        if value.dim() == 0 and not value.is_floating_point():
            return value.item()
        if hasattr(optimizer, "get_state_buffer") and value.shape == parameter.shape:
            return optimizer.get_state_buffer(parameter, value.dtype).copy_(value)  # paged
        group = optimizer.param_groups[0]
        on_host = key == "step" and not (group.get("fused") or group.get("capturable"))
        return value if on_host else value.to(parameter.device)


@dataclass(eq=False)
class Whole:
    """One process, or DDP."""

    precision: str
    cpu: bool

    stage = 0
    """What is in shards: 1 the optimizer's states, 2 gradients too, 3 and weights."""
    kind = Trained
    """What a trained model is held as."""
    name = "DDP"
    """For the screen."""
    apart = True
    """Whether ranks meet nowhere in a pass but where the last micro-batch's gradients are added."""
    offload = False
    """Whether weights or optimizer states wait in the machine's memory."""
    fused = True
    """Whether AdamW steps in one kernel, which leaves out a step that is no number."""
    mixed = True
    """Whether a frozen model may have weights in several precisions."""

    @cached_property
    def _accelerator(self) -> Accelerator:
        # Models' buffers are tables that never change; sent around, ranks would meet in a forward.
        ddp = DistributedDataParallelKwargs(broadcast_buffers=False)
        return Accelerator(cpu=self.cpu, mixed_precision="no", kwargs_handlers=[ddp])

    def prepare(self, name: str, model: nn.Module, optimizer: Any, max_grad_norm: float) -> Trained:
        """`model` and its optimizer as this launch trains them; `name` tells them from others."""
        made = self._accelerator.prepare(model, optimizer)
        return self.kind(made[0], made[1], self._accelerator, max_grad_norm)

    def frozen(self, module: nn.Module, device: torch.device) -> Any:
        """`module`, which is never trained, as this launch holds it."""
        return module.to(device)

    def check_skips(self) -> None:
        """UserError if a step that is no number could not be left out."""

    def trainer_arguments(self, max_grad_norm: float, micro: int, passes: int) -> dict[str, Any]:
        """Arguments for the trainers of stages 1 and 2."""
        return {"bf16": self.precision == "bf16", "use_cpu": self.cpu}

    def adopt(self, accelerator: Accelerator) -> None:
        """Let the accelerator of such a trainer prepare models as this launch does."""

    def of_trainer(self, trainer: Any) -> Trained:
        """What such a trainer has prepared."""
        return self.kind(trainer.model_wrapped, trainer.optimizer, trainer.accelerator, 0.0)

    def stand_in(self, model: nn.Module) -> nn.Module | None:
        """Something that `undone` fills after training, where weights are shards."""
        return copy.deepcopy(model.cpu()) if self.stage == 3 else None

    @torch.no_grad()
    def undone(self, trained: nn.Module, stand_in: nn.Module | None) -> Any:
        """The trained model with all its weights on every rank: what follows training (held-out
        rows, calibration, merging, saving) is then as in one process."""
        if stand_in is None:
            return trained
        for ours, theirs in zip(stand_in.parameters(), trained.parameters(), strict=True):
            ours.copy_(self.kind.whole(theirs))
        return stand_in


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def load_weights(model: nn.Module, weights: Any) -> None:
    """Put trained weights, by name (a `Reader`), into `model`, which no launch holds yet; UserError
    if one has another shape, or is not there."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            found = weights[name]
            if found.shape != parameter.shape:
                raise UserError(
                    f"{weights.path}: {name} is {tuple(found.shape)}, the model's "
                    f"{tuple(parameter.shape)}: it is of another model. Begin anew with --resume "
                    "never."
                )
            parameter.copy_(found)
