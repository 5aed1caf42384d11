"""Values that parse but cannot work: ranges and combinations, before anything heavy is imported.

A rule is whether it is broken, and the sentence that is shown then: "KEY: what is wrong; what to
do."
"""

import os
from collections.abc import Iterator
from dataclasses import fields
from importlib.util import find_spec

from cores.config.data import OneSource, SourceSection
from cores.config.effects import effect_problems
from cores.config.limits import LARGEST, range_problems
from cores.config.ppo import ESTIMATORS, PPOSection
from cores.config.schema import Config
from cores.config.template import ROLES, RoleTemplate, TemplateSection
from cores.errors import UserError

Rules = Iterator[tuple[object, str]]


def check(config: Config) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong and what to do) for each impossible value."""
    yield from range_problems(config)
    ppo = config.ppo
    for rules in (
        _paths(config), _sizes(ppo), _policy(ppo), _estimator(ppo),
        ((True, sentence) for sentence in effect_problems(config)),
        _together(config), _rows(config), _streaming(config), _shapes(config),
        _template(config.template), _steps(config),
    ):  # fmt: skip
        for broken, sentence in rules:
            key, _, problem = sentence.partition(": ")
            if broken:
                yield key, problem


def check_run(config: Config, stage: str) -> None:
    """UserError if a model from elsewhere stands in for `stage`."""
    path = getattr(config, stage).path
    if path is not None:
        raise UserError(
            f"{stage}.path is set: this stage is not run, as {path} takes the place of what it "
            f"would write. Go on with the next stage, or remove the key (--{stage}.path null)."
        )


def _paths(config: Config) -> Rules:
    found: dict[str, str | None] = {"output_dir": config.output_dir}
    for stage in ("model", "sft", "reward"):
        found[f"{stage}.path"] = getattr(config, stage).path
    for key, section in _data(config):
        for place, source in section.items(key):
            found |= {f"{place}.path": source.path, f"{place}.test_path": source.test_path}
    shown = config.data.inspect_json
    for key, path in found.items():
        lost = path and shown and os.path.realpath(path) == os.path.realpath(shown)
        yield lost, f"data.inspect_json: {shown} is {key} and would be lost; name another file."
        yield path is not None and not path.strip(), f"{key}: is empty; give a path."
        homeless = path is not None and os.path.expanduser(path).startswith("~")
        yield (
            homeless,
            f"{key}: {path}: there is no such user's home; write the whole path, or ./~.",
        )


def _sizes(ppo: PPOSection) -> Rules:
    for key, so_that in {
        "minibatch_size": "every optimizer step sees as many replies",
        "samples_per_prompt": "every prompt has as many replies",
    }.items():
        size = getattr(ppo, key)
        yield (size > 0 and ppo.batch_size % size,
               f"ppo.{key}: {size} does not divide ppo.batch_size {ppo.batch_size}; choose a "
               f"divisor, so that {so_that}.")  # fmt: skip
    longest = ppo.max_prompt_length + ppo.max_new_tokens
    yield from (
        (ppo.microbatch_tokens is not None and ppo.microbatch_tokens < longest,
         f"ppo.microbatch_tokens: {ppo.microbatch_tokens} is less than one row may have: "
         f"ppo.max_prompt_length + ppo.max_new_tokens is {longest}; choose at least that."),
        (ppo.lora.dropout,
         f"ppo.lora.dropout: {ppo.lora.dropout} must be 0: old and new log-probs must agree."),
        (ppo.critic_warmup >= ppo.updates,
         f"ppo.critic_warmup: {ppo.critic_warmup} of {ppo.updates} ppo.updates leave none that "
         "trains the actor; choose fewer."),
    )  # fmt: skip


def _policy(ppo: PPOSection) -> Rules:
    yield from (
        (ppo.kl_in == "loss" and ppo.kl_kind == "k1",
         "ppo.kl_kind: k1 as a loss has a gradient of mean 0, whatever the policy; choose k2 or "
         "k3, or ppo.kl_in reward."),
        (ppo.kl_target is not None and not ppo.kl_coef,
         "ppo.kl_target: steers ppo.kl_coef by factors, and 0 stays 0; start it above 0."),
        (ppo.kl_target is not None and ppo.kl_horizon < ppo.batch_size,
         f"ppo.kl_horizon: {ppo.kl_horizon:g} is below ppo.batch_size {ppo.batch_size}: kl_coef "
         "would move by more than a fifth an update, or even below 0; choose at least the batch."),
        (ppo.ptx_mix == "convex" and ppo.ptx_coef > 1,
         f"ppo.ptx_coef: {ppo.ptx_coef} must be at most 1 with ppo.ptx_mix convex."),
        (ppo.eval_prompts == 1,
         "ppo.eval_prompts: 1 has no deviation to measure by; give at least 2, or 0 for none."),
        (not all(ppo.stop_strings),
         "ppo.stop_strings: an empty text would stop every reply at once; remove it."),
        (ppo.min_new_tokens >= ppo.max_new_tokens,
         f"ppo.min_new_tokens: {ppo.min_new_tokens} must be below ppo.max_new_tokens "
         f"{ppo.max_new_tokens}, so that a reply can stop."),
    )  # fmt: skip


def _estimator(ppo: PPOSection) -> Rules:
    """Of the estimator and of the rewards."""
    name = ppo.estimator
    yield from (
        (ESTIMATORS[name].grouped and ppo.samples_per_prompt < 2,
         f"ppo.samples_per_prompt: {ppo.samples_per_prompt}: {name} compares the replies to one "
         "prompt and needs at least 2."),
        (name == "coati" and ppo.kl_in == "loss",
         "ppo.kl_in: coati pays the KL in the reward; set it to reward."),
        (not any(ppo.rewards.values()),
         "ppo.rewards: weighs no source; give `model: 1.0`, or a file.py:function."),
    )  # fmt: skip
    for source, weight in ppo.rewards.items():
        file, _, function = source.rpartition(":")
        yield (not abs(weight) <= LARGEST,
               f"ppo.rewards: the weight of {source} is {weight}; give a number, 0 to log it "
               "alone.")  # fmt: skip
        yield (source != "model" and not (file.endswith(".py") and function.isidentifier()),
               f"ppo.rewards: {source!r} is neither `model` nor file.py:function.")  # fmt: skip
    names = [source.rpartition(":")[2] for source in ppo.rewards]
    yield from (
        (len(set(names)) < len(names),
         "ppo.rewards: two functions have one name, and each is logged by it; rename one."),
        ("std" in names,
         "ppo.rewards: score_std is the scores' deviation; give the function another name."),
        ("model" not in ppo.rewards and ESTIMATORS[name].critic and ppo.critic_init != "zero",
         "ppo.critic_init: the critic cannot start from a reward model that ppo.rewards does not "
         "name; set it to zero, name the model with weight 0, or choose an estimator without a "
         "critic."),
    )  # fmt: skip


def _together(config: Config) -> Rules:
    """Packages that are missing, and options that do not go together."""
    tokens, least = config.reward.calibration_tokens, config.ppo.min_new_tokens
    for name in config.logging.trackers:
        yield (find_spec(name) is None,
               f"logging.trackers: the package {name} is not installed; run `pip install {name}`, "
               "or leave it out (metrics.jsonl is always written).")  # fmt: skip
    model, sft, data = config.model, config.sft, config.data
    in_bits = model.quantization in ("8bit", "4bit")
    yield from (
        (config.reward.path is not None and "model" not in config.ppo.rewards,
         f"reward.path: {config.reward.path} would not be used, as ppo.rewards does not name "
         "model; remove it, or name the model there (weight 0 logs it alone)."),
        (tokens is not None and tokens <= least,
         f"reward.calibration_tokens: {tokens} must be above ppo.min_new_tokens {least}, so that "
         "a reply can stop."),
        (model.quantization == "bf16" and model.precision != "bf16",
         "model.quantization: bf16 holds weights as computing in bf16 rounds them; set "
         "model.precision bf16, or this to none."),
        (in_bits and find_spec("bitsandbytes") is None,
         f"model.quantization: {model.quantization} needs the package bitsandbytes, which is not "
         "installed; run `pip install bitsandbytes`, or set it to none."),
        (sft.packing and data.sft.streaming,
         "sft.packing: rows that are read while training are not packed; set sft.packing or "
         "data.sft.streaming to false."),
        (config.ppo.ptx_coef and data.sft.streaming,
         "ppo.ptx_coef: stage 3 draws whole rows of data.sft again and again, which a stream does "
         "not have; set ppo.ptx_coef to 0 or data.sft.streaming to false."),
        (data.join is not None and sft.packing,
         "sft.packing: data.join fills the rows already; set sft.packing to false."),
        (data.overlap >= sft.max_length,
         f"data.overlap: {data.overlap} tokens of each row would be of the one before, which is "
         f"all of sft.max_length {sft.max_length}; lower it."),
    )  # fmt: skip


def _data(config: Config) -> list[tuple[str, SourceSection]]:
    names = ("sft", "preference", "prompts")
    return [(f"data.{name}", getattr(config.data, name)) for name in names]


def _rows(config: Config) -> Rules:
    """Of each stage one source or several, each with a path."""
    unfit = {"sft.packing": config.sft.packing, "ppo.ptx_coef": config.ppo.ptx_coef > 0}
    for key, section in _data(config):
        several = section.sources
        yield (several and section.path is not None,
               f"{key}.path: {section.path} stands beside {key}.sources; remove one of them, or "
               f"give --{key}.sources '[]' or --{key}.path null on the command line.")  # fmt: skip
        for field in fields(OneSource):
            set_here = getattr(section, field.name) != getattr(OneSource(), field.name)
            one_by_one = f"{key}.{field.name}: belongs into the items of {key}.sources, one by one."
            yield several and set_here, one_by_one
        given = [i for i, source in enumerate(several) if source.loss_weight is not None]
        for i in given[:1]:
            item = f"{key}.sources[{i}].loss_weight"
            some = f"{item}: is not given for all sources; give each one, or none."
            yield len(given) < len(several), some
            for name, there in unfit.items():
                yield (there and key == "data.sft",
                       f"{name}: takes rows of all sources alike, which {item} tells apart; turn "
                       "it off, or remove the weights of losses.")  # fmt: skip
        for place, one in section.items(key):
            unset = f"{place}.path: is not set; give the item the path of its rows, or remove it."
            yield several and one.path is None, unset
            yield (one.transcripts and config.template.kind == "none",
                   f'{place}.transcripts: takes texts apart at "Human:" and "Assistant:", and '
                   "template.kind none would put nothing back; turn it off for verbatim texts, or "
                   "choose kind chat or roles.")  # fmt: skip


def _streaming(config: Config) -> Rules:
    """It is for texts of stage 1, and a fixed number of steps."""
    for name in ("preference", "prompts"):
        streams = getattr(config.data, name).streaming
        yield streams, f"data.{name}.streaming: is for stage 1 (data.sft) only; turn it off."
    section, key = config.data.sft, "data.sft.streaming"
    others = any(
        one.transcripts or one.format not in (None, "text") for _, one in section.items(key)
    )
    yield from (
        (section.streaming and config.sft.max_steps is None,
         f"{key}: needs sft.max_steps, as the number of rows is not known; set it."),
        (section.streaming and others,
         f"{key}: reads rows of format text only, without transcripts; turn it off for others."),
        (section.streaming and config.sft.lr_schedule == "restarts",
         "sft.lr_schedule: restarts begin anew with each epoch, and a stream has none; choose "
         "cosine, or turn data.sft.streaming off."),
    )  # fmt: skip


def _shapes(config: Config) -> Rules:
    """What is trained, and how it attends."""
    model, sft = config.model, config.sft
    prefix, both_ways = sft.prefix_tokens > 0, model.attention == "prefix"
    parts = {
        "sft.lora.rank": sft.lora.rank > 0,
        "sft.prefix_tokens": prefix,
        "model.trainable": bool(model.trainable),
    }
    first, *more = [key for key, there in parts.items() if there] or ["model.trainable"]
    yield from (
        (more,
         f"{[first, *more][-1]}: stands beside {first}, which trains something else; remove one."),
        (model.from_config and first != "model.trainable",
         f"model.from_config: its random weights are nowhere to be read again, and {first} leaves "
         "them untrained beside what it saves; remove one of the two."),
        (prefix and model.gradient_checkpointing,
         "model.gradient_checkpointing: computes layers again without the keys and values of "
         "sft.prefix_tokens; set it to false."),
        (prefix and sft.packing,
         "sft.packing: rows side by side cannot each have the keys and values of "
         "sft.prefix_tokens before them; set it to false."),
        (both_ways and sft.packing,
         "sft.packing: has no mask for the prompts of model.attention prefix; turn it off."),
        (both_ways and sft.loss_on == "all",
         "sft.loss_on: with model.attention prefix tokens of a prompt see what is behind them, so "
         "there is nothing to learn from them; set it to assistant or last."),
        (both_ways and config.ppo.ptx_coef,
         "ppo.ptx_coef: mixes in rows of stage 1, whose prompts are of other lengths than "
         "model.attention prefix has masks for in stage 3; set it to 0."),
    )  # fmt: skip


def _template(template: TemplateSection) -> Rules:
    kind = template.kind
    around = [name for name in ROLES if getattr(template, name) != RoleTemplate()]
    names = ", ".join(f"template.{name}" for name in around)
    yield from (
        (kind == "roles" and not around,
         "template.kind: roles needs a prefix or suffix for at least one role (template.user, "
         "template.assistant); for verbatim text choose none."),
        (kind != "roles" and around,
         f"template.kind: {kind} does not use {names}; remove them or choose roles."),
    )  # fmt: skip
    for name in around:
        role: RoleTemplate = getattr(template, name)
        replies = name in ("assistant", "earlier")
        place, given = f"template.{name}", role.opening and not replies and role.train != "prefix"
        yield given, f"{place}.opening: is for assistant turns; use {place}.prefix."
        empty = replies and role.train in ("markers", "prefix")
        yield empty, f"{place}.train: a reply without its content teaches nothing; use none."


def _steps(config: Config) -> Rules:
    for stage in ("sft", "reward", "ppo"):
        section = getattr(config, stage)
        yield (section.warmup >= 1 and section.warmup != int(section.warmup),
               f"{stage}.warmup: {section.warmup:g} is no number of steps; give a whole one, or a "
               "share below 1.")  # fmt: skip
        paged = stage != "ppo" and section.optimizer == "paged_adamw_8bit"
        yield (paged and find_spec("bitsandbytes") is None,
               f"{stage}.optimizer: paged_adamw_8bit needs the package bitsandbytes, which is not "
               "installed; run `pip install bitsandbytes`, or choose adamw.")  # fmt: skip
