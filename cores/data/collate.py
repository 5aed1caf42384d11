"""Rows of ids padded to one tensor, or side by side in wider rows, so that less is padding.

A mask comes from lengths, never from comparing ids.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import torch

from cores.data.encode import IGNORED

Row = dict[str, list[int]]


def left_pad(rows: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, L) int64 and mask (B, L) bool, True on each row's own tokens, which end at L - 1."""
    return _pad(rows, pad_id, left=True)


def right_pad(rows: Sequence[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, L) int64 and mask (B, L) bool, True on each row's own tokens, which begin at 0."""
    return _pad(rows, pad_id, left=False)


def beside(
    prompts: Sequence[list[int]], replies: Sequence[list[int]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, P + T) int64 and mask, bool: prompts that end at P - 1, replies that begin at P."""
    (asked, left), (said, right) = left_pad(prompts, pad_id), right_pad(replies, pad_id)
    return torch.cat([asked, said], dim=1), torch.cat([left, right], dim=1)


def _pad(rows: Sequence[list[int]], pad_id: int, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max((len(row) for row in rows), default=0)
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)[:, None]
    columns = torch.arange(longest)
    mask = columns >= longest - lengths if left else columns < lengths
    ids = torch.full(mask.shape, pad_id, dtype=torch.int64)
    # All at once: a tensor a row takes milliseconds of which a rollout has few.
    ids[mask] = torch.tensor([i for row in rows for i in row], dtype=torch.int64)
    return ids, mask


def pack(rows: list[Row], width: int) -> list[Row]:
    """`rows` of `input_ids` and `labels` in rows of at most `width` tokens, with `position_ids`.

    Positions begin again at 0 with each of the rows inside. The label of its first token is
    ignored: what stands before it is another row, and nothing predicts it alone either.
    """
    packed = []
    for group in best_fit([len(row["input_ids"]) for row in rows], width):
        inside = [rows[i] for i in group]
        packed.append(
            {
                "input_ids": [token for row in inside for token in row["input_ids"]],
                "labels": [x for row in inside for x in (IGNORED, *row["labels"][1:])],
                "position_ids": [t for row in inside for t in range(len(row["input_ids"]))],
            }
        )
    return packed


def best_fit(lengths: list[int], width: int) -> list[list[int]]:
    """Indices of `lengths` in groups whose sums are at most `width`, each index once.

    Best fit decreasing: the longest first, each to the group where it leaves the least room. It
    leaves the fewest empty places of the simple ways, and needs no seed; the order of the groups
    is the trainer's to shuffle. No length may be above `width`.
    """
    groups: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room left, group), sorted
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(rooms, (lengths[i], 0))
        if at < len(rooms):
            room, group = rooms.pop(at)
        else:
            room, group = width, len(groups)
            groups.append([])
        groups[group].append(i)
        insort(rooms, (room - lengths[i], group))
    return groups
