"""Rollouts by Hugging Face `generate`: slow, and right for every architecture."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)

from cores.data import left_pad
from cores.models.vocabulary import EXCLUDED_LOGIT
from cores.rollout.engine import Rollout, response_mask
from cores.rollout.sampling import Sampling, sample
from cores.rollout.stops import TextStops


class _Sampler(LogitsProcessor):
    """Draws each token itself, as `GraphEngine` does, and keeps its log-prob and the entropy.

    `generate` calls it once a token and takes the likeliest by what it returns: the token drawn.
    """

    def __init__(self, sampling: Sampling, uniform: Tensor) -> None:
        self.sampling = sampling
        self.uniform = uniform
        self.logprobs: list[Tensor] = []
        self.entropies: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        s, taken = self.sampling, len(self.logprobs)
        if taken < s.min_new_tokens:
            scores[:, s.stop_ids] = EXCLUDED_LOGIT
        tokens, logprobs, entropies = sample(scores, self.uniform[:, taken], s.temperature)
        self.logprobs.append(logprobs)
        self.entropies.append(entropies)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class HFEngine:
    """Samples with `model.generate`, whatever the parent's generation_config asks for.

    A reply ends at the first stop id, or at the token that completes a text of `text_matcher`, but
    at none of its first `min_new_tokens` tokens; see `TextStops`.
    """

    def __init__(self, model: Any, sampling: Sampling) -> None:
        self.model = model
        self.sampling = sampling

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], uniform: Tensor) -> Rollout:
        """One reply for each prompt; see `Rollout` and `RolloutEngine` for shapes."""
        s, device = self.sampling, self.model.device
        prompt_ids, prompt_mask = (t.to(device) for t in left_pad(prompts, s.pad_id))
        sampler = _Sampler(s, uniform.to(device))
        texts = None
        if s.text_matcher is not None:
            texts = TextStops(s.text_matcher, prompt_ids.shape[1], s.min_new_tokens)
        with self._plain_generation():
            ids = self.model.generate(
                input_ids=prompt_ids,
                attention_mask=prompt_mask.long(),
                generation_config=self._settings(),
                logits_processor=LogitsProcessorList([sampler]),
                stopping_criteria=StoppingCriteriaList([texts] if texts else []),
                synced_gpus=False,
            )
        response = ids[:, prompt_ids.shape[1] :]
        text_stops = torch.stack(texts.met, dim=1) if texts else None
        stops = torch.tensor(s.stop_ids, device=device)
        mask, ended = response_mask(response, stops, text_stops)
        logprobs, entropies = (
            torch.stack(each, dim=1) for each in (sampler.logprobs, sampler.entropies)
        )
        return Rollout(
            ids=ids,
            mask=torch.cat([prompt_mask, mask], dim=1),
            response_mask=mask,
            logprobs=torch.where(mask, logprobs, 0.0),
            ended=ended,
            entropy=torch.where(mask, entropies, 0.0),
        )

    def _settings(self) -> GenerationConfig:
        return GenerationConfig(
            do_sample=False,  # the sampler leaves one token
            max_new_tokens=self.sampling.max_new_tokens,
            eos_token_id=self.sampling.stop_ids,
            pad_token_id=self.sampling.pad_id,
        )

    @contextmanager
    def _plain_generation(self) -> Iterator[None]:
        """Eval mode, autocast as in training, and no settings from the checkpoint.

        `generate` fills every setting left open from the model's own generation_config, which may
        hold a top_k, a repetition penalty or a minimum length that no log-prob would know of.
        """
        theirs, training = self.model.generation_config, self.model.training
        device = self.model.device.type
        self.model.generation_config = GenerationConfig()
        self.model.eval()
        try:
            # Layers that are compiled for training would be compiled anew for every length here.
            with (
                torch.compiler.set_stance("force_eager"),
                torch.autocast(device, dtype=torch.bfloat16, enabled=self.sampling.autocast),
            ):
                yield
        finally:
            self.model.generation_config = theirs
            self.model.train(training)
