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
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, row in enumerate(rows):
        here = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, here] = torch.tensor(row, dtype=torch.int64)
        mask[i, here] = True
    return ids, mask
