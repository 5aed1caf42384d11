"""Rows that models read, and what a model says of the replies in them, whatever its architecture.

Where a reply begins is known here alone. Shapes: B rows of L columns: prompts, padded on the left,
then in the last T columns replies, padded on the right. What stands at a column has read the row
up to its token: at the column before a reply the prompt, at that of its last token all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Rows:
    """What a model reads."""

    ids: Tensor
    """(B, L) int64."""
    mask: Tensor | None
    """(B, L) bool: tokens of the row. None: no row has padding, and models attend to all."""
    width: int
    """T, columns of the replies. 0: rows are texts, whose scores alone are asked for; their padding
    may be anywhere."""
    images: Tensor | None = None
    """(N, C, H, W) pixels of the rows' images, in their order; None: there is none."""


def replies(columns: Tensor, width: int) -> Tensor:
    """(B, T) of (B, L): what stands in the columns of the replies."""
    return columns[:, columns.shape[1] - width :]


def prompts(columns: Tensor, width: int) -> Tensor:
    """(B, P) of (B, L): what stands before them."""
    return columns[:, : columns.shape[1] - width]


def before_replies(columns: Tensor, width: int) -> Tensor:
    """(B, T, ..) of (B, L, ..): what is known before each token of a reply, at the column left of
    it."""
    return columns[:, -width - 1 : -1]


def from_decoder(states: Tensor, length: int) -> Tensor:
    """(B, L, ..) of a decoder's states (B, T + 1, ..), which begin where it has read nothing of the
    reply; of prompts' columns but the last there is nothing, which is 0. L is `length`."""
    return pad(states, (0, 0, length - states.shape[1], 0))


def last_attended(values: Tensor, mask: Tensor) -> Tensor:
    """The entry of values (B, L) at the last True of mask (B, L), (B,)."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    last = (positions * mask).argmax(dim=1)
    return values.gather(1, last.unsqueeze(1)).squeeze(1)


@dataclass(frozen=True)
class Policy:
    """An `Actor`, however its launch holds it."""

    module: Any

    def logprobs(
        self, rows: Rows, plain: bool = False, entropy: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Of the replies' tokens, and the entropies before them: see `Actor`."""
        return self.module(rows.ids, rows.mask, rows.width, plain, entropy, rows.images)


@dataclass(frozen=True)
class Value:
    """A `ScalarModel`, however its launch holds it; or what is called alike."""

    module: Any

    def everywhere(self, rows: Rows) -> Tensor:
        """(B, L), in units of score."""
        return self.module(rows.ids, rows.mask, rows.width, rows.images)

    def values(self, rows: Rows) -> Tensor:
        """(B, T): of the states before the replies' tokens."""
        return before_replies(self.everywhere(rows), rows.width)

    def score(self, rows: Rows) -> Tensor:
        """(B,): at the last token."""
        values = self.everywhere(rows)
        return values[:, -1] if rows.mask is None else last_attended(values, rows.mask)
