"""Options that do nothing beside the others, in one table: set to anything but their default there
they are errors. `tests/unit/test_config_effects.py` holds it against all keys of the schema.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from cores.config.data import OneSource
from cores.config.ppo import ESTIMATORS, OPTIONS
from cores.config.schema import Config
from cores.config.template import ROLES


class Rule(NamedTuple):
    """When keys of some sections have an effect."""

    sections: str
    """Dotted, with spaces between; of a source the items of its `sources` too."""
    keys: str
    has_effect: Callable[[Any, Config], bool]
    """Of the section and the whole."""
    beside: str
    """With or without what they have none; {s} is the section, {key} its name, {c} the whole."""


STEPS, SOURCES = "sft reward", "data.sft data.preference data.prompts"
AROUND = " ".join(f"template.{role}" for role in ROLES)
RULES = (
    Rule("model", "from_config trainable revision", lambda s, c: c.sft.path is None,
         "with sft.path {c.sft.path}, as stage 1 is not run"),
    Rule(STEPS, "revision", lambda s, c: s.path is not None, "without {key}.path, a hub id"),
    Rule(STEPS, "lr_floor", lambda s, c: s.lr_schedule in ("cosine", "restarts"),
         "with {key}.lr_schedule {s.lr_schedule}, but with cosine and restarts"),
    Rule(STEPS, "no_decay", lambda s, c: s.weight_decay > 0, "with {key}.weight_decay 0"),
    Rule("sft.lora reward.lora ppo.lora", "alpha dropout target_modules merge share_base",
         lambda s, c: s.rank > 0, "with {key}.rank 0"),
    Rule("sft.lora reward.lora", "share_base", lambda s, c: False,
         "in this stage, as stage 3 alone has several roles"),
    Rule("sft", "group_by_length", lambda s, c: not s.packing,
         "with sft.packing, whose rows are of one length"),
    Rule("sft", "group_by_length", lambda s, c: not c.data.sft.streaming,
         "with data.sft.streaming, whose rows are not chosen by their length"),
    Rule("reward", "bins", lambda s, c: s.kind == "binned", "with {key}.kind {s.kind}"),
    Rule("reward", "center_coef", lambda s, c: s.kind == "pairwise", "with {key}.kind {s.kind}"),
    Rule("reward", "freeze_base", lambda s, c: not s.lora.rank,
         "with adapters (reward.lora.rank), which train it"),
    Rule("reward", "base", lambda s, c: s.path is None,
         "with reward.path {s.path}, which is not trained"),
    *(Rule("ppo", key, lambda s, c, key=key: key in ESTIMATORS[s.estimator].reads or (  # type: ignore[misc]
            key in ("gamma", "lam") and s.estimator == "coati" and not s.coati.r_minus_v),
           "with ppo.estimator {s.estimator} as it is") for key in OPTIONS),
    Rule("ppo", "kl_in", lambda s, c: s.kl_coef > 0, "with ppo.kl_coef 0"),
    Rule("ppo", "kl_horizon", lambda s, c: s.kl_target is not None, "without ppo.kl_target"),
    Rule("ppo", "ptx_mix", lambda s, c: s.ptx_coef > 0, "with ppo.ptx_coef 0"),
    Rule("ppo", "reward_timeout", lambda s, c: any(name != "model" for name in s.rewards),
         "without a function among ppo.rewards"),
    Rule("ppo", "rollout_cap", lambda s, c: s.rollout_correction != "none",
         "with ppo.rollout_correction none"),
    Rule("ppo", "keep_best", lambda s, c: s.eval_every > 0, "with ppo.eval_every 0"),
    Rule("ppo", "keep_best eval_every", lambda s, c: s.eval_prompts > 0,
         "with ppo.eval_prompts 0"),
    Rule("rollout", "cache_gb", lambda s, c: s.engine == "vllm", "with {key}.engine {s.engine}"),
    Rule("logging", "project", lambda s, c: bool({"wandb", "trackio"} & {*s.trackers}),
         "without wandb or trackio among logging.trackers"),
    Rule("faults", "max_skips", lambda s, c: s.nonfinite == "skip",
         "with faults.nonfinite {s.nonfinite}"),
    Rule(SOURCES, "weigh", lambda s, c: not hasattr(s, "sources") or bool(s.sources),
         "without {key}.sources, whose weights it is about"),
    Rule("data.preference data.prompts", "loss_weight", lambda s, c: False,
         "in this stage, as data.sft alone has losses of sources"),
    Rule("data.sft data.preference", "prompt_tokens", lambda s, c: False,
         "in this stage, as data.prompts alone has beginnings of texts"),
    Rule("data.prompts", "prompt_tokens", lambda s, c: s.format in (None, "text"),
         "with {key}.format {s.format}"),
    Rule(SOURCES, "transcripts", lambda s, c: s.format not in ("messages", "conversations"),
         "with {key}.format {s.format}, which holds turns"),
    Rule(SOURCES, "similarity most_images", lambda s, c: s.format != "caption",
         "with {key}.format caption"),
    Rule("data", "join_opening", lambda s, c: s.join is not None, "without data.join"),
    Rule("data", "overlap", lambda s, c: s.too_long == "split" or s.join is not None,
         "without data.join or data.too_long split"),
    Rule("data", "overlap", lambda s, c: not s.join_opening,
         "with data.join_opening, behind which a text of its own begins"),
    Rule("data", "too_long", lambda s, c: s.join is None, "with data.join"),
    Rule("template", "marked system_in_user strip", lambda s, c: s.kind == "roles",
         "with template.kind {s.kind}"),
    Rule("template", "replace bos", lambda s, c: s.kind != "chat", "with template.kind {s.kind}"),
    Rule("template", "chat_template", lambda s, c: s.kind == "chat",
         "with template.kind {s.kind}"),
    Rule("template", "system_prompt system_prompt_input", lambda s, c: s.kind != "none",
         "with template.kind {s.kind}"),
    Rule(AROUND, "train", lambda s, c: c.sft.loss_on == "assistant",
         "with sft.loss_on {c.sft.loss_on}, but with assistant"),
    Rule("template.assistant template.earlier", "suffix opening stop",
         lambda s, c: not c.template.marked, "with template.marked, as turns bring theirs"),
    Rule(AROUND, "stop", lambda s, c: not c.template.marked,
         "with template.marked, as turns bring theirs"),
)  # fmt: skip


def effect_problems(config: Config) -> Iterator[str]:
    """Sentences "KEY: what is wrong; what to do" about options that would do nothing."""
    default, told = Config(), set()
    for rule in RULES:
        for place, section, unset in _places(config, default, rule.sections):
            for name in rule.keys.split():
                key, usual = f"{place}.{name}", getattr(unset, name, None)
                given = getattr(section, name, usual)
                if given == usual or key in told or rule.has_effect(section, config):
                    continue
                told.add(key)
                beside = rule.beside.format(s=section, c=config, key=place)
                plain = isinstance(usual, int | float | str)
                back = f"set it back to {str(usual).lower()}" if plain else "remove it"
                yield f"{key}: has no effect {beside}; {back}, or change that."


def _places(config: Config, default: Config, names: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, section, the same with its defaults), items of sources included."""
    for name in names.split():
        section: Any = config
        unset: Any = default
        for part in name.split("."):
            section, unset = getattr(section, part), getattr(unset, part)
        yield name, section, unset
        for i, item in enumerate(getattr(section, "sources", [])):
            yield f"{name}.sources[{i}]", item, OneSource()
