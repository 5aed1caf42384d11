"""What a launch asks for, checked against the machine and the configuration before work begins.

accelerate's launcher hands its file on as environment variables; many of its keys would change the
training beside the configuration, and are refused rather than obeyed or ignored.
"""

import json
import os
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import yaml

from cores.config import PPOSection, RewardSection, SFTSection
from cores.errors import UserError
from cores.sharding import fsdp_asked

FILES = "configs/accelerate"
UNSUPPORTED = {
    "ACCELERATE_USE_MEGATRON_LM": f"Megatron-LM is not supported; use {FILES}/zero3.yaml.",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism_config is not supported; remove it.",
}
"""Variable that a launch of this kind sets -> what to say."""
BESIDE_A_FILE = {"zero_stage", "offload_optimizer_device", "offload_param_device"}
"""Inline keys that a DeepSpeed file of its own overrules."""
INLINE = ("gradient_clipping", "gradient_accumulation_steps")
"""Those of accelerate's inline DeepSpeed keys that the stages decide themselves."""
SIZES = "batch_size and microbatch_size are the stages' own configuration"
OWN = {
    "gradient_accumulation_steps": "a step has batch_size rows, taken microbatch_size at a time "
    "(both in the stages' own configuration)",
    "train_batch_size": SIZES,
    "train_micro_batch_size_per_gpu": SIZES,
}
"""Keys of DeepSpeed that the stages decide themselves, and how."""
FSDP_KEYS = {
    "RESHARD_AFTER_FORWARD": ("true", "weights are shards again behind each layer"),
    "AUTO_WRAP_POLICY": ("TRANSFORMER_BASED_WRAP", "a unit is a layer"),
    "TRANSFORMER_CLS_TO_WRAP": ("", "layers are found without it"),
    "IGNORED_MODULES": ("", "all weights are sharded"),
    "BACKWARD_PREFETCH": ("", "torch decides it"),
    "FORWARD_PREFETCH": ("false", "torch decides it"),
    "ACTIVATION_CHECKPOINTING": ("false", "it is --model.gradient_checkpointing true"),
    "ACTIVATION_CHECKPOINTING_OFFLOAD": ("false", "there is --model.gradient_checkpointing true"),
}
"""Keys of FSDP that are not obeyed: the one value that is let pass, and why."""


def option(name: str) -> str | None:
    """What the `accelerate launch` that started this process was given as --`name`."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        key, _, value = word.partition("=")
        if key.replace("-", "_") == f"__{name}":  # accelerate takes hyphens as well
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
    yield from _processes(env, gpus, file)
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
    elif fsdp_asked(env):
        yield from _fsdp(env)


def _processes(env: Mapping[str, str], gpus: int, file: str | None) -> Iterator[str]:
    """For distributed_type "NO" accelerate starts one process, whatever num_processes is, and on
    each machine a run of its own."""
    asked, started = _asked("num_processes", env, file), int(env.get("WORLD_SIZE", "1"))
    machines = _asked("num_machines", env, file)
    if machines > int(env.get("GROUP_WORLD_SIZE", "1")):
        yield (
            f"num_machines is {machines}, but a launch of this kind starts on one. Use "
            f"{FILES}/nodes_ddp.yaml (GPUs) or {FILES}/nodes_cpu.yaml (CPU), or set it to 1."
        )
    if machines > 1 and asked % machines:
        yield (
            f"num_processes is {asked}, which does not divide over num_machines {machines}: it "
            f"counts the processes of all machines. Set it to a multiple of {machines}."
        )
    if asked > started:
        several = f"{FILES}/ddp.yaml (GPUs)" if gpus else f"{FILES}/cpu2.yaml (CPU)"
        yield (
            f"num_processes is {asked}, but a launch of this kind starts {started}. Use {several} "
            f"with num_processes {asked}, or set num_processes to {started}."
        )


def _asked(name: str, env: Mapping[str, str], file: str | None) -> int:
    """A number of accelerate's command line or else of its file; 0 if neither can be read."""
    if "ACCELERATE_MIXED_PRECISION" not in env:  # not launched by accelerate
        return 0
    if (given := option(name)) is not None:
        return int(given) if given.isdecimal() else 0
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8")) if file else None
    except (OSError, ValueError, yaml.YAMLError):  # moved since, say: accelerate has read it
        return 0
    asked = content.get(name) if isinstance(content, dict) else None
    return asked if isinstance(asked, int) else 0


