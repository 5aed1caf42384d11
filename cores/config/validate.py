"""Values that parse but cannot work: ranges and combinations, before anything heavy is imported."""

import math
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from cores.config.ppo_checks import ppo_problems
from cores.config.schema import Config
from cores.config.sources import OneSource, SourceSection, WeightedSource

POSITIVE = """data.sft.prompt_tokens data.preference.prompt_tokens data.prompts.prompt_tokens
sft.epochs sft.learning_rate sft.batch_size sft.microbatch_size sft.max_length
sft.max_grad_norm reward.epochs reward.learning_rate reward.batch_size reward.microbatch_size
reward.max_length reward.max_grad_norm ppo.updates ppo.batch_size ppo.minibatch_size
ppo.microbatch_size ppo.epochs ppo.max_prompt_length ppo.max_new_tokens ppo.temperature
ppo.actor_learning_rate ppo.critic_learning_rate ppo.max_grad_norm ppo.clip ppo.value_clip
ppo.actor_adam.eps ppo.critic_adam.eps ppo.kl_horizon ppo.samples_per_prompt
checkpoint.keep""".split()
NOT_NEGATIVE = """seed data.inspect sft.weight_decay sft.lora.rank reward.weight_decay
reward.center_coef reward.lora.rank ppo.actor_adam.weight_decay ppo.critic_adam.weight_decay
ppo.min_new_tokens ppo.critic_warmup ppo.entropy_coef ppo.ptx_coef ppo.length_penalty
ppo.kl_coef ppo.missing_eos_penalty ppo.reward_clip ppo.eval_prompts ppo.eval_every
ppo.sample_every
ppo.lora.rank checkpoint.keep_weights faults.max_skips""".split()
SHARES = """sft.warmup_ratio sft.lora.dropout reward.warmup_ratio reward.lora.dropout
ppo.warmup_ratio ppo.gamma ppo.lam""".split()
POSITIVE_IF_SET = """data.sft.limit data.preference.limit data.prompts.limit sft.max_steps
reward.calibration_tokens reward.max_steps ppo.keep_best ppo.kl_target ppo.early_stop_kl
ppo.clip_high ppo.microbatch_tokens checkpoint.every_steps checkpoint.every_minutes
checkpoint.stop_after_minutes ppo.reward_timeout""".split()


