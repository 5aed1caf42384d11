"""Rollouts by Hugging Face `generate`: slow, and right for every architecture.

Shapes: B rows, P prompt tokens, T response tokens so far.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from cores.data import left_pad
from cores.models.attention import prompts_both_ways
from cores.models.vocabulary import EXCLUDED_LOGIT
from cores.rollout.engine import Listener, Rollout, Sampling, cut_at_stops, nucleus, sample
from cores.rollout.pictures import Pictures, flat


@dataclass(eq=False)
class _Sampler(LogitsProcessor):
    """Draws each token itself, as `GraphEngine` does, and keeps its log-prob and the entropy.

    `generate` calls it once a token and takes the likeliest by what it returns: the token drawn.
    """

    sampling: Sampling
    uniform: Tensor
    logprobs: list[Tensor] = field(default_factory=list)
    entropies: list[Tensor] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        s, taken = self.sampling, len(self.logprobs)
        if taken < s.min_new_tokens:
            scores[:, s.stop_ids] = EXCLUDED_LOGIT
        if s.top_p < 1:
            scores = nucleus(scores, s.temperature, s.top_p)
        tokens, logprobs, entropies = sample(scores, self.uniform[:, taken], s.temperature)
        self.logprobs.append(logprobs)
        self.entropies.append(entropies)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


@dataclass(eq=False)
class TextStops(StoppingCriteria):
    """Ends each row of one `generate` at the token that completes a stop string; keeps where.

    Only the text of the reply counts: a string in the prompt, or one that begins there, ends
    nothing. Neither does one that is complete within the first `min_new_tokens` tokens, where stop
    ids cannot be sampled either; the reply goes on and the next one counts.
    """

    matcher: StopStringCriteria
    prompt_length: int
    min_new_tokens: int
    met: list[Tensor] = field(default_factory=list)
    """(B,) bool for each response token: whether it completed a string. Behind the end of a
    row it means nothing."""

    def __call__(self, input_ids: Tensor, scores: Any, **unused: Any) -> Tensor:
        """(B,) bool, at the newest token of `input_ids` (B, P + T)."""
        response = input_ids[:, self.prompt_length :]
        met = self.matcher(response, scores)
        if response.shape[1] <= self.min_new_tokens:
            met = torch.zeros_like(met)
        self.met.append(met)
        return met


@dataclass(eq=False)
class _Told(StoppingCriteria):
    """Tells of each token, and ends every row where the listener says so."""

    listen: Listener

    def __call__(self, input_ids: Tensor, scores: Any, **unused: Any) -> Tensor:
        return torch.full_like(input_ids[:, 0], self.listen(input_ids[:, -1]), dtype=torch.bool)


@dataclass(eq=False)
class HFEngine:
    """Samples with `model.generate`, whatever the parent's generation_config asks for.

    A reply ends at the first stop id, or at the token that completes a text of `text_matcher`, but
    at none of its first `min_new_tokens` tokens; see `TextStops`.
    """

    model: Any
    sampling: Sampling
    prefix: bool = False
    """Prompts are read both ways."""

    @torch.no_grad()
    def generate(
        self,
        prompts: list[list[int]],
        uniform: Tensor,
        listen: Listener | None = None,
        images: Pictures | None = None,
    ) -> Rollout:
        """One reply for each prompt, which shows these images; see `Rollout` and `RolloutEngine`
        for shapes."""
        s, device = self.sampling, self.model.device
        prompt_ids, prompt_mask = (t.to(device) for t in left_pad(prompts, s.pad_id))
        sampler = _Sampler(s, uniform.to(device))
        # A decoder's row begins with its start token, not with the prompt.
        decodes = self.model.config.is_encoder_decoder
        start = self.model.config.decoder_start_token_id if decodes else None
        before = 1 if decodes else prompt_ids.shape[1]
        texts = None
        if s.text_matcher is not None:
            texts = TextStops(s.text_matcher, before, s.min_new_tokens)
        seen = None if images is None else flat(images.pixels, images.shown)
        ends: list[Any] = [texts] if texts else []
        ends += [_Told(listen)] if listen else []
        theirs, training = self.model.generation_config, self.model.training
        # `generate` fills every setting left open from the model's own generation_config, which may
        # hold a top_k, a repetition penalty or a minimum length that no log-prob would know of.
        self.model.generation_config = GenerationConfig()
        self.model.eval()
        try:
            # Layers that are compiled for training would be compiled anew for every length here.
            with (
                torch.compiler.set_stance("force_eager"),
                torch.autocast(device.type, s.autocast, enabled=s.autocast is not None),
                prompts_both_ways(self.model) if self.prefix else nullcontext(),
            ):
                ids = self.model.generate(
                    input_ids=prompt_ids,
                    attention_mask=prompt_mask.long(),
                    **({} if seen is None else {"pixel_values": seen.to(device)}),
                    generation_config=GenerationConfig(
                        do_sample=False,  # the sampler leaves one token
                        max_new_tokens=s.max_new_tokens,
                        eos_token_id=s.stop_ids,
                        pad_token_id=s.pad_id,
                        decoder_start_token_id=start,
                    ),
                    logits_processor=LogitsProcessorList([sampler]),
                    stopping_criteria=StoppingCriteriaList(ends),
                    synced_gpus=False,
                )
        finally:
            self.model.generation_config = theirs
            self.model.train(training)
        response = ids[:, before:]
        text_stops = torch.stack(texts.met, dim=1) if texts else None
        drawn = (torch.stack(each, dim=1) for each in (sampler.logprobs, sampler.entropies))
        rollout = cut_at_stops(s, prompt_ids, prompt_mask, response, text_stops, *drawn)
        if images is None:
            return rollout
        return replace(rollout, images=images.pixels.to(device), shown=images.shown.to(device))
