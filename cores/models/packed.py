"""Attention of rows that stand side by side, each token to those of its own row up to itself.

Shapes: N tokens, H heads of h numbers, fewer of keys and values where queries share them.
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cores.models.rows import Packing

SHARED: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)
"""That queries may share keys and values. torch 2.11 has no word for it and does it unasked."""
SDPA = "sdpa"
"""Name of torch's attention among transformers', which stands here from now on."""


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """What transformers' `sdpa_attention_forward` returns; with `packing` that of packed rows.

    Layers hand on what they do not know, also when a checkpointed one runs again in the backward
    pass: so this needs no state.
    """
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **others)
    return packed_attention(query, key, value, packing, others.get("scaling")), None


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float | None
) -> Tensor:
    """(1, N, H, h) of queries (1, H, N, h), keys and values.

    In half precision on a GPU by flash attention over rows of any length (Dao 2023), which torch
    has; elsewhere each row gets its padding back, behind it, where causal attention never looks.
    """
    # Rotary embeddings may have made queries and keys fp32 under autocast.
    q, k, v = (x.squeeze(0).transpose(0, 1).to(value.dtype) for x in (query, key, value))
    if value.is_cuda and value.dtype in (torch.bfloat16, torch.float16):
        starts, longest = packing.starts, packing.longest
        given: Any = {"scale": scaling, "window_size": (-1, 0)} | SHARED
        found: Any = varlen_attn(q, k, v, starts, starts, longest, longest, **given)
        return found.unsqueeze(0)
    rows, (_, heads, size) = len(packing.starts) - 1, q.shape
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    q, k, v = (
        x.new_zeros(rows * packing.longest, heads, size)
        .index_copy(0, packing.grid, x)
        .view(rows, packing.longest, heads, size)
        .transpose(1, 2)
        for x in (q, k, v)
    )
    seen = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    return seen.transpose(1, 2).flatten(0, 1).index_select(0, packing.grid).unsqueeze(0)


AttentionInterface.register(SDPA, attention)
