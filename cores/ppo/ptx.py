"""Rows of the stage-1 data beside PPO's own, against forgetting (Ouyang et al. 2022, "PPO-ptx")."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cores.data import beside, right_pad
from cores.data.encode import IGNORED
from cores.draws import in_epochs, share
from cores.models.rows import Rows
from cores.rl import masked_mean


@dataclass(frozen=True)
class PtxBatch:
    """This rank's part of the rows of an optimizer step."""

    rows: Rows
    """What is predicted is their replies': of a text all but its first token."""
    trained: Tensor
    """(B, T) bool: tokens that the stage-1 loss counts."""


class PtxRows:
    """`batch_size` rows for each step, every row once an epoch, the same on all ranks; in an order
    of their own, whatever rows the prompts are."""

    def __init__(
        self,
        rows: list[dict[str, list[int]]],
        batch_size: int,
        pad_id: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.rows = rows
        self.pad_id = pad_id
        self.device = device
        self.batch_size = batch_size
        self.seed = seed

    def at(self, step: int, rank: int, world: int, micro: int) -> tuple[list[PtxBatch], int]:
        """The micro-batches of this rank at an optimizer step (from 0), and the trained tokens of
        all ranks' rows."""
        start, size = step * self.batch_size, self.batch_size
        numbers = in_epochs(len(self.rows), start, size, self.seed, "ptx")
        chosen = [self.rows[i] for i in numbers]
        total = sum(label != IGNORED for row in chosen for label in predicted(row))
        mine = share(chosen, rank, world)
        parts = [mine[i : i + micro] for i in range(0, len(mine), micro)]
        return [self._batch(part) for part in parts], max(total, 1)

    def _batch(self, rows: list[dict[str, list[int]]]) -> PtxBatch:
        if "encoder_ids" in rows[0]:
            read = [row["encoder_ids"] for row in rows]
            ids, mask = beside(read, [row["labels"] for row in rows], self.pad_id)
        else:
            ids, mask = right_pad([row["input_ids"] for row in rows], self.pad_id)
        labels, _ = right_pad([predicted(row) for row in rows], IGNORED)
        both = Rows(ids.to(self.device), mask.to(self.device), width=labels.shape[1])
        return PtxBatch(both, (labels != IGNORED).to(self.device))


def predicted(row: dict[str, list[int]]) -> list[int]:
    """The labels that something predicts: all behind an encoder, else all but the first."""
    return row["labels"][0 if "encoder_ids" in row else 1 :]


def ptx_loss(logprobs: Tensor, trained: Tensor, tokens: int) -> Tensor:
    """This micro-batch's share of the mean negative log-prob of the trained tokens, 0-d.

    logprobs and trained (B, T).
    """
    return -masked_mean(logprobs, trained, tokens)
