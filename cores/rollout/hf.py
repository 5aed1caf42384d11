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
    StopStringCriteria,
)

from cores.data import left_pad
from cores.models.vocabulary import EXCLUDED_LOGIT
from cores.rollout.engine import Rollout, response_mask
from cores.rollout.sampling import sample
from cores.rollout.stops import TextStops


class _Sampler(LogitsProcessor):
    """Draws each token itself, as `GraphEngine` does, and keeps its log-prob and the entropy.

    `generate` calls it once a token and takes the likeliest by what it returns: the token drawn.
    """

    def __init__(
        self, uniform: Tensor, temperature: float, stop_ids: list[int], min_new_tokens: int
    ) -> None:
        self.uniform = uniform
        self.temperature = temperature
        self.stop_ids = stop_ids
        self.min_new_tokens = min_new_tokens
        self.logprobs: list[Tensor] = []
        self.entropies: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        taken = len(self.logprobs)
        if taken < self.min_new_tokens:
            scores[:, self.stop_ids] = EXCLUDED_LOGIT
        tokens, logprobs, entropies = sample(scores, self.uniform[:, taken], self.temperature)
        self.logprobs.append(logprobs)
        self.entropies.append(entropies)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)


class HFEngine:
    """Samples with `model.generate`, unfiltered: temperature and minimum length only, which the
    actor's log-probs know of, whatever the parent's generation_config asks for.

    A reply ends at the first stop id, or at the token that completes a text of `text_matcher`, but
    at none of its first `min_new_tokens` tokens; see `TextStops`.
    """

    def __init__(
        self,
        model: Any,
        pad_id: int,
        stop_ids: list[int],
        max_new_tokens: int,
        temperature: float,
        autocast: bool = False,
        min_new_tokens: int = 0,
        text_matcher: StopStringCriteria | None = None,
    ) -> None:
        self.model = model
        self.pad_id = pad_id
        self.stop_ids = stop_ids
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.autocast = autocast
        self.min_new_tokens = min_new_tokens
        self.text_matcher = text_matcher

    @torch.no_grad()
    def generate(self, prompts: list[list[int]], uniform: Tensor) -> Rollout:
        """One reply for each prompt; see `Rollout` and `RolloutEngine` for shapes."""
        device = self.model.device
        prompt_ids, prompt_mask = (t.to(device) for t in left_pad(prompts, self.pad_id))
        sampler = _Sampler(uniform.to(device), self.temperature, self.stop_ids, self.min_new_tokens)
        texts = None
        if self.text_matcher is not None:
            texts = TextStops(self.text_matcher, prompt_ids.shape[1], self.min_new_tokens)
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
        stops = torch.tensor(self.stop_ids, device=device)
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
            max_new_tokens=self.max_new_tokens,
            eos_token_id=self.stop_ids,
            pad_token_id=self.pad_id,
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
                torch.autocast(device, dtype=torch.bfloat16, enabled=self.autocast),
            ):
                yield
        finally:
            self.model.generation_config = theirs
            self.model.train(training)
