"""Seconds and memory of a step by phase, taken from outside the trainer.

A phase is what `PPOTrainer.step` calls: rollout, score, estimate, update. Its parts are the models
that run in it, seen by hooks on them, and the optimizer's clip and step. Seconds are exclusive: a
part's are not its phase's too, and all of them add up to the step.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from cores.ppo import PPOTrainer
from scripts.bench.machine import peak_bytes, reset_peak, synchronize

WITHOUT_ADAPTERS = {"actor": "reference", "critic": "reward"}
"""What a trained role with adapters is without them."""
PHASES = ("rollout", "score", "estimate", "update")
Call = Callable[..., Any]


class Clock:
    """Charges the time between two events to the innermost span that was open."""

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.device = device
        self.now = now
        self.open: list[str] = []
        self.seconds: dict[str, float] = defaultdict(float)
        """By phase, and phase/part."""
        self.peaks: dict[str, int] = {}
        """Bytes by phase, the largest so far; on a GPU alone, as a process has one peak."""
        self._last = 0.0

    @property
    def name(self) -> str:
        """Of the innermost span: its phase, and itself where it is a part."""
        ends = (self.open[0], self.open[-1]) if len(self.open) > 1 else tuple(self.open)
        return "/".join(ends)

    def enter(self, name: str) -> None:
        """Open a span within the open ones."""
        self._charge()
        if not self.open:
            reset_peak(self.device)
        self.open.append(name)

    def leave(self) -> None:
        """Close the innermost span."""
        self._charge()
        name = self.open.pop()
        if not self.open and self.device.type == "cuda":
            self.peaks[name] = max(peak_bytes(self.device), self.peaks.get(name, 0))

    def _charge(self) -> None:
        synchronize(self.device)
        now = self.now()
        if self.open:
            self.seconds[self.name] += now - self._last
        self._last = now

    def around(self, call: Call, name: str | Callable[..., str]) -> Call:
        """`call` in a span of that name, or of the one that its arguments give."""

        def timed(*arguments: Any, **named: Any) -> Any:
            self.enter(name if isinstance(name, str) else name(*arguments))
            try:
                return call(*arguments, **named)
            finally:
                self.leave()

        return timed


@contextmanager
def instrumented(trainer: PPOTrainer, clock: Clock) -> Iterator[None]:
    """Every phase and part of `trainer.step` in a span of `clock`."""
    with ExitStack() as stack:

        def time_call(owner: Any, method: str, name: str | Callable[..., str]) -> None:
            timed = clock.around(getattr(owner, method), name)
            stack.enter_context(patch.object(owner, method, timed))

        for phase in PHASES:
            time_call(trainer, phase, phase)
        roles = trainer.roles
        for module, name in (
            (roles.actor.module, "actor"),
            (roles.frozen_actor, "reference"),
            (roles.critic and roles.critic.module, "critic"),
            (roles.reward, "reward"),
        ):
            if isinstance(module, nn.Module):
                _time_module(module, name, clock, stack)
        time_call(trainer.passes, "run", lambda role, *_: role.name)
        time_call(trainer, "_train_ptx", "actor")
        for role in roles.trained:
            time_call(role.optimizer, "step", "optimizer")
            time_call(role.optimizer, "zero_grad", "optimizer")
        for method in ("clip_grad_norm_", "clip_grads_with_norm_", "get_total_norm"):
            time_call(torch.nn.utils, method, "optimizer")
        yield


def _time_module(module: Any, name: str, clock: Clock, stack: ExitStack) -> None:
    """A span around each forward pass of the scoring; an update's passes have their own."""

    def before(*_: Any) -> None:
        if clock.open and not _updating(clock):
            clock.enter(WITHOUT_ADAPTERS.get(name, name) if _adapters_off(module) else name)

    def after(*_: Any) -> None:
        if clock.open and not _updating(clock):
            clock.leave()

    stack.callback(module.register_forward_pre_hook(before).remove)
    stack.callback(module.register_forward_hook(after).remove)


def _updating(clock: Clock) -> bool:
    return clock.open[0] == "update"


def _adapters_off(module: Any) -> bool:
    """Whether the role stands for the frozen one that it began as."""
    layers = (m for m in module.modules() if isinstance(m, BaseTunerLayer))
    return any(layer.disable_adapters for layer in layers)