def value_of(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def check(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong and what to do) for each impossible value."""
    for key in POSITIVE + POSITIVE_IF_SET:
        value = value_of(config, key)
        unset = value is None and key in POSITIVE_IF_SET
        if not unset and (value is None or not 0 < value < math.inf):
            yield key, f"{value} must be above 0."
    for key in NOT_NEGATIVE:
        value = value_of(config, key)
        if value is None or not 0 <= value < math.inf:
            yield key, f"{value} must not be below 0."
    for key in SHARES:
        if value_of(config, key) is None or not 0 <= value_of(config, key) <= 1:
            yield key, f"{value_of(config, key)} must be between 0 and 1."
    yield from _combinations(config)


def _combinations(config: Config) -> Iterator[tuple[str, str]]:
    if not 0 <= config.data.test_fraction < 1:
        yield "data.test_fraction", f"{config.data.test_fraction} must be at least 0 and below 1."
    yield from ppo_problems(config.ppo)
    if config.reward.calibration_samples < 2:
        yield "reward.calibration_samples", "must be at least 2, to have a standard deviation."
    tokens = config.reward.calibration_tokens
    if tokens is not None and tokens <= config.ppo.min_new_tokens:
        yield (
            "reward.calibration_tokens",
            f"{tokens} must be above ppo.min_new_tokens {config.ppo.min_new_tokens}, so that a "
            "reply can stop.",
        )
    for name in config.logging.trackers:
        if find_spec(name) is None:
            yield (
                "logging.trackers",
                f"the package {name} is not installed; run `pip install {name}`, or leave it out "
                "(metrics.jsonl is always written).",
            )
    if config.model.quantization == "bf16" and config.model.precision != "bf16":
        yield (
            "model.quantization",
            "bf16 holds weights as computing in bf16 rounds them; set model.precision bf16, or "
            "this to none.",
        )
    if config.model.quantization in ("8bit", "4bit") and find_spec("bitsandbytes") is None:
        yield (
            "model.quantization",
            f"{config.model.quantization} needs the package bitsandbytes, which is not installed; "
            "run `pip install bitsandbytes`, or set it to none.",
        )
    if config.sft.packing and config.data.sft.streaming:
        yield (
            "sft.packing",
            "rows that are read while training are not packed; set sft.packing or "
            "data.sft.streaming to false.",
        )
    if config.ppo.ptx_coef and config.data.sft.streaming:
        yield (
            "ppo.ptx_coef",
            "stage 3 draws whole rows of data.sft again and again, which a stream does not have; "
            "set ppo.ptx_coef to 0 or data.sft.streaming to false.",
        )
    yield from _template(config)
    for stage in ("sft", "preference", "prompts"):
        yield from _sources(config, getattr(config.data, stage), f"data.{stage}")
    yield from _streaming(config)


def _sources(config: Config, section: SourceSection, key: str) -> Iterator[tuple[str, str]]:
    """One source or several, each with a path and a weight."""
    if section.sources:
        if section.path is not None:
            yield (
                f"{key}.path",
                f"{section.path} stands beside {key}.sources; remove one of them, or give "
                f"--{key}.sources '[]' or --{key}.path null on the command line.",
            )
        for field in fields(OneSource):
            if getattr(section, field.name) != field.default:
                yield f"{key}.{field.name}", f"belongs into the items of {key}.sources, one by one."
    for item, source in _items(section, key):
        if source.path is None:
            yield f"{item}.path", "is not set; give the item the path of its rows, or remove it."
        if not 0 < source.weight < math.inf:
            yield (
                f"{item}.weight",
                f"{source.weight:g} must be above 0; to leave the source out remove its item.",
            )
        for name in ("limit", "prompt_tokens"):
            value = getattr(source, name)
            if value is not None and value < 1:
                yield f"{item}.{name}", f"{value} must be above 0."
    places: list[tuple[str, OneSource]] = [(key, section), *_items(section, key)]
    for place, one in places:
        if one.transcripts and config.template.kind == "none":
            yield (
                f"{place}.transcripts",
                'takes texts apart at "Human:" and "Assistant:", and template.kind none would put '
                "nothing back; turn it off for verbatim texts, or choose kind chat or roles.",
            )


def _items(section: SourceSection, key: str) -> list[tuple[str, WeightedSource]]:
    return [(f"{key}.sources[{i}]", source) for i, source in enumerate(section.sources)]


def _streaming(config: Config) -> Iterator[tuple[str, str]]:
    """Streaming is for texts of stage 1, one source, and a fixed number of steps."""
    for name in ("preference", "prompts"):
        if getattr(config.data, name).streaming:
            yield f"data.{name}.streaming", "is for stage 1 (data.sft) only; turn it off."
    section, key = config.data.sft, "data.sft.streaming"
    if not section.streaming:
        return
    if config.sft.max_steps is None:
        yield key, "needs sft.max_steps, as the number of rows is not known; set it."
    if section.sources:
        yield key, "reads one source: give it as data.sft.path, or turn streaming off."
    if section.transcripts or section.format not in (None, "text"):
        yield key, "reads rows of format text only, without transcripts; turn it off for others."


def _template(config: Config) -> Iterator[tuple[str, str]]:
    template = config.template
    written = [template.system, template.user, template.assistant]
    if template.kind == "roles" and not any(r.prefix or r.suffix for r in written):
        yield (
            "template.kind",
            "roles needs a prefix or suffix for at least one role (template.user, "
            "template.assistant); for verbatim text choose none.",
        )
    if template.kind != "roles" and any(r.prefix or r.suffix for r in written):
        yield (
            "template.kind",
            f"{template.kind} does not use template.system, template.user and template.assistant; "
            "remove them or choose roles.",
        )
    if template.kind == "none" and template.system_prompt is not None:
        yield (
            "template.system_prompt",
            "template.kind none takes text verbatim and has no place for a system turn; remove it, "
            "or choose chat or roles.",
        )
