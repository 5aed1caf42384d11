"""A model that is trained in stage 3, and the steps taken with it."""

from typing import Any

import torch
from torch import Tensor, nn

from cores.config import AdamSection, PPOSection
from cores.run.checkpoint import Checkpoint
from cores.sharding import Trained, Whole

ACTOR, CRITIC = "actor", "critic"


def optimizer_settings(ppo: PPOSection, name: str) -> tuple[AdamSection, float]:
    """AdamW and peak learning rate of the role `name`."""
    if name == ACTOR:
        return ppo.actor_adam, ppo.actor_learning_rate
    return ppo.critic_adam, ppo.critic_learning_rate


class TrainedRole:
    """A view on a model, with the optimizer of what is trained in it.

    A step is: any number of `accumulate`, the last of them with `last=True`, in any launch.
    """

    def __init__(self, name: str, model: nn.Module, sharding: Whole, ppo: PPOSection) -> None:
        model.train()  # no role has dropout, and layers are checkpointed in this mode only
        parameters = [p for p in model.parameters() if p.requires_grad]
        adam, learning_rate = optimizer_settings(ppo, name)
        optimizer = torch.optim.AdamW(
            parameters,
            lr=learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.eps,
            weight_decay=adam.weight_decay,
            fused=sharding.fused,
        )
        self.name = name
        self.learning_rate = learning_rate
        self.steps = 0
        """Optimizer steps taken."""
        self.grad_norm = torch.tensor(0.0)
        """0-d, of the last step before clipping, on the device that computed it."""
        self.trained: Trained = sharding.prepare(name, model, optimizer, ppo.max_grad_norm)

    @property
    def norm_name(self) -> str:
        """The gradient norm's name among the statistics."""
        return f"{self.name}_grad_norm"

    @property
    def module(self) -> Any:
        """What is called."""
        return self.trained.module

    @property
    def optimizer(self) -> Any:
        """As the launch wraps it."""
        return self.trained.optimizer

    @property
    def unwrapped(self) -> Any:
        """The `Actor` or `ScalarModel` itself."""
        return self.trained.unwrapped

    def set_rate(self, factor: float) -> None:
        """Learning rate of the next step, as a factor of the peak."""
        rate = self.learning_rate * factor
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def make_capturable(self) -> None:
        """From now on a step may be part of a CUDA graph: the learning rate lies on the device."""
        for group in self.optimizer.param_groups:
            group["capturable"] = True
            group["lr"] = torch.tensor(group["lr"], device=self.unwrapped.model.device)
        # torch warns of each optimizer whose steps could be captured and are not.
        self.optimizer.optimizer._warned_capturable_if_run_uncaptured = True

    def accumulate(self, loss: Tensor, last: bool) -> None:
        """Backward; at the last micro-batch also clip, step, clear the gradients and count."""
        norm = self.trained.backward(loss, last)
        if norm is not None:
            self.count(norm)

    def count(self, norm: Tensor) -> None:
        """A step was taken; `norm` is that of its gradient."""
        self.grad_norm = norm
        self.steps += 1

    def state(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """Trained weights and AdamW's moments, whole, by name: see `Trained.state`."""
        return {f"{self.name}.{k}": v for k, v in self.trained.state(keep).items()}

    def load(self, saved: Checkpoint) -> None:
        """Go on from there. The weights were put in before the launch took the model."""
        self.steps = saved.numbers["optimizer_steps"][self.name]
        if self.steps:
            self.trained.load_moments(lambda part: saved.tensors(f"{self.name}.{part}"))
