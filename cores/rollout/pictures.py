"""Images of rows as tensors: those of each row beside it, so that rows may be picked and cut.

Shapes: B rows, M images a row at most, N in all, C x H x W pixels of one.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cores.data.image_files import read_image
from cores.models.images import ImageProcessor

BLANK = ""
"""Name of the black image."""


@dataclass(frozen=True)
class Pictures:
    """The images of B rows."""

    pixels: Tensor
    """(B, M, C, H, W) float32; 0 where a row has fewer."""
    shown: Tensor
    """(B, M) bool: which there are."""


def pictures(images: ImageProcessor, rows: list[dict[str, Any]]) -> Pictures | None:
    """Of rows that name theirs; None where none does."""
    found = opened(rows, images)
    if not any(found):
        return None
    pixels = images.pixels([image for row in found for image in row])
    shown = torch.zeros(len(rows), max(map(len, found)), dtype=torch.bool)
    for row, own in enumerate(found):
        shown[row, : len(own)] = True
    beside = pixels.new_zeros(*shown.shape, *pixels.shape[1:])
    beside[shown] = pixels
    return Pictures(beside, shown)


def flat(pixels: Tensor | None, shown: Tensor | None) -> Tensor | None:
    """(N, C, H, W), in the order of the rows, as models read them; None where there is none."""
    if pixels is None or shown is None:
        return None
    found = pixels[shown]
    return found if len(found) else None


def opened(rows: list[dict[str, Any]], images: ImageProcessor) -> list[list[Any]]:
    """The images of each row; they lie in no memory before their batch comes."""
    return [
        [images.blank() if x == BLANK else read_image(x, row["where"]) for x in row["images"]]
        for row in rows
    ]
