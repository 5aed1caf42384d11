"""Values that parse but cannot work: ranges and combinations, before anything heavy is imported."""

import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from cores.config.schema import Config

POSITIVE = """sft.epochs sft.learning_rate sft.batch_size sft.microbatch_size sft.max_length
sft.max_grad_norm reward.epochs reward.learning_rate reward.batch_size reward.microbatch_size
reward.max_length reward.max_grad_norm ppo.updates ppo.batch_size
ppo.minibatch_size ppo.microbatch_size ppo.epochs ppo.max_prompt_length ppo.max_new_tokens
ppo.temperature ppo.actor_learning_rate ppo.critic_learning_rate ppo.max_grad_norm ppo.clip
ppo.value_clip ppo.adam_eps""".split()
NOT_NEGATIVE = """seed data.inspect sft.weight_decay reward.weight_decay reward.center_coef
ppo.weight_decay ppo.kl_coef ppo.missing_eos_penalty ppo.reward_clip ppo.eval_prompts
ppo.sample_every sft.lora.rank reward.lora.rank ppo.lora.rank""".split()
SHARES = """sft.warmup_ratio reward.warmup_ratio ppo.warmup_ratio ppo.gamma ppo.lam
sft.lora.dropout reward.lora.dropout""".split()
POSITIVE_IF_SET = """reward.calibration_tokens sft.max_steps reward.max_steps data.sft.limit
data.preference.limit data.prompts.limit""".split()


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
    ppo = config.ppo
    if not 0 <= config.data.test_fraction < 1:
        yield "data.test_fraction", f"{config.data.test_fraction} must be at least 0 and below 1."
    if ppo.batch_size % ppo.minibatch_size:
        yield (
            "ppo.minibatch_size",
            f"{ppo.minibatch_size} does not divide ppo.batch_size {ppo.batch_size}; choose a "
            "divisor, so that every optimizer step sees as many replies.",
        )
    if not ppo.clip < 1:
        yield "ppo.clip", f"{ppo.clip} must be below 1: ratios are clipped to 1 - clip .. 1 + clip."
    if not 0 <= ppo.adam_beta2 < 1:
        yield "ppo.adam_beta2", f"{ppo.adam_beta2} must be at least 0 and below 1."
    if any(i < 0 for i in ppo.stop_token_ids):
        yield "ppo.stop_token_ids", f"{ppo.stop_token_ids} must be ids of tokens, 0 or above."
    if ppo.lora.dropout:
        yield "ppo.lora.dropout", f"{ppo.lora.dropout} must be 0: old and new log-probs must agree."
    if config.reward.calibration_samples < 2:
        yield "reward.calibration_samples", "must be at least 2, to have a standard deviation."
    if config.logging.tensorboard and find_spec("tensorboard") is None:
        yield (
            "logging.tensorboard",
            "the package tensorboard is not installed; run `pip install tensorboard`, or leave the "
            "key at false (metrics.jsonl is always written).",
        )
    yield from _template(config)


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
