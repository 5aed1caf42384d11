"""The four roles of PPO: actor and critic are trained, reference and reward model are frozen."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from peft import TaskType
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cores.config import AdamSection, Config, PPOSection
from cores.config.ppo_checks import WITH_CRITIC
from cores.errors import UserError
from cores.models import Actor, ScalarModel, add_lora, load_policy, load_scalar
from cores.models.actor import plain_model
from cores.models.compiled import compile_layers
from cores.models.loading import exclude_from
from cores.models.precision import hold_linears_in_bf16
from cores.ppo.accelerators import ACTOR, CRITIC, accelerators, select_plugin
from cores.rollout import stop_ids
from cores.runtime.launch import Launch
from cores.runtime.sharding import deepspeed_asked, shard_frozen, zero_stage
from cores.runtime.stage import Parent


def optimizer_settings(ppo: PPOSection, name: str) -> tuple[AdamSection, float]:
    """AdamW and peak learning rate of the role `name`."""
    if name == ACTOR:
        return ppo.actor_adam, ppo.actor_learning_rate
    return ppo.critic_adam, ppo.critic_learning_rate


class TrainedRole:
    """A model, its optimizer, and the one way to take a step with them in any kind of launch.

    Under DeepSpeed the engine clips and steps inside its backward pass, elsewhere we do; either
    way a step is: any number of `accumulate`, the last of them with `last=True`.
    """

    def __init__(
        self, name: str, model: nn.Module, accelerator: Accelerator, ppo: PPOSection
    ) -> None:
        model.train()  # no role has dropout, and layers are checkpointed in this mode only
        parameters = [p for p in model.parameters() if p.requires_grad]
        adam, learning_rate = optimizer_settings(ppo, name)
        optimizer = torch.optim.AdamW(
            parameters,
            lr=learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.eps,
            weight_decay=adam.weight_decay,
            fused=not deepspeed_asked(),
        )
        select_plugin(accelerator, name)
        self.name = name
        self.accelerator = accelerator
        self.learning_rate = learning_rate
        self.max_grad_norm = ppo.max_grad_norm
        self.steps = 0
        self.keep_gradients = False
        """Whether gradients are cleared in place: captured passes add to where they are."""
        self.grad_norm = torch.tensor(0.0)
        """0-d, of the last step before clipping, on the device that computed it."""
        self.module, self.optimizer = accelerator.prepare(model, optimizer)

    @property
    def norm_name(self) -> str:
        """The gradient norm's name among the statistics."""
        return f"{self.name}_grad_norm"

    @property
    def engine(self) -> Any:
        """DeepSpeed's engine behind the module, or None."""
        return getattr(self.accelerator, "deepspeed_engine_wrapped", None)

    @property
    def unwrapped(self) -> Any:
        """The `Actor` or `ScalarModel` itself."""
        return self.accelerator.unwrap_model(self.module)

    def set_rate(self, factor: float) -> None:
        """Learning rate of the next step, as a factor of the peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * factor

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and `accumulate`: ranks exchange gradients at the last one only."""
        if last or self.engine is not None:
            return nullcontext()
        return self.accelerator.no_sync(self.module)

    def check_finite(self, norms: list[float]) -> None:
        """UserError if a gradient norm of the last steps was no number, rather than train on.

        Looked at when an update ends. Until then such a step changes no weight: see `step`.
        """
        for step, norm in enumerate(norms, start=self.steps - len(norms) + 1):
            if not math.isfinite(norm):
                raise UserError(
                    f"ppo: the {self.name}'s gradient norm is {norm} at optimizer step {step}. "
                    f"Lower ppo.{self.name}_learning_rate, or compute in fp32 "
                    "(--model.precision fp32)."
                )

    def _check_count(self) -> None:
        """The engine decides by its own count of micro-batches when it steps."""
        taken = self.engine.engine.global_steps
        if taken != self.steps:
            raise RuntimeError(
                f"DeepSpeed took {taken} optimizer steps of the {self.name}, not {self.steps}."
            )

    def accumulate(self, loss: Tensor, last: bool) -> None:
        """Backward; at the last micro-batch also clip, step and clear the gradients.

        `loss` is this rank's part of a sum over all ranks. Ranks' gradients are averaged, so it is
        multiplied by their number first.
        """
        loss = loss * self.accelerator.num_processes
        if self.engine is not None:
            self.engine.backward(loss, sync_gradients=last)
            if last:
                norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32)
                self.grad_norm = norm.detach().to(loss.device)  # offloaded: it is on the CPU
                self.steps += 1
                self._check_count()
            return
        loss.backward()
        if last:
            self.step()

    def step(self) -> None:
        """Clip, step and clear the gradients; the kernel leaves out a step that is no number.

        It does so by `found_inf`, meant for gradient scalers (torch.optim.AdamW, fused), so that
        nobody has to wait for the norm before the step.
        """
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.grad_norm = norm.detach()
        self.optimizer.optimizer.found_inf = (~norm.isfinite()).float()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.keep_gradients)
        self.steps += 1


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
