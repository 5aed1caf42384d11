"""Rows that models read, and what a model says of the replies in them, whatever its architecture.

Where a reply begins is known here alone. Shapes: B rows of L columns: prompts, padded on the left,
then in the last T columns replies, padded on the right. What stands at a column has read the row
up to its token: at the column before a reply the prompt, at that of its last token all. Packed, a
model reads the N tokens alone, M of them replies'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad


def on_device(numbers: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """Whole numbers (N,) on `device`, without waiting for what it is computing."""
    index = torch.as_tensor(numbers)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index


class Packing(NamedTuple):
    """Where the tokens of rows stand when a model reads them side by side, without the padding.

    All but `longest` are tensors of int64, `starts` of int32. Filler, which makes N and M come
    again, stands behind the last row as a row of its own, and belongs to the place behind the last:
    B * L, B * T.
    """

    tokens: Tensor
    """(N,) places in the flattened rows."""
    positions: Tensor
    """(N,) counted from the token's own row."""
    grid: Tensor
    """(N,) places in flattened rows of `longest` columns, each padded on the right."""
    starts: Tensor
    """(B + 2,) where each row begins, the filler, and N."""
    before: Tensor
    """(M,) places among the N of the token before each one of a reply."""
    replies: Tensor
    """(M,) places of those tokens in the flattened replies."""
    longest: int
    """No row has more tokens."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All but `longest`, by name."""
        return {name: x for name, x in self._asdict().items() if isinstance(x, Tensor)}

    def on(self, device: torch.device) -> "Packing":
        """The same there, by two transfers."""
        tensors = self.tensors
        starts = on_device(tensors.pop("starts"), device)
        sizes = [len(x) for x in tensors.values()]
        parts = on_device(torch.cat(list(tensors.values())), device).split(sizes)
        there: Any = dict(zip(tensors, parts, strict=True))
        return self._replace(**there, starts=starts)


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
    packing: Packing | None = None
    """None: models read the padding too."""

    def before_replies(self, states: Tensor) -> Tensor:
        """(B * T, d) of states (B, L, d), or (M, d) of packed ones (1, N, d): those that the tokens
        of replies come from."""
        if self.packing is not None:
            return states.squeeze(0).index_select(0, self.packing.before)
        return states[:, -self.width - 1 : -1].flatten(0, 1)

    def reply_tokens(self) -> tuple[Tensor, Tensor]:
        """(B * T,) or packed (M,): ids of the replies' tokens, and which of its reply each is."""
        chosen = replies(self.ids, self.width)
        numbers = torch.arange(self.width, device=chosen.device).expand_as(chosen)
        if self.packing is None:
            return chosen.flatten(), numbers.flatten()
        behind = (pad(x.flatten(), (0, 1)) for x in (chosen, numbers))
        ids, number = (x.index_select(0, self.packing.replies) for x in behind)
        return ids, number

    def spread(self, values: Tensor) -> Tensor:
        """(B, T) of what is told of each of the `reply_tokens`; or (B, L) of values (B, L) that are
        told of every token, of packed ones (1, N). 0 in the padding."""
        by_reply, packing = values.dim() == 1, self.packing
        shape = torch.Size([len(self.ids), self.width]) if by_reply else self.ids.shape
        if packing is None:
            return values.view(shape)
        places = packing.replies if by_reply else packing.tokens
        flat = values.new_zeros(shape.numel() + 1).index_copy(0, places, values.flatten())
        return flat[:-1].view(shape)


def step_of(count: int) -> int:
    """What counts like this are rounded up to a multiple of: an eighth of it at most, or 16."""
    return max(16, 2 ** count.bit_length() // 16)


def rounded(count: int) -> int:
    """`count` made one of few numbers."""
    return -(-count // step_of(count)) * step_of(count)


def pack(
    lengths: Sequence[tuple[int, int]], prompt: int, width: int, coarse: bool = False
) -> Packing:
    """Rows with so many tokens of prompts, one at least before a reply, and of replies, in so many
    columns of each; on the CPU. `coarse`: N and M are multiples of N's step."""
    asked, said = torch.tensor(lengths).unbind(dim=1)
    each, columns = asked + said, prompt + width
    row = torch.arange(len(lengths)).repeat_interleave(each)
    starts = pad(each.cumsum(dim=0), (1, 0))
    positions = torch.arange(len(row)) - starts[row]
    tokens = row * columns + (prompt - asked)[row] + positions
    reply = torch.arange(len(lengths)).repeat_interleave(said)
    number = torch.arange(len(reply)) - (said.cumsum(dim=0) - said)[reply]
    before = starts[reply] + asked[reply] + number - 1
    places = reply * width + number
    step = step_of(len(tokens)) if coarse else 1
    extra, more = -len(tokens) % step, -len(places) % step
    longest = max(columns, step) if coarse else int(each.max())
    behind = len(lengths) * longest + torch.arange(extra)
    return Packing(
        tokens=pad(tokens, (0, extra), value=len(lengths) * columns),
        positions=pad(positions, (0, extra)),
        grid=torch.cat([row * longest + positions, behind]),
        starts=torch.cat([starts, starts[-1:] + extra]).int(),
        before=pad(before, (0, more)),
        replies=pad(places, (0, more), value=len(lengths) * width),
        longest=longest,
    )


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
        given = (rows.ids, rows.mask, rows.width, plain, entropy, rows.images, rows.packing)
        return self.module(*given)


@dataclass(frozen=True)
class Value:
    """A `ScalarModel`, however its launch holds it; or what is called alike."""

    module: Any

    def everywhere(self, rows: Rows) -> Tensor:
        """(B, L), in units of score."""
        return self.module(rows.ids, rows.mask, rows.width, rows.images, rows.packing)

    def values(self, rows: Rows) -> Tensor:
        """(B, T): of the states before the replies' tokens."""
        return before_replies(self.everywhere(rows), rows.width)

    def score(self, rows: Rows) -> Tensor:
        """(B,): at the last token."""
        values = self.everywhere(rows)
        return values[:, -1] if rows.mask is None else last_attended(values, rows.mask)
