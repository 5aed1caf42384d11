"""Which options of an unfinished run may change."""

from dataclasses import replace
from typing import Any

import pytest

from cores.config import CheckpointSection, Config, LoggingSection, PPOSection, plain
from cores.run.folder import differing


def changed(section: str | None = None, **values: Any) -> Config:
    if section is None:
        return replace(Config(), **values)
    return replace(Config(), **{section: replace(getattr(Config(), section), **values)})


@pytest.mark.parametrize(
    "now",
    [
        changed(output_dir="elsewhere"),
        changed(overwrite=True),
        changed(resume="never"),
        changed(logging=LoggingSection(trackers=["tensorboard"], project="x")),
        changed(checkpoint=CheckpointSection(every_steps=3, keep=9)),
        changed("data", inspect=3),
    ],
)
def test_what_may_change(now: Config) -> None:
    """Nothing that is trained depends on it."""
    assert differing(plain(Config()), now) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (changed(seed=3), "seed: 0 -> 3"),
        (changed("model", path="b"), 'model.path: "gpt2" -> "b"'),
        (changed("model", pad_token="p"), 'model.pad_token: null -> "p"'),
        (changed("sft", learning_rate=1e-3), "sft.learning_rate: 2e-05 -> 0.001"),
        (changed("ppo", stop_token_ids=[7]), r'ppo.stop_token_ids: "[]" -> "[7]"'),
        (changed("data", test_fraction=0.5), "data.test_fraction: 0.1 -> 0.5"),
    ],
)
def test_what_may_not(now: Config, said: str) -> None:
    """Each by its key, before and now."""
    assert differing(plain(Config()), now) == [said]
    both = replace(now, reward=replace(now.reward, epochs=2.0))
    assert "reward.epochs: 1.0 -> 2.0" in differing(plain(Config()), both)


@pytest.mark.parametrize(
    ("ppo", "more", "grows"),
    [
        ({}, 1, True),
        ({}, -1, False),
        ({"lr_schedule": "cosine"}, 1, False),
        ({"lr_schedule": "linear"}, 1, False),
        ({"warmup_ratio": 0.1}, 1, False),
    ],
)
def test_updates_may_grow(ppo: dict[str, Any], more: int, grows: bool) -> None:
    """Where no rate depends on how many there will be: a constant schedule without a warm-up."""
    base = {"updates": 10, "lr_schedule": "constant", "warmup_ratio": 0.0, **ppo}
    before = replace(Config(), ppo=replace(PPOSection(), **base))
    now = replace(before, ppo=replace(before.ppo, updates=10 + more))
    assert differing(plain(before), now) == ([] if grows else [f"ppo.updates: 10 -> {10 + more}"])


def test_keys_of_other_versions() -> None:
    """One that the run did not know has its default; one that is gone is named."""
    before = plain(Config())
    del before["ppo"]["temperature"]
    assert differing(before, Config()) == []
    assert differing(before, changed("ppo", temperature=0.5)) == ["ppo.temperature: 1.0 -> 0.5"]
    before["ppo"]["old"] = 1
    assert differing(before, Config()) == ["ppo.old: is gone"]
