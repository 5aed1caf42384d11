"""Rollouts by Hugging Face `generate`: slow, and right for every architecture."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from cores.data import left_pad
from cores.rollout.engine import Rollout, response_mask


class _Recorder(LogitsProcessor):
    """Applies the temperature and keeps the log-prob of each token that was then sampled.

    `generate` calls it once a token with the ids so far, so the log-prob of a token is read at the
    next call, out of the distribution kept from the call before: one (B, V) tensor at a time.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature
        self.logprobs: list[Tensor] = []
        self._last: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.read(input_ids)
        scaled = scores.float() / self.temperature
        self._last = scaled.log_softmax(dim=-1)
        return scaled

    def read(self, input_ids: Tensor) -> None:
        """Record the log-prob of the newest token of `input_ids`."""
        if self._last is not None:
            self.logprobs.append(self._last.gather(1, input_ids[:, -1:]).squeeze(1))


class HFEngine:
    """Samples with `model.generate`, unfiltered: temperature only, whatever the parent's
    generation_config asks for."""

    def __init__(
        self,
        model: Any,
        pad_id: int,
        stop_ids: list[int],
        max_new_tokens: int,
        temperature: float,
        autocast: bool = False,
    ) -> None:
        self.model = model
        self.pad_id = pad_id
        self.stop_ids = stop_ids
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.autocast = autocast

    @torch.no_grad()
    def generate(self, prompts: list[list[int]]) -> Rollout:
        """One reply for each prompt; see `Rollout` for shapes."""
        device = self.model.device
        prompt_ids, prompt_mask = (t.to(device) for t in left_pad(prompts, self.pad_id))
        recorder = _Recorder(self.temperature)
        with self._plain_generation():
            ids = self.model.generate(
                input_ids=prompt_ids,
                attention_mask=prompt_mask.long(),
                generation_config=self._settings(),
                logits_processor=LogitsProcessorList([recorder]),
                synced_gpus=False,
            )
        recorder.read(ids)
        response = ids[:, prompt_ids.shape[1] :]
        mask, ended = response_mask(response, torch.tensor(self.stop_ids, device=device))
        logprobs = torch.stack(recorder.logprobs, dim=1)
        return Rollout(
            ids=ids,
            mask=torch.cat([prompt_mask, mask], dim=1),
            response_mask=mask,
            logprobs=torch.where(mask, logprobs, 0.0),
            ended=ended,
        )

    def _settings(self) -> GenerationConfig:
        return GenerationConfig(
            do_sample=True,
            temperature=1.0,  # the recorder divides, so that what it records is what was sampled
            top_k=0,
            top_p=1.0,
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
            with torch.autocast(device, dtype=torch.bfloat16, enabled=self.autocast):
                yield
        finally:
            self.model.generation_config = theirs
            self.model.train(training)
