"""What a decode step reads and writes, at addresses that never change: a key-value cache, with the
attention that reads it in place, and the newest tokens, positions and results.

Shapes: R rows of which the first b are in use, H query heads, G key-value heads, C positions,
D head width, P prompt tokens (left-padded), T new tokens, N layers, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cores.models.body import causal_mask
from cores.models.vocabulary import EXCLUDED_LOGIT
from cores.rollout.engine import Sampling, nucleus, sample

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
    ) -> tuple[Any, Tensor]:
        """Hand the new keys and values (b, G, T, D) on to the attention, which writes them."""
        return (self, layer, keys), values

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


def static_attention(
    module: Any,
    query: Tensor,
    key: tuple[StaticCache, int, Tensor],
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention (b, T, H, D) of query (b, H, T, D) to the cache and the new positions; key and
    value are what `StaticCache.update` handed on."""
    cache, layer, new_keys = key
    keys, values = cache.keys[layer], cache.values[layer]
    rows, _, count, _ = query.shape
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    prefill = cache.filled == 0
    if cache.kernel and not prefill:
        from cores.rollout.graph.kernels import decode_attention

        out = decode_attention(
            query, new_keys, value, keys, values, cache.start, cache.position, scale
        )
        return out, None
    end = cache.filled + count
    mask = cache.mask if prefill else cache.seen(rows)
    part = slice(cache.first_row, cache.first_row + rows)
    keys[part, :, cache.filled : end] = new_keys
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


class Steps:
    """The newest token of every row in use, where it stands, and what has been sampled so far.

    Rows move to the front when others have ended; `place` says where a row writes.
    """

    def __init__(self, cache: StaticCache, sampling: Sampling) -> None:
        rows, tokens, device = cache.rows, sampling.max_new_tokens, cache.keys.device
        self.cache = cache
        self.sampling = sampling
        self.stop_ids = torch.tensor(sampling.stop_ids, device=device)
        self.token = torch.zeros(rows, dtype=torch.long, device=device)
        """(R,) newest token."""
        self.place = torch.zeros_like(self.token)
        """(R,) where in the flattened (R, T) outputs the row's next token goes."""
        self.uniform = torch.zeros((rows, tokens), device=device)
        self.tokens = torch.zeros((rows, tokens), dtype=torch.long, device=device)
        self.logprobs = torch.zeros((rows, tokens), device=device)
        self.entropies = torch.zeros((rows, tokens), device=device)
        self.texts = torch.zeros((rows, tokens), dtype=torch.bool, device=device)
        """(R, T) whether the token completed a stop string."""
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)
        self.used = rows
        self.looked = 0
        on_gpu = device.type == "cuda"
        self.going = torch.zeros((), dtype=torch.long, pin_memory=on_gpu)
        """0-d, on the host: rows that go on, as of the last look."""
        self.arrived = torch.cuda.Event() if on_gpu else None

    def begin(self, rows: int, mask: Tensor, uniform: Tensor) -> None:
        """A rollout of B prompts in `rows` rows, the rest of which only fill up; mask (rows, P) of
        the prompts, uniform (B, T) on the CPU."""
        lengths = mask.sum(dim=1)
        self.cache.start[:rows] = mask.shape[1] - lengths
        self.cache.position[:rows] = lengths - 1
        width = self.tokens.shape[1]
        self.place[:rows] = torch.arange(rows, device=mask.device) * width
        numbers, count = uniform[:, :width].contiguous(), len(uniform)
        if self.arrived is not None:
            numbers = numbers.pin_memory()
        self.uniform[:count].copy_(numbers, non_blocking=True)
        self.ended.fill_(True)
        self.ended[:count] = False
        self.used, self.looked = rows, 0

    def emit(self, logits: Tensor) -> None:
        """Sample the next token of the first b rows from logits (b, V)."""
        rows = len(logits)
        if self.sampling.min_new_tokens:
            stops = logits[:, self.stop_ids]
            sampled = self.place[:rows, None] % self.tokens.shape[1]
            early = sampled < self.sampling.min_new_tokens
            logits[:, self.stop_ids] = torch.where(early, EXCLUDED_LOGIT, stops)
        temperature = self.sampling.temperature
        if self.sampling.top_p < 1:
            logits = nucleus(logits, temperature, self.sampling.top_p)
        written = (self.tokens, self.logprobs, self.entropies)
        if self.cache.kernel:
            from cores.rollout.graph.kernels import sample_into

            counters = (self.token, self.place, self.cache.position)
            return sample_into(logits, self.uniform, temperature, *written, *counters)
        place = self.place[:rows]
        drawn = sample(logits, self.uniform.view(-1)[place], temperature)
        for buffer, new in zip(written, drawn, strict=True):
            buffer.view(-1)[place] = new
        self.token[:rows] = drawn[0]
        place += 1
        self.cache.position[:rows] += 1

    def look(self, taken: int) -> None:
        """Find the rows that have ended with the first `taken` tokens; `alive` says how many have
        not. Nothing is waited for."""
        new = self.tokens[:, self.looked : taken]
        self.ended |= torch.isin(new, self.stop_ids).any(dim=1)
        matcher = self.sampling.text_matcher
        if matcher is not None:
            for end in range(self.looked + 1, taken + 1):
                if end > self.sampling.min_new_tokens:
                    met = matcher(self.tokens[:, :end], None)
                    self.texts[:, end - 1] = met
                    self.ended |= met
        self.looked = taken
        self.going.copy_((~self.ended).sum(), non_blocking=True)
        if self.arrived is not None:
            self.arrived.record()

    def alive(self) -> int:
        """Rows that go on, as of the last look, which is waited for."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return int(self.going)

    def keep(self, rows: int) -> None:
        """Move rows that go on to the front and use the first `rows` from now on."""
        rank = self.ended[self.place[: self.used] // self.tokens.shape[1]].long()
        order = rank.argsort(stable=True)[:rows]
        for column in (self.token, self.place):
            column[:rows] = column[order]
        self.cache.keep(order)
        self.used = rows
