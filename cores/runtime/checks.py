"""What a launch asks for, checked against the machine and the configuration before work begins.

accelerate's launcher hands its file on as environment variables; many of its keys would change the
training beside the configuration, and are refused rather than obeyed or ignored.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from cores.config import PPOSection, RewardSection, SFTSection
from cores.errors import UserError

ASKED = dict(os.environ)
"""The environment as the launcher left it; trainers add to it later."""
FILES = "configs/accelerate"
UNSUPPORTED = {
    "ACCELERATE_USE_FSDP": f"FSDP is not supported; {FILES}/zero3.yaml shards as much.",
    "ACCELERATE_USE_MEGATRON_LM": f"Megatron-LM is not supported; use {FILES}/zero3.yaml.",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config is not supported; remove it.",
}
"""Variable that a launch of this kind sets -> what to say."""
BESIDE_A_FILE = {"zero_stage", "offload_optimizer_device", "offload_param_device"}
"""Inline keys that a DeepSpeed file of its own overrules."""
INLINE = ("gradient_clipping", "gradient_accumulation_steps")
"""Those of accelerate's inline DeepSpeed keys that the stages decide themselves."""


def config_file() -> str | None:
    """The file given to the `accelerate launch` that started this process."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name == "--config_file":
            return value or following
    return None


def check_launch(env: Mapping[str, str], gpus: int, file: str | None) -> None:
    """UserError if the launch cannot run on `gpus` GPUs, or asks for what is not ours to obey."""
    where = f"{file}: " if file else "the launch: "
    for problem in _problems(env, gpus, file):
        raise UserError(where + problem)


def _problems(env: Mapping[str, str], gpus: int, file: str | None) -> Iterator[str]:
    for name, text in UNSUPPORTED.items():
        if env.get(name, "false").lower() == "true":
            yield text
    yield from _machine(env, gpus, file)
    precision = env.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        yield (
            f"mixed_precision {precision} would compute in another precision than the "
            'configuration says. Set mixed_precision to "no" there and choose with '
            "--model.precision bf16 (or fp32)."
        )
    if env.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        yield "compiling (dynamo_config) is not supported; remove dynamo_config."
    if env.get("ACCELERATE_USE_DEEPSPEED") == "true":
        yield from _deepspeed(env)


def _machine(env: Mapping[str, str], gpus: int, file: str | None) -> Iterator[str]:
    local = int(env.get("LOCAL_WORLD_SIZE", "1"))
    if gpus and local > gpus:
        yield (
            f"{local} processes, but this machine shows {gpus} GPU{'s' * (gpus > 1)}, and each "
            f"process needs one. Set num_processes to {gpus}."
        )
    if gpus or env.get("ACCELERATE_USE_DEEPSPEED") == "true":  # DeepSpeed runs on the CPU, too
        return
    if "LOCAL_WORLD_SIZE" not in env:
        asked = file is not None and env.get("ACCELERATE_USE_CPU", "").lower() == "false"
    else:
        launched = "ACCELERATE_MIXED_PRECISION" in env  # by accelerate, not plain torchrun
        asked = launched and not env.get("CUDA_VISIBLE_DEVICES", "").startswith("-1")
    if asked:
        yield (
            f"{local} process{'es' * (local > 1)} on GPUs, but torch sees none here. Use "
            f"{FILES}/cpu{local if local > 1 else ''}.yaml for the CPU; where there is a GPU, see "
            "that torch is built for it and CUDA_VISIBLE_DEVICES does not hide it."
        )


def _deepspeed(env: Mapping[str, str]) -> Iterator[str]:
    if env.get("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false") == "true":
        yield (
            "zero3_init_flag true would shard models while they are loaded; here they are loaded "
            "whole and sharded afterwards. Set zero3_init_flag to false."
        )
    named = set(env.get("ACCELERATE_CONFIG_DS_FIELDS", "").split(","))
    if "deepspeed_config_file" in named and named & BESIDE_A_FILE:
        yield (
            f"{', '.join(sorted(named & BESIDE_A_FILE))} beside deepspeed_config_file would not be "
            "used. Remove it, or set it in that file."
        )
    settings = deepspeed_settings(env)
    steps = settings.get("gradient_accumulation_steps", "auto")
    if steps not in (1, "auto"):
        yield (
            f"gradient_accumulation_steps {steps:g} is not used: a step has batch_size rows, taken "
            "microbatch_size at a time (both in the stages' own configuration). Remove it."
        )
    for name in ("optimizer", "scheduler"):
        if name in settings:
            yield f"DeepSpeed's own {name} is not used: the stages bring theirs. Remove it."
    for name in ("fp16", "bf16"):
        if (settings.get(name) or {}).get("enabled") is True:
            yield (
                f"DeepSpeed's {name} is not used: --model.precision bf16 computes in bf16 and "
                f"keeps the weights in fp32. Remove {name}."
            )


def deepspeed_settings(env: Mapping[str, str]) -> dict[str, Any]:
    """DeepSpeed's settings as the launch gives them: from its JSON file or inline."""
    path = env.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if path:
        try:
            return json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"deepspeed_config_file: {path} cannot be read as JSON ({error}). Name a file that "
                f"is there, or use {FILES}/zero3.yaml, which needs none."
            ) from None
    inline = {}
    for name in INLINE:
        value = env.get(f"ACCELERATE_{name.upper()}", "auto")
        inline[name] = value if value in ("auto", "none") else float(value)
    return inline


def check_clipping(
    section: SFTSection | RewardSection | PPOSection, key: str, env: Mapping[str, str]
) -> None:
    """UserError if DeepSpeed's settings clip otherwise than the stage's section `key`."""
    if env.get("ACCELERATE_USE_DEEPSPEED") != "true":
        return
    clipping = deepspeed_settings(env).get("gradient_clipping", "auto")
    if clipping not in ("auto", "none", section.max_grad_norm):
        raise UserError(
            f"gradient_clipping {clipping} of the launch is not used: {key}.max_grad_norm is "
            f"{section.max_grad_norm}. Remove gradient_clipping from the accelerate file."
        )
