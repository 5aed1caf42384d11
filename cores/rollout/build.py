"""Which engine samples, and what ends a reply before its last position."""

from importlib.util import find_spec
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase, StopStringCriteria

from cores.config import Config, PPOSection
from cores.errors import UserError
from cores.models.body import attention_problem, looks_for_outliers
from cores.rollout.engine import RolloutEngine, Sampling
from cores.rollout.graph.engine import GraphEngine
from cores.rollout.hf import HFEngine
from cores.rollout.vllm import VllmEngine, vllm_problem
from cores.runtime.launch import Launch

REFUSED = "rollout.engine: {} cannot run here: {}. Set it to auto or hf."


def build_engine(
    config: Config,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    launch: Launch,
    trains: bool = False,
) -> RolloutEngine:
    """The engine that samples from `model` as stage 3 does, in stage 3 and for calibration.

    `trains`: in stage 3 itself. Elsewhere few replies are wanted, and `vllm` is as `auto`. Raises
    UserError if the tokenizer cannot write a stop string, or the engine asked for cannot run this
    model. A line on the screen says why where `auto` takes the slow one.
    """
    ppo, wanted = config.ppo, config.rollout.engine
    prefix = config.model.attention == "prefix"
    serves = trains and wanted == "vllm"
    problem = None if wanted == "hf" or serves else _problem(config) or graph_problem(model)
    if problem and wanted == "graph":
        raise UserError(REFUSED.format(wanted, problem))
    if problem:
        launch.say(f"rollouts by Hugging Face generate, which is slow: {problem}")
    pad: Any = tokenizer.pad_token_id
    sampling = Sampling(
        pad_id=pad,
        stop_ids=stop_ids(ppo, tokenizer),
        max_new_tokens=max_new_tokens,
        temperature=ppo.temperature,
        min_new_tokens=ppo.min_new_tokens,
        autocast=launch.half,
        text_matcher=text_matcher(ppo, tokenizer),
    )
    if serves:
        return VllmEngine(
            model,
            sampling,
            launch.world,
            max_num_seqs=ppo.batch_size // launch.world,
            max_model_len=ppo.max_prompt_length + max_new_tokens,
            kv_cache_memory_bytes=int(config.rollout.cache_gb * 2**30),
        )
    if problem or wanted == "hf":
        return HFEngine(model, sampling, prefix)
    # Captured passes hold memory of their own, and would not take what is lent.
    return GraphEngine(model, sampling, lends=ppo.passes != "captured")


def check_engine(config: Config, model: PretrainedConfig, device: torch.device) -> None:
    """UserError if the engine asked for cannot run this architecture here; reads no weights."""
    wanted, problem = config.rollout.engine, None
    if wanted == "graph":
        problem = _problem(config) or attention_problem(model) or _device_problem(device)
    elif wanted == "vllm":
        problem = vllm_problem(config, model)
    if problem:
        raise UserError(REFUSED.format(wanted, problem))


def _problem(config: Config) -> str | None:
    return "model.attention is prefix" if config.model.attention == "prefix" else None


def _device_problem(device: torch.device) -> str | None:
    if device.type == "cuda" and find_spec("triton") is None:
        return "triton is not installed"
    return None


def graph_problem(model: Any) -> str | None:
    """What keeps `GraphEngine` from sampling from `model`, if anything."""
    if any(hasattr(p, "ds_id") or isinstance(p, DTensor) for p in model.parameters()):
        return "the weights are shards (ZeRO-3, FSDP2)"
    if model.device.type == "cuda" and looks_for_outliers(model):
        return "layers in 8 bits look for outliers, which a captured graph cannot"
    return _device_problem(model.device) or attention_problem(model.config)


def stop_ids(ppo: PPOSection, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a reply: the end-of-sequence token and `ppo.stop_token_ids`."""
    eos: Any = tokenizer.eos_token_id
    return list(dict.fromkeys([eos, *ppo.stop_token_ids]))  # each once: gradients pass through


def text_matcher(ppo: PPOSection, tokenizer: PreTrainedTokenizerBase) -> StopStringCriteria | None:
    """Finds `ppo.stop_strings` where a row's newest token completes one; None without any.

    It knows every token's text or bytes, so a string may start and end within tokens. Raises
    UserError if no token of the vocabulary has a character of the strings.
    """
    if not ppo.stop_strings:
        return None
    try:
        return StopStringCriteria(tokenizer, ppo.stop_strings)
    except ValueError as error:
        raise UserError(
            f"ppo.stop_strings: {ppo.stop_strings} cannot be found in replies of this tokenizer "
            f"({error}). Choose texts that it can write, or name ids in ppo.stop_token_ids."
        ) from error
