"""Values of stages 1 and 2 that are refused before anything is loaded."""

import pytest
from _config_helpers import mistake, parse

from cores.config import validate


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--sft.warmup 1.5", "sft.warmup: 1.5 is no number of steps"),
        ("--ppo.warmup 20.5", "ppo.warmup: 20.5 is no number of steps"),
        ("--reward.lr_floor .1 --reward.lr_schedule linear", "has no effect with reward.lr_sched"),
        ("--sft.lr_floor .1 --sft.lr_schedule constant", "has no effect with sft.lr_schedule con"),
        ("--sft.no_decay [a]", "sft.no_decay: has no effect with sft.weight_decay 0"),
        ("--sft.group_by_length true --sft.packing true", "has no effect with sft.packing"),
        (
            "--sft.group_by_length true --data.sft.streaming true --sft.max_steps 1",
            "has no effect with data.sft.streaming",
        ),
        (
            "--sft.lr_schedule restarts --data.sft.streaming true --sft.max_steps 1",
            "sft.lr_schedule: restarts begin anew with each epoch, and a stream has none",
        ),
        ("--data.sft.weigh tokens", "data.sft.weigh: has no effect without data.sft.sources"),
        ("--reward.bins 7", "reward.bins: has no effect with reward.kind pairwise"),
        (
            "--reward.kind pointwise --reward.center_coef .1",
            "reward.center_coef: has no effect with reward.kind pointwise",
        ),
        (
            "--reward.freeze_base true --reward.lora.rank 4",
            "reward.freeze_base: has no effect with adapters (reward.lora.rank)",
        ),
        ("--reward.base a --reward.path b", "reward.base: has no effect with reward.path b"),
    ],
)
def test_what_is_refused(words: str, said: str) -> None:
    """By its key."""
    assert said in mistake(*words.split())


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimizer that needs it is refused."""
    words = ["--reward.optimizer", "paged_adamw_8bit"]
    parse(*words)
    monkeypatch.setattr(validate, "find_spec", lambda name: None)
    assert "reward.optimizer: paged_adamw_8bit needs the package bitsandbytes" in mistake(*words)


def test_what_goes() -> None:
    """Shares, and numbers of steps as JSON or with a point."""
    for warmup in ("0", "0.99", "1", "100", "100.0"):
        assert parse("--sft.warmup", warmup).sft.warmup == float(warmup)
    parse(*"--sft.lr_floor .1 --sft.lr_schedule restarts --sft.group_by_length true".split())
