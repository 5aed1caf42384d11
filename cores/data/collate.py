"""Padding rows of ids to one tensor. The mask comes from lengths, never from comparing ids."""

from collections.abc import Sequence

import torch


def left_pad(rows: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, L) int64 and mask (B, L) bool, True on each row's own tokens, which end at L - 1."""
    return _pad(rows, pad_id, left=True)


def right_pad(rows: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, L) int64 and mask (B, L) bool, True on each row's own tokens, which begin at 0."""
    return _pad(rows, pad_id, left=False)


def _pad(rows: Sequence[list[int]], pad_id: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max((len(row) for row in rows), default=0)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)[:, None]
    columns = torch.arange(longest)
    mask = columns >= longest - lengths if left else columns < lengths
    ids = torch.full(mask.shape, pad_id, dtype=torch.int64)
    # All at once: a tensor a row takes milliseconds of which a rollout has few.
    ids[mask] = torch.tensor([i for row in rows for i in row], dtype=torch.int64)
    return ids, mask