def _machine(env: Mapping[str, str], gpus: int, file: str | None) -> Iterator[str]:
    local = int(env.get("LOCAL_WORLD_SIZE", "1"))
    if gpus and local > gpus:
        yield (
            f"{local} processes, but this machine shows {gpus} GPU{'s' * (gpus > 1)}, and each "
            f"process needs one. Set num_processes to {gpus}."
        )
    if gpus or sharder(env):  # DeepSpeed and FSDP2 run on the CPU, too
        return
    if "LOCAL_WORLD_SIZE" not in env:
        asked = file is not None and env.get("ACCELERATE_USE_CPU", "").lower() == "false"
    else:
        launched = "ACCELERATE_MIXED_PRECISION" in env  # by accelerate, not plain torchrun
        asked = launched and not env.get("CUDA_VISIBLE_DEVICES", "").startswith("-1")
    if asked:
        cpu = f"cpu2.yaml with num_processes {local}" if local > 1 else "cpu.yaml"
        yield (
            f"{local} process{'es' * (local > 1)} on GPUs, but torch sees none here. Use "
            f"{FILES}/{cpu} for the CPU; where there is a GPU, see "
            "that torch is built for it and CUDA_VISIBLE_DEVICES does not hide it."
        )


def _deepspeed(env: Mapping[str, str]) -> Iterator[str]:
    if find_spec("deepspeed") is None:
        yield "DeepSpeed is not installed; run `pip install deepspeed`."
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
    stage = _value(env.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"))  # accelerate's default
    if not _is_stage(stage):
        yield f"zero_stage {stage} is none of 0, 1, 2 and 3; {FILES}/zero3.yaml has 3."
    settings = deepspeed_settings(env)
    for name, why in OWN.items():
        asked = settings.get(name, "auto")
        if asked != "auto" and (name, asked) != ("gradient_accumulation_steps", 1):
            yield f"{name} {asked} is not used: {why}. Remove it."
    for name in ("optimizer", "scheduler"):
        if name in settings:
            yield f"DeepSpeed's own {name} is not used: the stages bring theirs. Remove it."
    for name in ("fp16", "bf16"):
        value = settings.get(name)
        if (value.get("enabled") if isinstance(value, dict) else value) is True:
            yield (
                f"DeepSpeed's {name} is not used: --model.precision bf16 computes in bf16 and "
                f"keeps the weights in fp32. Remove {name}."
            )


def _fsdp(env: Mapping[str, str]) -> Iterator[str]:
    if (version := env.get("FSDP_VERSION", "1")) != "2":
        yield (
            f"fsdp_version {version} is not supported, torch's FSDP2 is. Set fsdp_version to 2, as "
            f"in {FILES}/fsdp2.yaml."
        )
    for name, (value, why) in FSDP_KEYS.items():
        asked = env.get(f"FSDP_{name}", value)
        if asked.lower() != value.lower():
            key = name.lower().replace("cls", "layer_cls")
            yield f"fsdp_{key} {asked} is not used: {why}. Remove it."


def sharder(env: Mapping[str, str]) -> str:
    """What splits models over the processes, by name; empty where nothing does."""
    if env.get("ACCELERATE_USE_DEEPSPEED") == "true":
        return "DeepSpeed"
    return "FSDP2" if fsdp_asked(env) else ""


def deepspeed_settings(env: Mapping[str, str]) -> dict[str, Any]:
    """DeepSpeed's settings as the launch gives them: from its JSON file or inline.

    UserError if the file cannot be read or says no ZeRO stage from 0 to 3.
    """
    path = env.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if not path:
        return {name: _value(env.get(f"ACCELERATE_{name.upper()}", "auto")) for name in INLINE}
    try:
        settings = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"deepspeed_config_file: {path} cannot be read as JSON ({error}). Name a file that "
            f"is there, or use {FILES}/zero3.yaml, which needs none."
        ) from None
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    if not isinstance(zero, dict) or not _is_stage(zero.get("stage")):
        raise UserError(
            f"deepspeed_config_file: {path} does not say the ZeRO stage. It must be an object with "
            '{"zero_optimization": {"stage": 3}}, or another stage from 0 to 3; or use '
            f"{FILES}/zero3.yaml, which needs no such file."
        )
    return settings


def _is_stage(value: Any) -> bool:
    return type(value) is int and 0 <= value <= 3


def _value(text: str) -> Any:
    """A variable as a number if it is one, else as the text it is ("auto", "none")."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_steps(
    section: SFTSection | RewardSection | PPOSection, key: str, env: Mapping[str, str]
) -> None:
    """UserError if DeepSpeed's settings clip otherwise than the stage's section `key`, or the
    launch cannot hold the states of its optimizer as shards."""
    launched = sharder(env)
    settings = deepspeed_settings(env) if launched == "DeepSpeed" else {}
    clipping = settings.get("gradient_clipping", "auto")
    if clipping not in ("auto", "none", section.max_grad_norm):
        raise UserError(
            f"gradient_clipping {clipping} of the launch is not used: {key}.max_grad_norm is "
            f"{section.max_grad_norm}. Remove gradient_clipping from the accelerate file."
        )
    name = "adamw" if isinstance(section, PPOSection) else section.optimizer
    if launched and name != "adamw":
        raise UserError(
            f"{key}.optimizer: {name} does not go with {launched}, which hands optimizers "
            "pieces of the weights and whose states are saved as AdamW has them; choose adamw, or "
            f"launch without {launched}."
        )
