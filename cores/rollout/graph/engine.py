"""Rollouts by our own decode step: a static cache, and on CUDA one captured graph a token. The
model that takes it has the trainer's own modules and weights, in a copy of their shell.

Shapes: B prompts in R rows (B rounded up), b rows still in use, P prompt tokens, T new tokens.
"""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

from cores.data import left_pad
from cores.models.actor import head_logits
from cores.models.body import position_ids
from cores.models.shells import shell
from cores.rollout.engine import Listener, Rollout, Sampling, cut_at_stops
from cores.rollout.graph.buffers import ATTENTION, StaticCache, Steps
from cores.runtime.captured import Captured

LOOK = 16
"""Tokens between looks at which rows have ended: the only times that the host waits."""
AHEAD = 1
"""Steps that a GPU has yet to take when the host waits for a look, so that it does not wait too."""
WIDTHS = 16
"""Padded prompts are read as wide as a multiple of it, so that shapes come again on a GPU."""
PREFILL_TOKENS = 32768
"""Prompt tokens in a forward pass, so that a large rollout's prefill does not decide the memory."""
BUCKETS = (8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Numbers of rows that graphs are captured for."""
ROUND = 64
"""Positions are rounded up to a multiple of it."""
KEPT = 0.05
"""Share of a GPU's memory up to which cache and rounded weights are kept from rollout to rollout,
and the graphs with them. To make them anew takes about a second; more is lent to the update, which
has the peak."""


class GraphEngine:
    """Samples as `HFEngine` does, from the same weights, without its cost a token.

    The buffers of a rollout are used again by the next, unless they are large (see `KEPT`); a
    larger one replaces them. On CUDA a step for each number of rows is captured once, and rows that
    ended make room when that allows a smaller graph; so is the reading of prompts, of shapes that
    come again. Elsewhere the same step runs as it is.
    """

    def __init__(self, model: Any, sampling: Sampling, lends: bool = True) -> None:
        """lends: whether memory of large buffers is given to the update."""
        self.twin = Twin(model, sampling.autocast)
        self.sampling = sampling
        self.device: torch.device = model.device
        self.capture = self.device.type == "cuda"
        self.keeps = inf
        """Bytes of cache and rounded weights that are kept from rollout to rollout."""
        if self.capture and lends:
            self.keeps = KEPT * torch.cuda.get_device_properties(self.device).total_memory
        self.steps: Steps | None = None
        self._release()

    @torch.no_grad()
    def generate(
        self, prompts: list[list[int]], uniform: Tensor, listen: Listener | None = None
    ) -> Rollout:
        """One reply for each prompt; see `Rollout` and `RolloutEngine` for shapes."""
        count = len(prompts)
        rows = bucket(count) if self.capture else count
        pad_id = self.sampling.pad_id
        ids, mask = left_pad([*prompts, *prompts[:1] * (rows - count)], pad_id)
        padded = not bool(mask.all())
        more = -ids.shape[1] % WIDTHS if padded and self.capture else 0
        ids, mask = pad(ids, (more, 0), value=pad_id), pad(mask, (more, 0))
        ids, mask = ids.to(self.device), mask.to(self.device)
        steps = self._room(rows, ids.shape[1])
        steps.begin(rows, mask, uniform)
        self.twin.refresh()
        half = self.sampling.autocast
        with torch.autocast(self.device.type, half, enabled=half is not None, cache_enabled=False):
            self._prefill(steps, ids, mask if padded else None)
            taken = self._decode(steps, listen)
        drawn = (steps.tokens, steps.texts, steps.logprobs, steps.entropies)
        # Behind the tokens that were taken stands what an earlier rollout left.
        behind = (each[:, :taken] for each in drawn)
        rows_of = (each[:count] for each in (ids[:, more:], mask[:, more:], *behind))
        rollout = cut_at_stops(self.sampling, *rows_of)
        if steps.cache.keys.nbytes + steps.cache.values.nbytes + self.twin.nbytes > self.keeps:
            self._release()
            self.twin.release()
        return rollout

    def _release(self) -> None:
        """No buffers and no graphs, which hold on to them."""
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.prefills = Captured()
        self.steps = None

    def _room(self, rows: int, wide: int) -> Steps:
        """Buffers for a rollout; the graphs of smaller ones are of no use any more, nor are those
        with another sampling in them."""
        if self.steps is not None and self.steps.sampling != self.sampling:
            self._release()
        needed = -(-(wide + self.sampling.max_new_tokens) // ROUND) * ROUND
        have = self.steps
        if have is not None and have.cache.rows >= rows and have.cache.positions >= needed:
            return have
        if have is not None:
            rows, needed = max(rows, have.cache.rows), max(needed, have.cache.positions)
        have = None
        self._release()  # freed before the larger ones are made
        dtype = self.sampling.autocast or torch.float32
        cache = StaticCache(self.twin.model.config, rows, needed, dtype, self.device)
        self.steps = Steps(cache, self.sampling)
        return self.steps

    def _prefill(self, steps: Steps, ids: Tensor, mask: Tensor | None) -> None:
        """Fill the cache from the prompts and sample the first tokens; mask None: no padding."""
        rows, wide = ids.shape
        logits = []
        size = max(1, PREFILL_TOKENS // wide)
        for first in range(0, rows, size):
            inputs = {"ids": ids[first : first + size]}
            if mask is not None:
                inputs["mask"] = mask[first : first + size]
            work = partial(self._read, steps.cache, first)
            found = self.prefills.run(first, inputs, work) if self.capture else work(inputs)
            logits.append(found["logits"])
        steps.cache.decode(wide, mask is not None)
        steps.emit(torch.cat(logits))

    def _read(self, cache: StaticCache, first: int, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fill rows of the cache from `first` on; logits (b, V) behind ids (b, P), mask (b, P)."""
        ids, mask = inputs["ids"], inputs.get("mask")
        cache.prefill(first, mask)
        positions = position_ids(torch.ones_like(ids[:1]) if mask is None else mask)
        return {"logits": self.twin(ids, positions, cache)}

    def _decode(self, steps: Steps, listen: Listener | None) -> int:
        """Steps until all rows have ended, or `listen` says so; the number of tokens taken."""
        step = None  # made when a step is due: making one takes one
        ahead = AHEAD if self.capture else 0
        for taken in range(1, self.sampling.max_new_tokens):
            if listen is not None and listen(steps.token[: steps.used]):
                steps.look(taken)
                return taken
            if taken % LOOK == 0:
                steps.look(taken)
            if taken > ahead and (taken - ahead) % LOOK == 0:
                alive = steps.alive()
                if alive == 0:
                    return taken
                fewer = bucket(alive) if self.capture else alive
                if fewer < steps.used:
                    steps.keep(fewer)
                    step = None
            step = step or self._step(steps)
            step()
        steps.look(self.sampling.max_new_tokens)
        if listen is not None:
            listen(steps.token[: steps.used])
        return self.sampling.max_new_tokens

    def _step(self, steps: Steps) -> Callable[[], None]:
        """A decode step of the rows in use: on CUDA the replay of a captured graph."""
        rows = steps.used
        if not self.capture:
            return lambda: self._advance(steps, rows)
        if rows not in self.graphs:
            state = (steps.token, steps.place, steps.cache.position)
            before = [each.clone() for each in state]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._advance(steps, rows)
            torch.cuda.current_stream().wait_stream(side)
            for each, value in zip(state, before, strict=True):
                each.copy_(value)  # what is run for warming up is run again
            graph = torch.cuda.CUDAGraph()
            pool = next(iter(self.graphs.values())).pool() if self.graphs else None
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._advance(steps, rows)
            self.graphs[rows] = graph
        return self.graphs[rows].replay

    def _advance(self, steps: Steps, rows: int) -> None:
        """The next token of the first `rows` rows."""
        ids, positions = steps.token[:rows, None], steps.cache.position[:rows, None]
        logits = self.twin(ids, positions, steps.cache)
        steps.cache.filled += 1
        steps.emit(logits)


def bucket(rows: int) -> int:
    """The number of rows to capture a graph for where `rows` are needed."""
    largest = BUCKETS[-1]
    return next((size for size in BUCKETS if size >= rows), -(-rows // largest) * largest)


class Twin:
    """A copy of `model` that shares its parameters and reads keys and values from a static cache.

    With `autocast` the fp32 weights of linear layers have a copy in that type here, rounded by
    `refresh` once a rollout as autocast would round them at every use; everything else, frozen
    weights in other types included, is the trainer's own tensor.
    """

    def __init__(self, model: Any, autocast: torch.dtype | None) -> None:
        self.model: Any = shell(model)
        self.model.eval()
        self.model.config._attn_implementation = ATTENTION
        self.sources: list[Tensor] = []
        self.copies: list[Tensor] = []
        if autocast is not None:
            for module in self.model.modules():
                if isinstance(module, nn.Linear | Conv1D):
                    self._round(module, autocast)

    def _round(self, module: nn.Module, half: torch.dtype) -> None:
        for name in ("weight", "bias"):
            source = getattr(module, name)
            if source is None or source.dtype != torch.float32:
                continue
            copy = torch.empty_like(source, dtype=half, requires_grad=False)
            setattr(module, name, nn.Parameter(copy, requires_grad=False))
            self.sources.append(source)
            self.copies.append(getattr(module, name))

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the weights as they are now."""
        for copy in self.copies:
            if not copy.untyped_storage().nbytes():  # else a resize would move what graphs read
                copy.untyped_storage().resize_(copy.nbytes)
        if self.copies:
            torch._foreach_copy_(self.copies, self.sources)

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(copy.nbytes for copy in self.copies)

    def release(self) -> None:
        """Give the memory of the copies back until the next `refresh`."""
        for copy in self.copies:
            copy.untyped_storage().resize_(0)

    def __call__(self, ids: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Logits (b, V) behind the last of ids (b, T) at positions (b, T), or (1, T) of all."""
        states = self.model.base_model(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True
        ).last_hidden_state
        # Contiguous rows: the last column of (b, T, d) would be multiplied row by row.
        return head_logits(self.model, states[:, -1].contiguous())
