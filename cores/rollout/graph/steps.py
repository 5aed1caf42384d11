"""What a decode step reads and writes besides the cache, at addresses that never change.

Shapes: R rows of which the first b are in use, T new tokens, V vocabulary.
"""

import torch
from torch import Tensor

from cores.models.vocabulary import EXCLUDED_LOGIT
from cores.rollout.engine import Sampling, sample
from cores.rollout.graph.cache import StaticCache


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
