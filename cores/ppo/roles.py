"""The four roles of PPO: actor and critic are trained, reference and reward model are frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cores.config import Config
from cores.config.estimators import WITH_CRITIC
from cores.models import Actor, ScalarModel, add_lora, load_policy, load_scalar
from cores.models.actor import plain_model
from cores.models.compiled import compile_layers
from cores.models.loading import exclude_from
from cores.models.precision import hold_linears_in_bf16
from cores.ppo.accelerators import ACTOR, CRITIC, accelerators
from cores.ppo.trained import TrainedRole
from cores.rollout import stop_ids
from cores.runtime.launch import Launch
from cores.runtime.sharding import shard_frozen, zero_stage
from cores.runtime.stage import Parent


@dataclass(frozen=True)
class StartOfCritic:
    """The reward model where the critic began as it and has adapters: the critic without them, and
    with the head it had (peft keeps it beside the one that is trained)."""

    critic: TrainedRole

    def __call__(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Values (B, L) of ids (B, L) under mask (B, L)."""
        with self.critic.unwrapped.model.disable_adapter():
            return self.critic.module(ids, mask)


@dataclass(frozen=True)
class Roles:
    """Everything that has weights in stage 3."""

    actor: TrainedRole
    critic: TrainedRole | None
    """None for estimators without one."""
    frozen_actor: nn.Module | None
    """The reference, an `Actor` or the engine of its shards; None with adapters, where it is the
    actor without them."""
    reward: nn.Module | StartOfCritic | None
    """The reward model, a `ScalarModel`, the engine of its shards, or the critic as it began:
    values (B, L) of ids, mask. None where functions alone give the score."""

    @property
    def trained(self) -> list[TrainedRole]:
        """Actor and, where there is one, critic."""
        return [self.actor] if self.critic is None else [self.actor, self.critic]

    @contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The reference as a callable like the actor's module."""
        if self.frozen_actor is not None:
            yield self.frozen_actor
        else:
            with self.actor.unwrapped.model.disable_adapter():
                yield self.actor.module

    @contextmanager
    def policy(self) -> Iterator[PreTrainedModel]:
        """The actor's plain model with whole weights, for generation."""
        with gathered(self.actor):
            yield plain_model(self.actor.unwrapped.model)


@contextmanager
def gathered(role: TrainedRole) -> Iterator[None]:
    """Whole weights on every rank for as long as it is open (ZeRO-3 shards them).

    Within it DeepSpeed's hooks are off: they would shard each layer again behind its forward.
    """
    if role.engine is None or role.module.zero_optimization_stage() < 3:
        yield
        return
    import deepspeed
    from trl.models.utils import add_hooks, remove_hooks

    with deepspeed.zero.GatheredParameters(list(role.module.parameters())):
        remove_hooks(role.module)
        yield
        add_hooks(role.module)


def build_roles(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    parents: dict[str, Parent],
    launch: Launch,
) -> Roles:
    """Load the parents' models into the four roles and prepare the trained ones."""
    ppo, sft = config.ppo, parents["sft"].folder
    policy: Any = load_policy(sft, dropout=False, frozen=config.model)
    exclude_from(policy, tokenizer)
    policy = _trainable(policy, config, TaskType.CAUSAL_LM)
    critic = None
    if ppo.estimator in WITH_CRITIC:
        critic = _trainable(_critic(config, parents), config, TaskType.SEQ_CLS)
    sampling = (ppo.temperature, stop_ids(ppo, tokenizer), ppo.min_new_tokens)
    frozen = None
    if not ppo.lora.rank:
        reference = _held(load_policy(sft, dropout=False), launch)
        exclude_from(reference, tokenizer)
        frozen = Actor(reference, *sampling)
    reward = None
    if "reward" in parents and not _shared(config):
        reward = ScalarModel(_held(load_scalar(parents["reward"].folder), launch))
    # After the loading: under ZeRO-3 the plugin makes whatever is loaded behind it a shard.
    both = accelerators(config, launch)
    actor = Actor(policy, *sampling, entropy_grad=ppo.entropy_coef > 0)
    actor_role = TrainedRole(ACTOR, actor, both[ACTOR], ppo)
    critic_role = critic and TrainedRole(CRITIC, ScalarModel(critic), both[CRITIC], ppo)
    shared = StartOfCritic(critic_role) if critic_role and _shared(config) else None
    return Roles(
        actor=actor_role,
        critic=critic_role,
        frozen_actor=None if frozen is None else freeze(frozen, launch),
        reward=shared if reward is None else freeze(reward, launch),
    )


def _shared(config: Config) -> bool:
    """Whether one base serves reward model and critic. One in 8 or 4 bits would score otherwise."""
    ppo = config.ppo
    from_reward = ppo.estimator in WITH_CRITIC and ppo.critic_init == "reward"
    return bool(ppo.lora.rank and from_reward and config.model.quantization in ("none", "bf16"))


def _critic(config: Config, parents: dict[str, Parent]) -> Any:
    """The reward model, or stage 1's model with a head of zeros."""
    if config.ppo.critic_init == "reward":
        return load_scalar(parents["reward"].folder, frozen=config.model)
    critic: Any = load_scalar(parents["sft"].folder, frozen=config.model, num_labels=1)
    torch.nn.init.zeros_(critic.score.weight)
    return critic


def _trainable(model: Any, config: Config, task: TaskType) -> Any:
    """With adapters and checkpointing as configured."""
    lora = config.ppo.lora
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if lora.rank:
        model = add_lora(model, lora, task, "ppo.lora")
        if config.model.gradient_checkpointing:
            model.enable_input_require_grads()
    return compile_layers(model) if config.ppo.passes == "compiled" else model


def _held(model: Any, launch: Launch) -> Any:
    """A frozen model's weights, in bf16 where autocast would round them so at each use.

    Shards (ZeRO-3) stay as they are.
    """
    if launch.precision != "bf16" or zero_stage() == 3:
        return model
    return hold_linears_in_bf16(model)


def freeze(module: nn.Module, launch: Launch) -> nn.Module:
    """`module` in evaluation mode, its weights out of every gradient; in shards under ZeRO-3."""
    module.requires_grad_(False).eval()
    if zero_stage() == 3:
        return shard_frozen(module, launch.precision)
    return module.to(launch.device)
