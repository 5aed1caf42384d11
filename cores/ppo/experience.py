"""The type that travels from rollout to update. Shapes as in `Rollout`: B rows, L = P + T tokens.

One alignment throughout: index t of every (B, T) tensor is response token t, and values[:, t] is
the value of the state before it. What lies outside `response_mask` has no meaning.

Behind it, which rows go through a model together: so many rows, or so many tokens with their
padding, decided on the host from lengths that are read once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import pad

from cores.config import PPOSection
from cores.runtime.launch import Launch

Lengths = Sequence[tuple[int, int]]
"""Prompt and response tokens of each row. A forward pass pads both to their longest."""
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
    def attended(self) -> Tensor | None:
        """The mask for a model, or None where no row has padding: models attend to all then."""
        width = self.response_mask.shape[1]
        full = (self.mask.shape[1] - width, width)
        return self.mask if any(found != full for found in self.lengths) else None

    def to(self: S, device: torch.device | str) -> S:
        """The same on another device."""
        return replace(self, **{name: x.to(device) for name, x in columns(self).items()})

    def as_selected(self, lengths: Lengths, widths: int) -> Lengths:
        """`lengths` of some of the rows as `select` makes them: where there is any padding, they
        are rounded up to multiples of `widths`."""
        if self.attended is None:
            return lengths
        return [(-(-p // widths) * widths, -(-r // widths) * widths) for p, r in lengths]

    def select(self: S, rows: Sequence[int], widths: int = 1) -> S:
        """The given rows, as wide as the longest prompt and response `as_selected`."""
        index = on_device(rows, self.ids.device)
        taken = {name: column[index] for name, column in columns(self).items()}
        lengths = [self.lengths[i] for i in rows]
        prompts, responses = zip(*self.as_selected(lengths, widths), strict=True)
        width = self.response_mask.shape[1]
        left = max(1, *prompts) - (self.mask.shape[1] - width)
        result = replace(self, **_fitted(taken, left, max(1, *responses) - width))
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
    return replace(scored, **_concatenate(gather_object([rows]), launch.device))


def _concatenate(parts: list[dict[str, Tensor]], device: torch.device) -> dict[str, Tensor]:
    response = max(p["response_mask"].shape[1] for p in parts)
    prompt = max(p["mask"].shape[1] - p["response_mask"].shape[1] for p in parts)
    collected: dict[str, list[Tensor]] = {name: [] for name in parts[0]}
    for part in parts:
        right = response - part["response_mask"].shape[1]
        left = prompt - (part["mask"].shape[1] - part["response_mask"].shape[1])
        for name, value in _fitted(part, left, right).items():
            collected[name].append(value)
    return {name: torch.cat(values).to(device) for name, values in collected.items()}


def cut(rows: Sequence[int], lengths: Lengths, size: int, tokens: int | None) -> list[list[int]]:
    """`rows` in parts of `size` rows, or of at most `tokens` tokens if that is not None.

    Tokens are those of the forward pass, padding included; a row that has more goes alone.
    """
    parts: list[list[int]] = []
    prompt = response = 0  # longest of the part being filled
    for row in rows:
        longer = max(prompt, lengths[row][0]), max(response, lengths[row][1])
        count = len(parts[-1]) + 1 if parts else 1
        fits = count <= size if tokens is None else count * sum(longer) <= tokens
        if parts and fits:
            parts[-1].append(row)
            prompt, response = longer
        else:
            parts.append([row])
            prompt, response = lengths[row]
    return parts


def in_parts(parts: list[list[int]], count: int) -> list[list[int]]:
    """`parts` as `count` parts, none of them empty, by halving the largest as often as it takes.

    ValueError if there are fewer rows than that, or more parts.
    """
    if not len(parts) <= count <= sum(map(len, parts)):
        raise ValueError(f"{parts} cannot be {count} parts")
    parts = list(parts)
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        half = (len(parts[largest]) + 1) // 2
        parts[largest : largest + 1] = [parts[largest][:half], parts[largest][half:]]
    return parts


def shared(
    rows: Sequence[int],
    lengths: Lengths,
    ppo: PPOSection,
    halved: bool,
    world: int = 1,
    factor: int = 1,
) -> list[list[list[int]]]:
    """The micro-batches of each of `world` ranks: as many on each, since they meet at every one.

    `world` divides the number of rows, which are dealt out the longest first: neighbours then need
    little padding, and memory runs out at once or not at all. A micro-batch has `factor` times the
    rows or tokens of the configuration, half of that if `halved`.
    """
    half = 2 if halved else 1
    size = max(1, factor * ppo.microbatch_size // half)
    tokens = ppo.microbatch_tokens and factor * ppo.microbatch_tokens // half
    ordered = sorted(rows, key=lambda i: sum(lengths[i]), reverse=True)
    ranks = [cut(ordered[rank::world], lengths, size, tokens) for rank in range(world)]
    most = max(map(len, ranks))
    return [in_parts(parts, most) for parts in ranks]


def share(batch: list[Any], rank: int, world: int) -> list[Any]:
    """Rank `rank`'s consecutive part of `batch`, whose length `world` divides."""
    size = len(batch) // world
    return batch[rank * size : (rank + 1) * size]


def on_device(rows: Sequence[int], device: torch.device) -> Tensor:
    """Row numbers (N,) on `device`, without waiting for what it is computing."""
    index = torch.tensor(rows, dtype=torch.int64)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index
