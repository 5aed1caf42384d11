"""The four roles of PPO: actor and critic are trained, reference and reward model are frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from cores.config import AdamSection, Config, ModelSection, PPOSection
from cores.config.ppo import WITH_CRITIC
from cores.draws import seeded
from cores.models import Actor, ScalarModel, add_lora, load_policy, load_scalar
from cores.models.actor import plain_model, rescale
from cores.models.adapters import hold_linears, language_task
from cores.models.body import compile_layers, packs
from cores.models.images import hold_tower
from cores.models.rows import Policy, Value, before_replies
from cores.models.shells import frozen_sum, keep_adapter, scalar_on, shell
from cores.ppo.experience import Scored
from cores.ppo.one_base import StartOfCritic, bases, from_reward
from cores.rewards.texts import TextReward
from cores.rl.coati import mean_over_row, read_values
from cores.rollout import stop_ids
from cores.run.checkpoint import Checkpoint
from cores.runtime.launch import Launch
from cores.runtime.parents import Parent
from cores.sharding import HALVES, Trained, Whole
from cores.sharding.whole import load_weights

ACTOR, CRITIC = "actor", "critic"
VIEWS = {ACTOR: Policy, CRITIC: Value}
Scale = dict[str, float] | None
"""What `calibrate` said of a reward model from elsewhere."""


def optimizer_settings(ppo: PPOSection, name: str) -> tuple[AdamSection, float]:
    """AdamW and peak learning rate of the role `name`."""
    if name == ACTOR:
        return ppo.actor_adam, ppo.actor_learning_rate
    return ppo.critic_adam, ppo.critic_learning_rate


class TrainedRole:
    """A view on a model, with the optimizer of what is trained in it; `Passes` takes its steps."""

    def __init__(self, name: str, model: nn.Module, sharding: Whole, ppo: PPOSection) -> None:
        model.train()  # no role has dropout, and layers are checkpointed in this mode only
        parameters = [p for p in model.parameters() if p.requires_grad]
        adam, learning_rate = optimizer_settings(ppo, name)
        optimizer = torch.optim.AdamW(
            parameters,
            lr=learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.eps,
            weight_decay=adam.weight_decay,
            fused=sharding.fused,
        )
        self.name = name
        self.learning_rate = learning_rate
        self.steps = 0
        """Optimizer steps taken."""
        self.grad_norm = torch.tensor(0.0)
        """0-d, of the last step before clipping, on the device that computed it."""
        self.trained: Trained = sharding.prepare(name, model, optimizer, ppo.max_grad_norm)
        self.unwrapped: Any = model
        """The `Actor` or `ScalarModel` itself."""
        self.module: Any = self.trained.module
        """The same as the launch holds it."""
        self.says: Any = VIEWS[name](self.module)
        """The `Policy` or `Value` that is asked."""
        self.optimizer: Any = self.trained.optimizer
        """As the launch wraps it."""

    def make_capturable(self) -> None:
        """From now on a step may be part of a CUDA graph: the learning rate lies on the device."""
        for group in self.optimizer.param_groups:
            group["capturable"] = True
            group["lr"] = torch.tensor(group["lr"], device=self.unwrapped.model.device)
        # torch warns of each optimizer whose steps could be captured and are not.
        self.optimizer.optimizer._warned_capturable_if_run_uncaptured = True

    def state(self, keep: bool) -> dict[str, dict[str, Tensor]]:
        """Trained weights and AdamW's moments, whole, by name: see `Trained.state`."""
        return {f"{self.name}.{k}": v for k, v in self.trained.state(keep).items()}

    def load(self, saved: Checkpoint) -> None:
        """Go on from there. The weights were put in before the launch took the model."""
        self.steps = saved.numbers["optimizer_steps"][self.name]
        if (scale := self.trained.scale) is not None:
            scale.load_state_dict(saved.numbers["loss_scales"][self.name])
        if self.steps:
            self.trained.load_moments(saved.parts(f"{self.name}."))


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
    values (B, L) of the fields of `Rows`. None where functions alone give the score."""
    sharding: Whole
    """How all of them lie on the processes."""
    texts: TextReward | None = None
    """How a reward model reads replies that does not read the policy's ids."""
    packs: bool = False
    """Whether all of them read rows without their padding."""
    base: Any = None
    """The language model without adapters whose tensors several roles share; None where none do."""
    base_sum: int = 0
    """Its `frozen_sum` at the start."""

    @cached_property
    def trained(self) -> list[TrainedRole]:
        """Actor and, where there is one, critic."""
        return [self.actor] if self.critic is None else [self.actor, self.critic]

    def check_base(self) -> None:
        """RuntimeError if a base that several roles share has changed."""
        if self.base is not None and frozen_sum(self.base) != self.base_sum:
            raise RuntimeError("the base that the roles of stage 3 share was changed in training.")

    @contextmanager
    def reference(self) -> Iterator[Policy]:
        """The reference, for as long as it is open."""
        if self.frozen_actor is not None:
            yield Policy(self.frozen_actor)
        else:
            with self.actor.unwrapped.model.disable_adapter():
                yield self.actor.says


