"""Values of stages 1 and 2 that parse and cannot work, or would do nothing."""

from collections.abc import Iterator
from importlib.util import find_spec

from cores.config.schema import Config, RewardSection, SFTSection


def training(config: Config) -> Iterator[str]:
    """Sentences "KEY: what is wrong; what to do" of how stages learn."""
    for stage in ("sft", "reward", "ppo"):
        warmup = getattr(config, stage).warmup
        if warmup >= 1 and warmup != int(warmup):
            yield (
                f"{stage}.warmup: {warmup:g} is no number of steps; give a whole one, or a share "
                "below 1."
            )
    yield from _steps("sft", config.sft)
    yield from _steps("reward", config.reward)
    yield from _order(config)
    yield from _reward(config.reward)


def _steps(stage: str, section: SFTSection | RewardSection) -> Iterator[str]:
    """Of optimizer and learning rate."""
    if section.lr_floor and section.lr_schedule not in ("cosine", "restarts"):
        yield (
            f"{stage}.lr_floor: has no effect with {stage}.lr_schedule {section.lr_schedule}; set "
            "it to 0, or choose cosine or restarts."
        )
    if section.no_decay and not section.weight_decay:
        yield (
            f"{stage}.no_decay: has no effect with {stage}.weight_decay 0; set that, or remove it."
        )
    if section.optimizer == "paged_adamw_8bit" and find_spec("bitsandbytes") is None:
        yield (
            f"{stage}.optimizer: paged_adamw_8bit needs the package bitsandbytes, which is not "
            "installed; run `pip install bitsandbytes`, or choose adamw."
        )


def _order(config: Config) -> Iterator[str]:
    """Of rows that come otherwise than by a shuffle of all."""
    sft, streaming = config.sft, config.data.sft.streaming
    if sft.group_by_length and (sft.packing or streaming):
        other = "sft.packing" if sft.packing else "data.sft.streaming"
        yield (
            f"sft.group_by_length: has no effect with {other}, whose rows are not chosen by their "
            "length; turn one of them off."
        )
    if sft.lr_schedule == "restarts" and streaming:
        yield (
            "sft.lr_schedule: restarts begin anew with each epoch, and a stream has none; choose "
            "cosine, or turn data.sft.streaming off."
        )


def _reward(reward: RewardSection) -> Iterator[str]:
    """Options of stage 2 that do nothing beside the others."""
    default, kind = RewardSection(), f"reward.kind {reward.kind}"
    for key, has_effect, beside in (
        ("bins", reward.kind == "binned", kind),
        ("center_coef", reward.kind == "pairwise", kind),
        ("freeze_base", not reward.lora.rank, "adapters (reward.lora.rank), which train it"),
        ("base", reward.path is None, f"reward.path {reward.path}, which is not trained"),
    ):
        if not has_effect and getattr(reward, key) != getattr(default, key):
            yield f"reward.{key}: has no effect with {beside}; remove one of them."
