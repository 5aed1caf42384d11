"""The type that travels from rollout to update. Shapes as in `Rollout`: B rows, L = P + T tokens.

One alignment throughout: index t of every (B, T) tensor is response token t, and values[:, t] is
the value of the state before it. What lies outside `response_mask` has no meaning.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad

from cores.ppo.batches import Lengths, on_device, widened
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
    """(B, T) nats: of the same tokens under the actor, teacher-forced, or where the engine proved
    equal those it sampled with; the old log-probs of PPO."""
    ref_logprobs: Tensor
    """(B, T) nats: under the reference."""
    entropy: Tensor | None
    """(B, T) nats: of the actor's distribution before each token; None if only the update's own
    passes will tell."""
    values: Tensor
    """(B, T) score units: the critic's."""
    scores: Tensor
    """(B,) score units: the weighted sum of the sources'."""
    score_parts: Tensor
    """(B, S) score units: of each source of `ppo.rewards`, in its order, before the weights;
    NaN where a function says None."""

    @cached_property
    def lengths(self) -> Lengths:
        """Prompt and response tokens of each row, on the host: the device is asked once."""
        width = self.response_mask.shape[1]
        prompts = self.mask[:, : self.mask.shape[1] - width].sum(dim=1)
        both = torch.stack([prompts, self.response_mask.sum(dim=1)], dim=1)
        return [(prompt, response) for prompt, response in both.tolist()]

    @cached_property
    def padded(self) -> bool:
        """Whether any row has padding."""
        width = self.response_mask.shape[1]
        return any(found != (self.mask.shape[1] - width, width) for found in self.lengths)

    @property
    def attended(self) -> Tensor | None:
        """The mask for a model, or None where no row has padding: models attend to all then."""
        return self.mask if self.padded else None

    def to(self: S, device: torch.device | str) -> S:
        """The same on another device."""
        moved = {name: column.to(device) for name, column in columns(self).items()}
        return with_columns(type(self), moved)

    def as_selected(self, lengths: Lengths, widths: int) -> Lengths:
        """`lengths` of some of the rows as `select` makes them: where there is any padding, they
        are rounded up to multiples of `widths`."""
        return widened(lengths, widths) if self.padded else lengths

    def select(self: S, rows: Sequence[int] | Tensor, widths: int = 1) -> S:
        """The given rows, as wide as the longest prompt and response `as_selected`."""
        numbers = rows.tolist() if isinstance(rows, Tensor) else list(rows)
        index = on_device(numbers, self.ids.device)
        taken = {name: column[index] for name, column in columns(self).items()}
        lengths = [self.lengths[i] for i in numbers]
        prompts, responses = zip(*self.as_selected(lengths, widths), strict=True)
        width = self.response_mask.shape[1]
        left = max(1, *prompts) - (self.mask.shape[1] - width)
        taken = _fitted(taken, left, max(1, *responses) - width)
        result = with_columns(type(self), taken)
        vars(result)["lengths"] = lengths
        return result


@dataclass(frozen=True)
class Experience(Scored):
    """What an update learns from."""

    rewards: Tensor
    """(B, T) score units: the score at the end, less the price of KL at every token."""
    advantages: Tensor
    """(B, T): whitened if so configured."""
    returns: Tensor
    """(B, T) score units: targets of the critic."""


def columns(scored: Scored) -> dict[str, Tensor]:
    """The columns that there are, by name."""
    found = {f.name: getattr(scored, f.name) for f in fields(scored)}
    return {name: column for name, column in found.items() if column is not None}


def with_columns(cls: type[S], found: dict[str, Tensor]) -> S:
    """The opposite of `columns`."""
    every: dict[str, Any] = dict.fromkeys(f.name for f in fields(cls))
    return cls(**{**every, **found})


def _fitted(found: dict[str, Tensor], left: int, right: int) -> dict[str, Tensor]:
    """Columns with so many prompt positions more on the left, and response positions on the right;
    fewer if negative."""

    def fit(name: str, value: Tensor) -> Tensor:
        # A padded id is never attended; 0 is in every vocabulary.
        if name in ("ids", "mask"):
            return pad(value, (left, right))
        return pad(value, (0, right)) if right and by_token(name, value) else value

    return {name: fit(name, value) for name, value in found.items()} if left or right else found


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
    rows = {name: column.cpu() for name, column in columns(scored).items()}
    return _concatenate(gather_object([rows]), launch.device)


def _concatenate(parts: list[dict[str, Tensor]], device: torch.device) -> Scored:
    response = max(p["response_mask"].shape[1] for p in parts)
    prompt = max(p["mask"].shape[1] - p["response_mask"].shape[1] for p in parts)
    collected: dict[str, list[Tensor]] = {name: [] for name in parts[0]}
    for part in parts:
        right = response - part["response_mask"].shape[1]
        left = prompt - (part["mask"].shape[1] - part["response_mask"].shape[1])
        for name, value in _fitted(part, left, right).items():
            collected[name].append(value)
    made = {name: torch.cat(values).to(device) for name, values in collected.items()}
    return with_columns(Scored, made)
