"""Values that parse but cannot work: ranges and combinations, before anything heavy is imported.

Each rule yields sentences as they are shown: "KEY: what is wrong; what to do."
"""

import os
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec

from cores.config.data import OneSource, SourceSection, WeightedSource
from cores.config.effects import effect_problems
from cores.config.limits import LARGEST, range_problems
from cores.config.ppo import ESTIMATORS, PPOSection
from cores.config.schema import Config
from cores.config.shapes import shape_problems
from cores.config.template import template_problems
from cores.config.training import training
from cores.errors import UserError


def check(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong and what to do) for each impossible value."""
    yield from range_problems(config)
    ppo = config.ppo
    for sentences in (
        _paths(config), _sizes(ppo), _policy(ppo), _estimator(ppo), effect_problems(config),
        _elsewhere(config), _together(config), _texts(config), _rows(config), _streaming(config),
        shape_problems(config), template_problems(config.template),
        training(config),
    ):  # fmt: skip
        for sentence in sentences:
            key, _, problem = sentence.partition(": ")
            yield key, problem


def check_run(config: Config, stage: str) -> None:
    """UserError if a model from elsewhere stands in for `stage`."""
    path = getattr(config, stage).path
    if path is not None:
        raise UserError(
            f"{stage}.path is set: this stage is not run, as {path} takes the place of what it "
            f"would write. Go on with the next stage, or remove the key (--{stage}.path null)."
        )


def _paths(config: Config) -> Iterator[str]:
    found: dict[str, str | None] = {"output_dir": config.output_dir}
    for stage in ("model", "sft", "reward"):
        found[f"{stage}.path"] = getattr(config, stage).path
    for key, section in _data(config):
        for place, source in [(key, section), *_items(section, key)]:
            found |= {f"{place}.path": source.path, f"{place}.test_path": source.test_path}
    shown = config.data.inspect_json
    for key, path in found.items():
        if path and shown and os.path.realpath(path) == os.path.realpath(shown):
            yield f"data.inspect_json: {shown} is {key} and would be lost; name another file."
        if path is not None and not path.strip():
            yield f"{key}: is empty; give a path."
        elif path is not None and os.path.expanduser(path).startswith("~"):
            yield f"{key}: {path}: there is no such user's home; write the whole path, or ./~."


def _sizes(ppo: PPOSection) -> Iterator[str]:
    for key, so_that in {
        "minibatch_size": "every optimizer step sees as many replies",
        "samples_per_prompt": "every prompt has as many replies",
    }.items():
        size = getattr(ppo, key)
        if size > 0 and ppo.batch_size % size:
            yield (
                f"ppo.{key}: {size} does not divide ppo.batch_size {ppo.batch_size}; choose a "
                f"divisor, so that {so_that}."
            )
    longest = ppo.max_prompt_length + ppo.max_new_tokens
    if ppo.microbatch_tokens is not None and ppo.microbatch_tokens < longest:
        yield (
            f"ppo.microbatch_tokens: {ppo.microbatch_tokens} is less than one row may have: "
            f"ppo.max_prompt_length + ppo.max_new_tokens is {longest}; choose at least that."
        )
    if ppo.lora.dropout:
        yield f"ppo.lora.dropout: {ppo.lora.dropout} must be 0: old and new log-probs must agree."
    if ppo.critic_warmup >= ppo.updates:
        yield (
            f"ppo.critic_warmup: {ppo.critic_warmup} of {ppo.updates} ppo.updates leave none that "
            "trains the actor; choose fewer."
        )


def _policy(ppo: PPOSection) -> Iterator[str]:
    if ppo.kl_in == "loss" and ppo.kl_kind == "k1":
        yield (
            "ppo.kl_kind: k1 as a loss has a gradient of mean 0, whatever the policy; choose k2 or "
            "k3, or ppo.kl_in reward."
        )
    if ppo.kl_target is not None and not ppo.kl_coef:
        yield "ppo.kl_target: steers ppo.kl_coef by factors, and 0 stays 0; start it above 0."
    if ppo.kl_target is not None and ppo.kl_horizon < ppo.batch_size:
        yield (
            f"ppo.kl_horizon: {ppo.kl_horizon:g} is below ppo.batch_size {ppo.batch_size}: kl_coef "
            "would move by more than a fifth an update, or even below 0; choose at least the batch."
        )
    if ppo.ptx_mix == "convex" and ppo.ptx_coef > 1:
        yield f"ppo.ptx_coef: {ppo.ptx_coef} must be at most 1 with ppo.ptx_mix convex."
    if ppo.eval_prompts == 1:
        yield "ppo.eval_prompts: 1 has no deviation to measure by; give at least 2, or 0 for none."
    if not all(ppo.stop_strings):
        yield "ppo.stop_strings: an empty text would stop every reply at once; remove it."
    if ppo.min_new_tokens >= ppo.max_new_tokens:
        yield (
            f"ppo.min_new_tokens: {ppo.min_new_tokens} must be below ppo.max_new_tokens "
            f"{ppo.max_new_tokens}, so that a reply can stop."
        )


def _estimator(ppo: PPOSection) -> Iterator[str]:
    """Of the estimator and of the rewards."""
    name = ppo.estimator
    if ESTIMATORS[name].grouped and ppo.samples_per_prompt < 2:
        yield (
            f"ppo.samples_per_prompt: {ppo.samples_per_prompt}: {name} compares the replies to one "
            "prompt and needs at least 2."
        )
    if name == "coati" and ppo.kl_in == "loss":
        yield "ppo.kl_in: coati pays the KL in the reward; set it to reward."
    if not any(ppo.rewards.values()):
        yield "ppo.rewards: weighs no source; give `model: 1.0`, or a file.py:function."
    for source, weight in ppo.rewards.items():
        if not abs(weight) <= LARGEST:
            yield (
                f"ppo.rewards: the weight of {source} is {weight}; give a number, 0 to log it "
                "alone."
            )
        file, _, function = source.rpartition(":")
        if source != "model" and not (file.endswith(".py") and function.isidentifier()):
            yield f"ppo.rewards: {source!r} is neither `model` nor file.py:function."
    names = [source.rpartition(":")[2] for source in ppo.rewards]
    if len(set(names)) < len(names):
        yield "ppo.rewards: two functions have one name, and each is logged by it; rename one."
    if "std" in names:
        yield "ppo.rewards: score_std is the scores' deviation; give the function another name."
    if "model" not in ppo.rewards and ESTIMATORS[name].critic and ppo.critic_init != "zero":
        yield (
            "ppo.critic_init: the critic cannot start from a reward model that ppo.rewards does "
            "not name; set it to zero, name the model with weight 0, or choose an estimator "
            "without a critic."
        )


def _elsewhere(config: Config) -> Iterator[str]:
    """Models from elsewhere that would not be used, and what calibrates one of ours."""
    if config.reward.path is not None and "model" not in config.ppo.rewards:
        yield (
            f"reward.path: {config.reward.path} would not be used, as ppo.rewards does not name "
            "model; remove it, or name the model there (weight 0 logs it alone)."
        )
    tokens = config.reward.calibration_tokens
    if tokens is not None and tokens <= config.ppo.min_new_tokens:
        yield (
            f"reward.calibration_tokens: {tokens} must be above ppo.min_new_tokens "
            f"{config.ppo.min_new_tokens}, so that a reply can stop."
        )


def _together(config: Config) -> Iterator[str]:
    """Packages that are missing, and options that do not go together."""
    for name in config.logging.trackers:
        if find_spec(name) is None:
            yield (
                f"logging.trackers: the package {name} is not installed; run `pip install {name}`, "
                "or leave it out (metrics.jsonl is always written)."
            )
    model = config.model
    if model.quantization == "bf16" and model.precision != "bf16":
        yield (
            "model.quantization: bf16 holds weights as computing in bf16 rounds them; set "
            "model.precision bf16, or this to none."
        )
    if model.quantization in ("8bit", "4bit") and find_spec("bitsandbytes") is None:
        yield (
            f"model.quantization: {model.quantization} needs the package bitsandbytes, which is "
            "not installed; run `pip install bitsandbytes`, or set it to none."
        )
    if config.sft.packing and config.data.sft.streaming:
        yield (
            "sft.packing: rows that are read while training are not packed; set sft.packing or "
            "data.sft.streaming to false."
        )
    if config.ppo.ptx_coef and config.data.sft.streaming:
        yield (
            "ppo.ptx_coef: stage 3 draws whole rows of data.sft again and again, which a stream "
            "does not have; set ppo.ptx_coef to 0 or data.sft.streaming to false."
        )


def _data(config: Config) -> list[tuple[str, SourceSection]]:
    names = ("sft", "preference", "prompts")
    return [(f"data.{name}", getattr(config.data, name)) for name in names]


def _items(section: SourceSection, key: str) -> list[tuple[str, WeightedSource]]:
    return [(f"{key}.sources[{i}]", source) for i, source in enumerate(section.sources)]


def _rows(config: Config) -> Iterator[str]:
    """Of each stage one source or several, each with a path."""
    for key, section in _data(config):
        items = _items(section, key)
        if items and section.path is not None:
            yield (
                f"{key}.path: {section.path} stands beside {key}.sources; remove one of them, or "
                f"give --{key}.sources '[]' or --{key}.path null on the command line."
            )
        for field in fields(OneSource):
            unset = getattr(OneSource(), field.name)
            if items and getattr(section, field.name) != unset:
                yield f"{key}.{field.name}: belongs into the items of {key}.sources, one by one."
        given = [item for item, source in items if source.loss_weight is not None]
        if given and len(given) < len(items):
            yield f"{given[0]}.loss_weight: is not given for all sources; give each one, or none."
        if given and key == "data.sft":
            unfit = {"sft.packing": config.sft.packing, "ppo.ptx_coef": config.ppo.ptx_coef > 0}
            for name in (name for name, there in unfit.items() if there):
                yield (
                    f"{name}: takes rows of all sources alike, which {given[0]}.loss_weight tells "
                    "apart; turn it off, or remove the weights of losses."
                )
        for item, source in items:
            if source.path is None:
                yield f"{item}.path: is not set; give the item the path of its rows, or remove it."
        for place, one in [(key, section), *items]:
            if one.transcripts and config.template.kind == "none":
                yield (
                    f'{place}.transcripts: takes texts apart at "Human:" and "Assistant:", and '
                    "template.kind none would put nothing back; turn it off for verbatim texts, or "
                    "choose kind chat or roles."
                )


def _texts(config: Config) -> Iterator[str]:
    """What becomes of texts without turns in stage 1."""
    data = config.data
    if data.join is not None and config.sft.packing:
        yield "sft.packing: data.join fills the rows already; set sft.packing to false."
    if data.overlap >= config.sft.max_length:
        yield (
            f"data.overlap: {data.overlap} tokens of each row would be of the one before, which is "
            f"all of sft.max_length {config.sft.max_length}; lower it."
        )


def _streaming(config: Config) -> Iterator[str]:
    """It is for texts of stage 1, and a fixed number of steps."""
    for name in ("preference", "prompts"):
        if getattr(config.data, name).streaming:
            yield f"data.{name}.streaming: is for stage 1 (data.sft) only; turn it off."
    section, key = config.data.sft, "data.sft.streaming"
    if not section.streaming:
        return
    if config.sft.max_steps is None:
        yield f"{key}: needs sft.max_steps, as the number of rows is not known; set it."
    items: list[OneSource] = [*section.sources] or [section]
    if any(one.transcripts or one.format not in (None, "text") for one in items):
        yield f"{key}: reads rows of format text only, without transcripts; turn it off for others."
