"""The state of stage 3 as a checkpoint has it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from cores.errors import UserError
from cores.ppo.state import PPOState
from cores.run.checkpoint import Checkpoint


def saved(**changes: Any) -> Checkpoint:
    return Checkpoint(Path("step-2"), 2, {**asdict(PPOState(0.1, update=2)), "more": 1, **changes})


def test_a_state_goes_on_as_it_was() -> None:
    """What a newer program has in addition is passed over."""
    assert PPOState.of(saved(halved=True)) == PPOState(0.1, update=2, halved=True)


@pytest.mark.parametrize(
    "change",
    [
        {"update": 10**9}, {"update": -1}, {"update": "2"}, {"kl_coef": -5.0}, {"kl_coef": "1"},
        {"halved": "no"}, {"skipped": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_state_that_no_run_wrote_is_damaged(change: dict[str, Any]) -> None:
    """An update past the end would publish what was never trained, without a word."""
    with pytest.raises(UserError, match=r"step-2/state\.json: damaged \(update .*Remove step-2"):
        PPOState.of(saved(**change))
