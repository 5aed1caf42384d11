"""Attention of rows that stand side by side, each token to those of its own row up to itself.

Shapes: N tokens, H heads of h numbers, fewer of keys and values where queries share them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from cores.models.rows import Packing

PACKED = "tristage_packed"
"""Name of `packed_attention` among those of transformers."""


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    packing: Packing,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """(1, N, H, h) of queries (1, H, N, h), keys and values, as layers of transformers call it.

    In half precision on a GPU by flash attention over rows of any length (Dao 2023), which torch
    has; elsewhere each row gets its padding back, behind it, where causal attention never looks.
    """
    shared = query.shape[1] // key.shape[1]
    # Rotary embeddings may have made queries and keys fp32 under autocast.
    tokens = [x.squeeze(0).transpose(0, 1).to(value.dtype) for x in (query, key, value)]
    if shared > 1:
        tokens[1:] = [x.repeat_interleave(shared, dim=1) for x in tokens[1:]]
    if value.is_cuda and value.dtype in (torch.bfloat16, torch.float16):
        starts, longest = packing.starts.int(), packing.longest
        found = varlen_attn(
            *tokens, starts, starts, longest, longest, scale=scaling, window_size=(-1, 0)
        )
        return found.unsqueeze(0), None
    rows, (_, heads, size) = len(packing.starts) - 1, tokens[0].shape
    padded = [
        x.new_zeros(rows * packing.longest, heads, size)
        .index_copy(0, packing.grid, x)
        .view(rows, packing.longest, heads, size)
        .transpose(1, 2)
        for x in tokens
    ]
    seen = scaled_dot_product_attention(*padded, is_causal=True, scale=scaling)
    return seen.transpose(1, 2).flatten(0, 1).index_select(0, packing.grid).unsqueeze(0), None


AttentionInterface.register(PACKED, packed_attention)
