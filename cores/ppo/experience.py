"""The type that travels from rollout to update. Shapes as in `Rollout`: B rows, L = P + T tokens.

One alignment throughout: index t of every (B, T) tensor is response token t, and values[:, t] is
the value of the state before it. What lies outside `response_mask` has no meaning.
"""

from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad

from cores.runtime.launch import Launch

S = TypeVar("S", bound="Scored")


@dataclass(frozen=True)
class Scored:
    """A rollout and what the models say of it."""

    ids: Tensor
    """(B, L) int64: prompt (left-padded) then response (right-padded)."""
    mask: Tensor
    """(B, L) bool: tokens of the row."""
    response_mask: Tensor
    """(B, T) bool: response tokens, the stop token included."""
    ended: Tensor
    """(B,) bool: whether the reply stopped by itself."""
    rollout_logprobs: Tensor
    """(B, T) nats: of the tokens as the engine sampled them."""
    logprobs: Tensor
    """(B, T) nats: of the same tokens under the actor, teacher-forced; the old log-probs of PPO."""
    ref_logprobs: Tensor
    """(B, T) nats: under the reference."""
    entropy: Tensor
    """(B, T) nats: of the actor's distribution before each token."""
    values: Tensor
    """(B, T) score units: the critic's."""
    scores: Tensor
    """(B,) score units: the weighted sum of the sources'."""
    score_parts: Tensor
    """(B, S) score units: of each source of `ppo.rewards`, in its order, before the weights."""

    def select(self: S, rows: Tensor, trim: bool = True) -> S:
        """The given rows; with `trim` without the columns that are padding in all of them."""
        taken = {f.name: getattr(self, f.name)[rows] for f in fields(self)}
        if not trim:
            return type(self)(**taken)
        response = int(taken["response_mask"].sum(dim=1).max().clamp(min=1))
        width = taken["response_mask"].shape[1]
        prompt_mask = taken["mask"][:, : taken["mask"].shape[1] - width]
        start = int(prompt_mask.any(dim=0).long().argmax()) if prompt_mask.shape[1] else 0
        end = taken["mask"].shape[1] - (width - response)
        for name, value in taken.items():
            if name in ("ids", "mask"):
                taken[name] = value[:, start:end]
            elif by_token(name, value):
                taken[name] = value[:, :response]
        return type(self)(**taken)


@dataclass(frozen=True)
class Experience(Scored):
    """What an update learns from."""

    rewards: Tensor
    """(B, T) score units: the score at the end, less the price of KL at every token."""
    advantages: Tensor
    """(B, T): whitened if so configured."""
    returns: Tensor
    """(B, T) score units: targets of the critic."""


def by_token(name: str, value: Tensor) -> bool:
    """Whether a column of `Scored` is (B, T)."""
    return value.dim() == 2 and name not in ("ids", "mask", "score_parts")


def gather_rows(scored: Scored, launch: Launch) -> Scored:
    """The rows of all ranks, in rank order, on every rank.

    A rollout is small beside the models, and with all of it everywhere, whitening, minibatches and
    statistics are global by construction: the same numbers however many processes there are.
    """
    if launch.world == 1:
        return scored
    rows = {f.name: getattr(scored, f.name).cpu() for f in fields(scored)}
    return _concatenate(gather_object([rows]), launch.device)


def _concatenate(parts: list[dict[str, Tensor]], device: torch.device) -> Scored:
    response = max(p["response_mask"].shape[1] for p in parts)
    prompt = max(p["mask"].shape[1] - p["response_mask"].shape[1] for p in parts)
    columns: dict[str, list[Tensor]] = {name: [] for name in parts[0]}
    for part in parts:
        right = response - part["response_mask"].shape[1]
        left = prompt - (part["mask"].shape[1] - part["response_mask"].shape[1])
        for name, value in part.items():
            # A padded id is never attended; 0 is in every vocabulary.
            if name in ("ids", "mask"):
                columns[name].append(pad(value, (left, right)))
            else:
                columns[name].append(pad(value, (0, right)) if by_token(name, value) else value)
    return Scored(**{name: torch.cat(values).to(device) for name, values in columns.items()})
