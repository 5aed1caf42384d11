"""Values of stages 1 and 2 that parse and cannot work."""

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


def _steps(stage: str, section: SFTSection | RewardSection) -> Iterator[str]:
    """Of the optimizer."""
    if section.optimizer == "paged_adamw_8bit" and find_spec("bitsandbytes") is None:
        yield (
            f"{stage}.optimizer: paged_adamw_8bit needs the package bitsandbytes, which is not "
            "installed; run `pip install bitsandbytes`, or choose adamw."
        )


def _order(config: Config) -> Iterator[str]:
    """Of rows that come otherwise than by a shuffle of all."""
    if config.sft.lr_schedule == "restarts" and config.data.sft.streaming:
        yield (
            "sft.lr_schedule: restarts begin anew with each epoch, and a stream has none; choose "
            "cosine, or turn data.sft.streaming off."
        )
