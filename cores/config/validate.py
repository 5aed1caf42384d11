"""Values that parse but cannot work: ranges and combinations, before anything heavy is imported."""

import os
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec
from typing import Any

from cores.config.limits import range_problems
from cores.config.lora import LoraSection
from cores.config.ppo_checks import ppo_problems
from cores.config.schema import Config
from cores.config.sources import OneSource, SourceSection, WeightedSource
from cores.errors import UserError


def check(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong and what to do) for each impossible value."""
    yield from range_problems(config)
    yield from _paths(config)
    yield from _combinations(config)


def _paths(config: Config) -> Iterator[tuple[str, str]]:
    found: list[tuple[str, Any]] = [("output_dir", config), ("model.path", config.model)]
    found += [("sft.path", config.sft), ("reward.path", config.reward)]
    for stage in ("sft", "preference", "prompts"):
        section = getattr(config.data, stage)
        for place, source in [(f"data.{stage}", section), *_items(section, f"data.{stage}")]:
            found += [(f"{place}.path", source), (f"{place}.test_path", source)]
    for key, holder in found:
        path = getattr(holder, key.rpartition(".")[2])
        if path is not None and not path.strip():
            yield key, "is empty; give a path."
        elif path is not None and os.path.expanduser(path).startswith("~"):
            yield key, f"{path}: there is no such user's home; write the whole path, or ./~."


def _combinations(config: Config) -> Iterator[tuple[str, str]]:
    yield from ppo_problems(config.ppo)
    for stage in ("sft", "reward", "ppo"):
        lora, key = getattr(config, stage).lora, f"{stage}.lora"
        for name in ("alpha", "dropout", "target_modules", "merge"):
            if not lora.rank and getattr(lora, name) != getattr(LoraSection(), name):
                yield f"{key}.{name}", f"has no effect with {key}.rank 0; set a rank, or remove it."
    yield from _elsewhere(config)
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


def _elsewhere(config: Config) -> Iterator[tuple[str, str]]:
    """Models from elsewhere that would not be used."""
    for stage in ("sft", "reward"):
        section = getattr(config, stage)
        if section.revision is not None and section.path is None:
            yield f"{stage}.revision", f"has no effect without {stage}.path; set that to a hub id."
    if config.reward.path is not None and "model" not in config.ppo.rewards:
        yield (
            "reward.path",
            f"{config.reward.path} would not be used, as ppo.rewards does not name model; remove "
            "it, or name the model there (weight 0 logs it alone).",
        )


def check_run(config: Config, stage: str) -> None:
    """UserError if a model from elsewhere stands in for `stage`."""
    path = getattr(config, stage).path
    if path is not None:
        raise UserError(
            f"{stage}.path is set: this stage is not run, as {path} takes the place of what it "
            f"would write. Go on with the next stage, or remove the key (--{stage}.path null)."
        )


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