def build_roles(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    parents: dict[str, Parent],
    launch: Launch,
    resumed: Checkpoint | None = None,
    texts: TextReward | None = None,
    scale: Scale = None,
) -> Roles:
    """Load the parents' models into the four roles and prepare the trained ones, with the weights
    of a checkpoint where one is given; `texts`, `scale`: of a reward model from elsewhere."""
    ppo, sharding = config.ppo, launch.sharding
    share = launch.shared(bases(config, parents, texts, sharding.stage))  # one rank hashed files
    if share.line is not None:
        launch.say(share.line)
    policy = policy_model(config, tokenizer, parents)
    base = shell(policy.to(launch.device)) if share.one else None
    models: dict[str, Any] = {ACTOR: actor_model(policy, config, tokenizer)}
    on = base if share.critic else None
    if (critic := critic_model(config, tokenizer, parents, texts, scale, on)) is not None:
        models[CRITIC] = critic
    frozen = None
    if not ppo.lora.rank:
        folder = parents["sft"].folder
        reference = _held(load_policy(folder, dropout=False, tokenizer=tokenizer), sharding)
        frozen = _as_actor(reference, config, tokenizer)
    reward = None
    if "reward" in parents and not share.begun:
        fits, folder = texts.tokenizer if texts else tokenizer, parents["reward"].folder
        on = base if share.reward else None
        judge = _reward(folder, fits, scale, base=on)
        reward = ScalarModel(_held(judge, sharding) if on is None else judge)
    # After the loading: under ZeRO-3 the plugin makes whatever is loaded behind it a shard.
    roles = {}
    for name, model in models.items():
        if resumed is not None:
            load_weights(model, resumed.tensors(f"{name}.weights"))
        roles[name] = TrainedRole(name, model, sharding, ppo)
    read = [*models.values(), frozen, None if texts else reward]
    critic_role = roles.get(CRITIC)
    begun = StartOfCritic(critic_role) if critic_role and share.begun else None
    return Roles(
        actor=roles[ACTOR],
        critic=critic_role,
        frozen_actor=None if frozen is None else freeze(frozen, launch, sharding),
        reward=begun if reward is None else freeze(reward, launch, sharding),
        sharding=sharding,
        texts=texts,
        packs=not models[ACTOR].prefix
        and all(packs(plain_model(m.model), launch.device) for m in read if m is not None),
        base=base,
        base_sum=0 if base is None else frozen_sum(base),
    )


def policy_model(
    config: Config, tokenizer: PreTrainedTokenizerBase, parents: dict[str, Parent]
) -> Any:
    """Stage 1's model as the actor begins."""
    folder, held = parents["sft"].folder, config.model
    return load_policy(folder, dropout=False, frozen=held, tokenizer=tokenizer)


def actor_model(policy: Any, config: Config, tokenizer: PreTrainedTokenizerBase) -> Actor:
    """The policy as it is trained, with its adapters if there are any."""
    task = language_task(policy.config)
    return _as_actor(_trainable(policy, config, task, ACTOR), config, tokenizer)


def critic_model(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    parents: dict[str, Parent],
    texts: TextReward | None,
    scale: Scale,
    base: Any = None,
) -> ScalarModel | None:
    """The critic as it is trained: the reward model, or stage 1's with a head of zeros. None for
    estimators without one. `base`: whose tensors it shares."""
    if config.ppo.estimator not in WITH_CRITIC:
        return None
    critic: Any
    if from_reward(config.ppo, texts):
        critic = _reward(parents["reward"].folder, tokenizer, scale, config.model, base)
    elif base is not None:
        critic = scalar_on(base, parents["sft"].folder, tokenizer, num_labels=1)
    else:
        critic = load_scalar(parents["sft"].folder, config.model, tokenizer, num_labels=1)
        torch.nn.init.zeros_(critic.score.weight)
    return ScalarModel(_trainable(critic, config, "SEQ_CLS", CRITIC))


def _as_actor(model: Any, config: Config, tokenizer: PreTrainedTokenizerBase) -> Actor:
    ppo = config.ppo
    stops, gradient = stop_ids(ppo, tokenizer), ppo.entropy_coef > 0
    prefix = config.model.attention == "prefix"
    return Actor(model, ppo.temperature, stops, ppo.min_new_tokens, gradient, prefix)


def _reward(
    folder: Path,
    tokenizer: Any,
    scale: Scale = None,
    frozen: ModelSection | None = None,
    base: Any = None,
) -> Any:
    """The reward model, one from elsewhere in units of its calibration; its adapter on `base`."""
    if base is not None:
        model = scalar_on(base, folder, tokenizer)
        keep_adapter(model, folder)
        return model
    model = load_scalar(folder, frozen, tokenizer)
    if scale is not None:
        rescale(model, scale["raw_mean"], scale["raw_std"])
    return model


def _trainable(model: Any, config: Config, task: str, name: str) -> Any:
    """With adapters and checkpointing as configured."""
    lora = config.ppo.lora
    hold_tower(model)
    if config.model.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if lora.rank:
        with seeded(config.seed, f"{name}'s adapters"):
            model = add_lora(model, lora, task, "ppo.lora")
        if config.model.gradient_checkpointing:
            model.enable_input_require_grads()
    return compile_layers(model) if config.ppo.passes == "compiled" else model


def _held(model: Any, sharding: Whole) -> Any:
    """A frozen model's weights, in half precision where autocast would round them at each use."""
    half = HALVES.get(sharding.precision)
    return model if half is None or not sharding.mixed else hold_linears(model, half)


def freeze(module: nn.Module, launch: Launch, sharding: Whole) -> nn.Module:
    """`module` in evaluation mode, its weights out of every gradient, as the launch holds it."""
    module.requires_grad_(False).eval()
    return sharding.frozen(module, launch.device)


def response_values(critic: Value, batch: Scored, ppo: PPOSection) -> Tensor:
    """Values (B, T) of the states before the response tokens, as the estimator reads them."""
    if ppo.estimator != "coati":
        return critic.values(batch.rows)
    everywhere = critic.everywhere(batch.rows)
    means = mean_over_row(everywhere, batch.mask) if ppo.coati.mean_over_positions else None
    values = before_replies(everywhere, batch.response_mask.shape[1])
    return read_values(values, means, ppo.coati.r_minus_v)
