"""Experience off the start state, gradients of a step, and the losses written a second time."""

from dataclasses import replace
from typing import Any

import torch
from _models import adam, fixed_rollout
from torch import Tensor

from cores.ppo.experience import read

SGD: dict[str, Any] = {**adam(eps=1.0), "max_grad_norm": 1e9}
"""A step almost proportional to the gradient, whose scale is then visible in the parameters."""


def experience_of(trainer: Any, rows: int = 8, seed: int = 0) -> Any:
    """An experience with every kind of row, off the start state: old log-probs and values differ
    from the models' by up to 0.3, so that ratios are not 1 and both clips bite."""
    scored = trainer.score(fixed_rollout(rows, seed))
    noise = torch.Generator().manual_seed(seed)
    shape = scored.logprobs.shape
    return trainer.estimate(
        replace(
            scored,
            logprobs=scored.logprobs + 0.6 * (torch.rand(shape, generator=noise) - 0.5),
            values=scored.values + 0.6 * (torch.rand(shape, generator=noise) - 0.5),
        )
    )


def optimized(trainer: Any, experience: Any) -> dict[str, float]:
    """The statistics of one step on all rows, as numbers."""
    return read([trainer.optimize(experience, torch.arange(experience.ids.shape[0]))])[0]


def gradients(trainer: Any, experience: Any, role: str = "actor") -> tuple[dict[str, Tensor], Any]:
    """What one step on all rows gives the role's optimizer, and the step's statistics."""
    found: dict[str, Tensor] = {}
    module = getattr(trainer.roles, role).module

    def keep(*_: Any) -> None:
        found.update({n: p.grad.clone() for n, p in module.named_parameters()})

    handle = getattr(trainer.roles, role).optimizer.optimizer.register_step_pre_hook(keep)
    stats = trainer.optimize(experience, torch.arange(experience.ids.shape[0]))
    handle.remove()
    return found, stats


def gradients_of(loss: Tensor, module: Any) -> dict[str, Tensor]:
    """The same of a loss that the test made."""
    names = [name for name, _ in module.named_parameters()]
    return dict(zip(names, torch.autograd.grad(loss, list(module.parameters())), strict=True))


def distributions(trainer: Any, e: Any) -> Tensor:
    """Log-probs (B, T, V) of all tokens, row by row without padding, by the plain model."""
    model, width = trainer.roles.actor.unwrapped.model, e.response_mask.shape[1]
    rows = []
    for ids, mask, response in zip(e.ids, e.mask, e.response_mask, strict=True):
        logits = model(ids[mask][None]).logits[0, -int(response.sum()) - 1 : -1]
        logprobs = (logits / trainer.config.temperature).log_softmax(dim=-1)
        rows.append(torch.nn.functional.pad(logprobs, (0, 0, 0, width - logprobs.shape[0])))
    return torch.stack(rows)


def chosen(trainer: Any, e: Any) -> Tensor:
    """Those of the response tokens, (B, T), with a gradient."""
    tokens = e.ids[:, -e.response_mask.shape[1] :]
    return distributions(trainer, e).gather(2, tokens[..., None])[..., 0]


def surrogate(logprobs: Tensor, e: Any, low: float = 0.2, high: float = 0.2) -> Tensor:
    """The clipped loss of each token, (B, T)."""
    ratio = (logprobs - e.logprobs).exp()
    return -torch.minimum(ratio * e.advantages, ratio.clamp(1 - low, 1 + high) * e.advantages)


def averaged(x: Tensor, mask: Tensor, over: str) -> Tensor:
    """The mean over tokens, or over replies of their means."""
    if over == "tokens":
        return x[mask].mean()
    return torch.stack([row[m].mean() for row, m in zip(x, mask, strict=True)]).mean()
