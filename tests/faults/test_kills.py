"""A dozen of the trials of `trials.py`: kills and failing writes, then the same command again."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

import trials  # noqa: E402


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> trials.Place:
    """What uninterrupted runs make."""
    return trials.Place(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    ("stage", "point"),
    [
        ("sft", "training:4"),
        ("sft", "recorded:1"),
        ("reward", "checkpoint-file:2"),
        ("ppo", "rollout:4"),
        ("ppo", "update:6"),
        ("ppo", "checkpoint-manifest:2"),
        ("ppo", "checkpoint-rename:2"),
        ("ppo", "rotation:2"),
        ("ppo", "evaluation:2"),
        ("ppo", "exchange:1"),
        ("ppo", "exchanged:1"),
        ("ppo", "full-tensors:2"),
        ("ppo", "io-rename:2"),
    ],
)
def test_the_same_command_finishes_it_bit_for_bit(
    place: trials.Place, stage: str, point: str
) -> None:
    """And an older finished stage is there all the time."""
    older = point.startswith("exchang") or point == "update:6"
    assert trials.trial(place, point, stage, older) == ""
