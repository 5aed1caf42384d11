"""Whole weights on every process: one process, or several that add up gradients."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cores.errors import UserError
from cores.sharding.scale import LossScale

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What autocast computes in, by `model.precision`."""
WEIGHTS = "weights"
COPIES = 8
"""Tensors copied at a time."""
BUCKET = 1 << 25
"""Numbers of gradients that go around together, unless one tensor has more."""


@dataclass(eq=False)
class Trained:
    """A model that is trained, as its launch holds it, with its optimizer."""

    module: Any
    """What is called: the model itself, or what wraps it."""
    optimizer: Any
    accelerator: Accelerator
    max_grad_norm: float
    scale: LossScale | None = None
    """Of losses in float16."""

    @property
    def unwrapped(self) -> Any:
        """The model itself. (accelerate's own answer imports DeepSpeed to ask for its engine.)"""
        wrapped = isinstance(self.module, DistributedDataParallel)
        return self.module.module if wrapped else self.module

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer changes."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def named(self) -> dict[str, nn.Parameter]:
        """The same by name, each once."""
        return {n: p for n, p in self.unwrapped.named_parameters() if p.requires_grad}

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of `loss`, this rank's part of a sum over all ranks; `last`: of a
        step."""
        (loss if self.scale is None else loss * self.scale.factor).backward()

    def step(self) -> Tensor:
        """The step behind the last `backward`, with the gradients of all ranks, which it clears.
        Their norm before clipping, 0-d."""
        if self.accelerator.num_processes > 1:
            self.add_up()
        norm = self.descend()
        self.module.zero_grad()
        return norm

    def add_up(self) -> None:
        """Make each gradient the sum over ranks, which wait for each other here alone."""
        there = [parameter.grad is not None for parameter in self.parameters]
        self._check_even([a != b for a, b in zip(there, self._there, strict=True)])
        part: list[Tensor] = []
        for gradient in (p.grad for p in self.parameters if p.grad is not None):
            if part and sum(g.numel() for g in part) + gradient.numel() > BUCKET:
                _sum_over_ranks(part)
                part = []
            part.append(gradient)
        _sum_over_ranks(part)

    @cached_property
    def _there(self) -> list[bool]:
        """Which of `parameters` have a gradient in the first step, on every rank."""
        there = [parameter.grad is not None for parameter in self.parameters]
        ranks = torch.tensor(there, dtype=torch.float32, device=self.parameters[0].device)
        torch.distributed.all_reduce(ranks)
        self._check_even(((ranks > 0) & (ranks < self.accelerator.num_processes)).tolist())
        return there

    def _check_even(self, apart: list[bool]) -> None:
        """UserError if any of `parameters` has a gradient in some steps or on some ranks alone."""
        names = [name for name, differs in zip(self.named(), apart, strict=True) if differs]
        if names:
            raise UserError(
                f"{len(names)} weights have a gradient in some steps or on some ranks alone "
                f"({names[0]}): whether a row reaches them depends on the row, and ranks add up "
                "what all of them have. Train this model in one process."
            )

    def clear(self) -> None:
        """Let go of gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def descend(self) -> Tensor:
        """Clip and step; the norm before it, 0-d. The kernel leaves out a step that is no number.

        It does so by `found_inf`, meant for gradient scalers (torch.optim.AdamW, fused), so that
        nobody has to wait for the norm before the step.
        """
        if self.scale is not None:
            self.scale.unscale([p.grad for p in self.parameters if p.grad is not None])
        norm = self.clip()
        bad = ~norm.isfinite()
        # Torch's own: accelerate's around it counts micro-batches by itself, and might not step.
        optimizer = self.optimizer.optimizer
        optimizer.found_inf = bad.float()
        optimizer.step()
        if self.scale is not None:
            self.scale.update(bad)
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
    """One process, or several that add up gradients (stages 1 and 2: DDP)."""

    precision: str
    cpu: bool

    stage = 0
    """What is in shards: 1 the optimizer's states, 2 gradients too, 3 and weights."""
    kind = Trained
    """What a trained model is held as."""
    name = "DDP"
    """For the screen."""
    apart = True
    """Whether ranks meet in no pass, but behind the last one of a step."""
    offload = False
    """Whether weights or optimizer states wait in the machine's memory."""
    fused = True
    """Whether AdamW steps in one kernel, which leaves out a step that is no number."""
    mixed = True
    """Whether a frozen model may have weights in several precisions."""

    @cached_property
    def _accelerator(self) -> Accelerator:
        return Accelerator(cpu=self.cpu, mixed_precision="no")

    def prepare(self, name: str, model: nn.Module, optimizer: Any, max_grad_norm: float) -> Trained:
        """`model` and its optimizer as this launch trains them; `name` tells them from others."""
        held = self._accelerator
        # An evaluation is wrapped by nothing: DDP would exchange gradients within a pass.
        model = held.prepare_model(model, evaluation_mode=True)
        scale = LossScale(held.device) if self.precision == "fp16" else None
        trained = Trained(model, held.prepare_optimizer(optimizer), held, max_grad_norm, scale)
        if held.num_processes > 1:
            for parameter in trained.parameters:  # whatever a rank has read
                torch.distributed.broadcast(parameter.detach(), src=0)
        return trained

    def frozen(self, module: nn.Module, device: torch.device) -> Any:
        """`module`, which is never trained, as this launch holds it."""
        return module.to(device)

    def check_skips(self) -> None:
        """UserError if a step that is no number could not be left out."""

    def trainer_arguments(self, max_grad_norm: float, micro: int, passes: int) -> dict[str, Any]:
        """Arguments for the trainers of stages 1 and 2."""
        halves = {name: name == self.precision for name in HALVES}
        return {**halves, "use_cpu": self.cpu}

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


def _sum_over_ranks(tensors: list[Tensor]) -> None:
    """Each of them the sum over ranks, in one exchange."""
    if not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    torch.distributed.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    sums = [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
    torch._foreach_copy_(tensors, sums)


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
