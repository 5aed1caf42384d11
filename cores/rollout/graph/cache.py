"""A key-value cache whose buffers never move, and the attention that reads it in place.

Shapes: R rows of which the first b are in use, H query heads, G key-value heads, C positions,
D head width, P prompt tokens (left-padded), N layers.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cores.models.body import causal_mask

ATTENTION = "tristage_static_cache"
"""Name under which transformers' models find `static_attention`. It has no mask function, so they
make no mask."""


class StaticCache:
    """Keys and values of every layer, written in place; what transformers' models take for a
    cache, as far as they use one.

    `filled` columns hold something before the present call. On the device, for captured graphs,
    the same number is start + position of any row.
    """

    is_compileable = False

    def __init__(self, config: Any, rows: int, positions: int, dtype: torch.dtype, device: Any):
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        shape = (config.num_hidden_layers, rows, groups, positions, width)
        self.rows, self.positions = rows, positions
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.start = torch.zeros(rows, dtype=torch.int32, device=device)
        """(R,) column of the row's first token."""
        self.position = torch.zeros(rows, dtype=torch.long, device=device)
        """(R,) position id of the row's newest token."""
        self.filled = 0
        self.first_row = 0
        """Rows of a prefill begin here."""
        self.mask: Tensor | None = None
        """Of a prefill; None where all before a position is attended."""
        self.padded = False
        """Whether any prompt has padding."""
        self.kernel = torch.device(device).type == "cuda"
        """Whether decode steps run the fused kernel."""

    def get_seq_length(self, layer: int = 0) -> int:
        """Positions filled before this call; models only ask when they make position ids."""
        return self.filled

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *unused: Any, **more: Any
    ) -> tuple["Written", Tensor]:
        """Hand the new keys and values (b, G, T, D) on to the attention, which writes them."""
        return Written(self, layer, keys), values

    def keep(self, order: Tensor) -> None:
        """Move the rows `order` (n,) to the front."""
        for buffer in (self.keys, self.values):
            for layer in buffer:  # a copy of one layer at a time
                layer[: len(order)] = layer[order]
        for column in (self.start, self.position):
            column[: len(order)] = column[order]

    def prefill(self, first_row: int, mask: Tensor | None) -> None:
        """From here on rows of prompts are read, the first of them `first_row`; mask (b, P), None
        where none of them has padding."""
        self.filled, self.first_row = 0, first_row
        self.mask = None if mask is None else causal_mask(mask)

    def decode(self, filled: int, padded: bool) -> None:
        """From prefill to decode steps, behind `filled` columns; `padded`: whether any prompt is
        shorter. The host knows without asking the device."""
        self.first_row = 0
        self.filled, self.padded = filled, padded
        self.mask = None

    def seen(self, rows: int) -> Tensor | None:
        """What a decode step attends to, (b, 1, 1, positions); None for all that is filled."""
        if not self.padded:
            return None
        places = torch.arange(self.filled + 1, device=self.start.device)
        return (places >= self.start[:rows, None])[:, None, None]


@dataclass(frozen=True)
class Written:
    """New keys of one layer on their way through a model to `static_attention`."""

    cache: StaticCache
    layer: int
    keys: Tensor


def static_attention(
    module: Any,
    query: Tensor,
    key: Written,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention (b, T, H, D) of query (b, H, T, D) to the cache and the new positions."""
    cache = key.cache
    keys, values = cache.keys[key.layer], cache.values[key.layer]
    rows, _, count, _ = query.shape
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    prefill = cache.filled == 0
    if cache.kernel and not prefill:
        from cores.rollout.graph.kernels import decode_attention

        out = decode_attention(
            query, key.keys, value, keys, values, cache.start, cache.position, scale
        )
        return out, None
    end = cache.filled + count
    mask = cache.mask if prefill else cache.seen(rows)
    part = slice(cache.first_row, cache.first_row + rows)
    keys[part, :, cache.filled : end] = key.keys
    values[part, :, cache.filled : end] = value
    out = scaled_dot_product_attention(
        query.to(keys.dtype),
        keys[part, :, :end],
        values[part, :, :end],
        attn_mask=mask,
        is_causal=mask is None and prefill,
        scale=scale,
        enable_gqa=query.shape[1] != keys.shape[1],
    )
    return out.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, static_attention)
