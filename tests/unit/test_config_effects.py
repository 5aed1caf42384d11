"""Options that do nothing beside the others: all are known, and each is refused."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from _config_helpers import mistake, parse

from cores.config import Config
from cores.config.data import WeightedSource
from cores.config.effects import RULES

ROLE = "--template.kind roles --template.user.prefix U"
EXAMPLES = {
    "model.from_config": "true --sft.path a",
    "model.trainable": "[a] --sft.path a",
    "model.revision": "main --sft.path a",
    "sft.revision": "main",
    "sft.lr_floor": ".1 --sft.lr_schedule linear",
    "sft.no_decay": "[a]",
    "sft.lora.alpha": "2",
    "sft.lora.dropout": ".5",
    "sft.lora.target_modules": "[a]",
    "sft.lora.merge": "false",
    "reward.lora.share_base": "false --reward.lora.rank 4",
    "sft.group_by_length": "true --sft.packing true",
    "reward.bins": "7",
    "reward.center_coef": "1 --reward.kind binned",
    "reward.freeze_base": "true --reward.lora.rank 1",
    "reward.base": "a --reward.path b",
    "ppo.gamma": ".9 --ppo.estimator coati",
    "ppo.lam": ".9 --ppo.estimator coati",
    "ppo.kl_kind": "k3 --ppo.estimator coati",
    "ppo.group_std": "false",
    "ppo.coati.r_minus_v": "false",
    "ppo.critic_learning_rate": ".1 --ppo.estimator reinforce_pp",
    "ppo.critic_adam.beta1": ".5 --ppo.estimator reinforce_pp",
    "ppo.critic_init": "zero --ppo.estimator reinforce_pp",
    "ppo.critic_warmup": "1 --ppo.estimator reinforce_pp",
    "ppo.value_clip": ".1 --ppo.estimator reinforce_pp",
    "ppo.kl_in": "loss --ppo.kl_kind k3 --ppo.kl_coef 0",
    "ppo.kl_horizon": "500",
    "ppo.ptx_mix": "convex",
    "ppo.reward_timeout": "5",
    "ppo.rollout_cap": "5",
    "ppo.keep_best": "5",
    "ppo.eval_every": "5 --ppo.eval_prompts 0",
    "rollout.cache_gb": "2 --rollout.engine hf",
    "logging.project": "a --logging.trackers [tensorboard]",
    "faults.max_skips": "1",
    "data.sft.weigh": "tokens",
    "data.sft.prompt_tokens": "4",
    "data.prompts.prompt_tokens": "4 --data.prompts.format prompt",
    "data.sft.transcripts": "true --data.sft.format messages",
    "data.sft.similarity": ".5 --data.sft.format caption",
    "data.join_opening": "x",
    "data.overlap": "3",
    "data.too_long": "drop --data.join x",
    "template.marked": "true",
    "template.system_in_user": "true",
    "template.strip": "true",
    "template.replace": '{"a":"b"}',
    "template.bos": "false",
    "template.chat_template": f"x {ROLE}",
    "template.system_prompt": "x --template.kind none",
    "template.system_prompt_input": "x --template.kind none",
    "template.user.train": f"all {ROLE} --sft.loss_on all",
    "template.user.stop": f"x {ROLE} --template.marked true",
    "template.assistant.suffix": f"x {ROLE} --template.marked true",
    "template.assistant.opening": f"x {ROLE} --template.marked true",
}
"""Of each rule a key and what it is set to where it does nothing."""

ALWAYS = """
output_dir seed overwrite resume model.path model.attention model.pad_token model.precision
model.quantization model.gradient_checkpointing rollout.engine
template.kind template.alternate template.separator template.eos_token template.tokens
data.inspect data.inspect_json data.join data.test_fraction
ppo.updates ppo.batch_size ppo.samples_per_prompt ppo.minibatch_size ppo.microbatch_size
ppo.microbatch_tokens
ppo.passes ppo.epochs ppo.max_prompt_length ppo.max_new_tokens ppo.min_new_tokens ppo.temperature
ppo.stop_token_ids ppo.stop_strings ppo.rewards ppo.estimator ppo.actor_learning_rate
ppo.lr_schedule ppo.warmup ppo.max_grad_norm ppo.kl_coef ppo.kl_target ppo.clip ppo.clip_high
ppo.dual_clip ppo.entropy_coef ppo.early_stop_kl ppo.ptx_coef ppo.loss_mean ppo.whiten_advantages
ppo.missing_eos_penalty ppo.length_penalty ppo.reward_clip ppo.rollout_correction ppo.old_logprobs
ppo.eval_prompts ppo.sample_every logging.trackers logging.samples faults.nonfinite
"""
"""What matters wherever its stage runs, or is refused where it does not by another check."""
WHOLE = """checkpoint ppo.actor_adam ppo.lora template.image sft. reward. data.sft. data.preference.
data.prompts. template."""
"""Sections whose keys matter unless a rule names them."""


def keys(section: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the schema."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def ruled() -> set[str]:
    """Those that a rule names."""
    return {f"{s}.{k}" for rule in RULES for s in rule.sections.split() for k in rule.keys.split()}


def test_every_key_is_looked_at() -> None:
    """A new key either always matters, or the table says where it does not."""
    known = {*ALWAYS.split(), *ruled()}
    sections = tuple(WHOLE.split())
    found = {key for key in keys(Config()) if not key.startswith(sections)}
    parts = {key for key in found if key.rpartition(".")[0] in known}  # of a section in the table
    assert found - parts <= known
    assert set(ALWAYS.split()) <= set(keys(Config())), "a key that is gone"
    for *parents, key in (name.split(".") for name in ruled()):
        section: Any = Config()
        for part in parents:
            section = getattr(section, part)
        assert hasattr(section, key) or hasattr(WeightedSource(), key), "a key that is gone"


@pytest.mark.parametrize("key", EXAMPLES)
def test_what_has_no_effect(key: str) -> None:
    """By its key, with what it belongs to and the way back."""
    said = mistake(f"--{key}", *EXAMPLES[key].split())
    named = [key, key.rpartition(".")[0]]  # of a section in the table the section is named
    assert any(f"{name}: has no effect " in said for name in named), said
    assert "or change that." in said


def test_every_rule_has_an_example() -> None:
    """Of a section that stands for several one is enough."""
    for rule in RULES:
        places = [f"{s}.{k}" for s in rule.sections.split() for k in rule.keys.split()]
        shown = [*EXAMPLES, "data.prompts.loss_weight"]  # of items, below
        assert any(example.startswith(tuple(places)) for example in shown), places


def test_items_of_sources() -> None:
    """As one source; a mixture's defaults are those of one source."""
    items = "[{path: a, prompt_tokens: 4}, {path: b}]"
    said = mistake("--data.sft.sources", items)
    assert "data.sft.sources[0].prompt_tokens: has no effect in this stage" in said
    said = mistake("--data.prompts.sources", "[{path: a, loss_weight: 2}]")
    assert "data.prompts.sources[0].loss_weight: has no effect in this stage" in said
    parse("--data.sft.sources", "[{path: a, weight: 2}, {path: b}]", "--data.sft.weigh", "tokens")
