"""Which roles of stage 3 stand on one frozen base (`ppo.lora.share_base`), and why others do not;
the reward model where it is the critic as it began."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cores.config import Config, PPOSection
from cores.config.ppo import WITH_CRITIC
from cores.errors import UserError
from cores.models.adapters import ADAPTER
from cores.models.loading import load_config
from cores.models.shells import one_body
from cores.rewards.texts import TextReward
from cores.runtime.parents import Parent, parent_facts


@dataclass(frozen=True)
class Bases:
    """Which bases there are. The reference is the actor without its adapter in any case."""

    critic: bool = False
    """The critic stands on the actor's."""
    reward: bool = False
    """The reward model does."""
    begun: bool = False
    """The reward model is the critic as it began, on whichever base that is."""
    line: str | None = None
    """For the screen."""

    @property
    def one(self) -> bool:
        """Whether any role shares the actor's."""
        return self.critic or self.reward


@dataclass(frozen=True)
class StartOfCritic:
    """The reward model where the critic began as it and has adapters: the critic without them, and
    with the head it had (peft keeps it beside the one that is trained)."""

    critic: Any
    """Its `TrainedRole`."""

    def __call__(self, *rows: Any) -> Tensor:
        """As `ScalarModel`."""
        with self.critic.unwrapped.model.disable_adapter():
            return self.critic.module(*rows)


def from_reward(ppo: PPOSection, texts: TextReward | None) -> bool:
    """Whether the critic starts as the reward model, which then reads the policy's ids."""
    return ppo.estimator in WITH_CRITIC and ppo.critic_init != "zero" and texts is None


def bases(
    config: Config, parents: dict[str, Parent], texts: TextReward | None, zero_stage: int
) -> Bases:
    """As the configuration asks, of the finished stages; UserError where it must be one base and
    cannot. Reads no weights."""
    ppo, wanted = config.ppo, config.ppo.lora.share_base
    critic, reward = ppo.estimator in WITH_CRITIC, "reward" in parents
    if not ppo.lora.rank or wanted == "false" or not (critic or reward):
        return Bases()
    started = from_reward(ppo, texts)
    everywhere = _launch_problem(parents, zero_stage)
    problem = everywhere or (_reward_problem(parents) if reward else None)
    if problem and wanted == "true":
        raise UserError(
            f"ppo.lora.share_base: true is not possible: {problem}. Set it to auto, which shares "
            "what it can, or change that."
        )
    of_critic = critic and (problem if started else everywhere) is None
    of_reward = reward and problem is None
    # A base in 8 or 4 bits into which stage 2's adapter was merged would score otherwise than it.
    exact = of_reward or config.model.quantization in ("none", "bf16")
    begun = started and config.reward.path is None and exact
    others = [n for n, there in (("critic", critic), ("reward model", reward)) if there]
    on_it = [n for n, shared in (("critic", of_critic), ("reward model", of_reward)) if shared]
    apart = [n for n in others if n not in on_it]
    line = f"one base: {', '.join(['actor', 'reference', *on_it])}"
    if apart:
        own = "on another one" if begun else "on a base of its own"
        line += f"; {' and '.join(apart)} {own}: {problem}"
    return Bases(of_critic, of_reward, begun, line)


def _launch_problem(parents: dict[str, Parent], zero_stage: int) -> str | None:
    """What keeps any two roles from sharing a base."""
    if zero_stage:
        return f"the launch makes shards (DeepSpeed ZeRO-{zero_stage})"
    model = load_config(parents["sft"].folder)
    if not one_body(model):
        return f"language model and classifier of {model.model_type} have bodies of two kinds"
    return None


def _reward_problem(parents: dict[str, Parent]) -> str | None:
    """What keeps the reward model from the policy's base: it has to be an adapter on that."""
    reward = parents["reward"]
    before = reward.record.get("parents", {})
    if reward.elsewhere:
        return "the reward model is from elsewhere (reward.path)"
    if "base" in before:
        return "stage 2 began from a base of its own (reward.base)"
    if not (reward.folder / ADAPTER / "adapter_config.json").is_file():
        return "stage 2 trained no adapter (reward.lora.rank)"
    theirs, ours = before.get("sft", {}), parent_facts({"sft": parents["sft"]})["sft"]
    if (files := ours.get("files")) and not any(files.values()):  # the main process hashed them
        theirs = theirs | {"files": dict.fromkeys(theirs.get("files", {}), "")}
    if any(theirs.get(key) != ours.get(key) for key in ("files", "commit")):
        return f"stage 2's adapter is to another model than {parents['sft'].folder} is now"
    return None
