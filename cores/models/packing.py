"""Whether a model keeps rows apart that stand side by side in one: asked of the model itself."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from cores.errors import UserError
from cores.models.vocabulary import embedding

LENGTHS = [[7, 5], [4, 9]]
"""Tokens of the samples of the probe, side by side in two rows."""
TOLERANCE, TOLERANCE_QUANTIZED = 1e-3, 0.1
"""Largest difference allowed, in median deviations of the logits. fp32 rounds to 1e-6 of them; a
leak changes large weights by 1 and more, and fresh small ones (0.02) by 0.05. 8 and 4 bits round
coarsely, and only trained models are held in them."""


@torch.no_grad()
def check_packing(model: Any) -> None:
    """UserError if `model` computes other logits for packed samples than for each alone.

    transformers tells packed samples by positions that begin again, where there is no attention
    mask; some architectures take no notice. Random ids, evaluation mode, no change to the model.
    """
    generator = torch.Generator().manual_seed(0)
    rows, device = embedding(model).shape[0], embedding(model).device
    samples = [
        [torch.randint(rows, (n,), generator=generator).to(device) for n in row] for row in LENGTHS
    ]
    training = model.training
    model.eval()
    alone = [[logits(model, [[sample]])[0] for sample in row] for row in samples]
    packed = logits(model, samples)
    model.train(training)
    apart = max(
        (together[: len(expected)] - expected).abs().max().item()
        for together, expected in zip(packed, map(torch.cat, alone), strict=True)
    )
    everything = torch.cat([sample for row in alone for sample in row])
    spread = (everything - everything.median()).abs().median().item()  # blind to excluded ids
    tolerance = TOLERANCE_QUANTIZED if getattr(model, "is_quantized", False) else TOLERANCE
    if not apart <= tolerance * spread:
        raise UserError(
            f"sft.packing: {type(model).__name__} mixes rows that are packed side by side: in a "
            f"trial their logits differed by {apart:.2g} from those of each row alone (the logits' "
            f"median deviation is {spread:.2g}). Set sft.packing false."
        )


def logits(model: nn.Module, rows: list[list[Tensor]]) -> Tensor:
    """Logits (B, L, V) of B rows of samples side by side, as training packs them."""
    ids = nn.utils.rnn.pad_sequence([torch.cat(row) for row in rows], batch_first=True)
    positions = nn.utils.rnn.pad_sequence(
        [torch.cat([torch.arange(len(sample)) for sample in row]) for row in rows],
        batch_first=True,
    )
    inputs = {"input_ids": ids}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = positions.to(ids.device)
    return model(**inputs, use_cache=False).logits.float()
