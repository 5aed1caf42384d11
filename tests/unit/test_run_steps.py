"""Between the steps of a run and behind the last: when to save and to stop, what may fail."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import LAUNCH
from _stages import begun, config
from test_run_stage import OTHER_RANK, break_off, record
from torch import nn

from cores.config import CheckpointSection
from cores.errors import UserError
from cores.run import StageRun, Stopped
from cores.runtime.launch import Launch
from cores.runtime.stop import STOP


class Clock:
    """time.monotonic, set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("cores.run.stage.time.monotonic", lambda: self.now)


def looking(root: Path, monkeypatch: pytest.MonkeyPatch, **section: Any) -> tuple[Any, Clock]:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(STOP, "reason", None)
    run = StageRun(config(root, checkpoint=CheckpointSection(**section)), "sft", LAUNCH, 1000.0)
    run.saved_at = 1000.0
    return run, clock


def test_when_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so many steps, every so many minutes since the last one, and behind the last step."""
    run, clock = looking(tmp_path, monkeypatch, every_steps=3, every_minutes=2.0)
    assert [run.look(step, last=step == 8) for step in range(1, 9)] == [
        (step in (3, 6, 8), False) for step in range(1, 9)
    ]
    clock.now += 121
    assert run.look(1, last=False) == (True, False)
    run.saved_at = clock.now
    assert run.look(1, last=False) == (False, False)


def test_when_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it was told, behind a checkpoint; by the clock if that is asked for."""
    run, clock = looking(tmp_path, monkeypatch, every_minutes=None, stop_after_minutes=5.0)
    assert run.look(1, last=False) == (False, False)
    clock.now += 301
    assert run.look(2, last=False) == (True, True)
    assert STOP.reason == "checkpoint.stop_after_minutes 5"
    with pytest.raises(Stopped, match=r"^checkpoint.stop_after_minutes 5: saved at step 2 of 9; t"):
        run.leave(2, 9)


def test_a_rank_that_was_told_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever it is: all agree at every step."""
    run, _ = looking(tmp_path, monkeypatch)
    monkeypatch.setattr(Launch, "agree", lambda self, due, told: [max(due, 0), 1])
    assert run.look(1, last=False) == (True, True)
    with pytest.raises(Stopped, match="another rank was told to stop: saved at step 1 of 2"):
        run.leave(1, 2)


def test_how_to_go_on_is_what_was_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its quotes, and the folder that it was typed in."""
    monkeypatch.setattr(sys, "argv", ["stage1_sft.py", "--output_dir", "a b"])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    found = record(break_off(config(tmp_path), 1) / "state.json")
    assert found["resume"] == f"{Path(sys.executable).name} stage1_sft.py --output_dir 'a b'"
    assert found["directory"] == os.getcwd()


def fail(error: BaseException) -> None:
    raise error


def test_what_is_optional_costs_no_stage(tmp_path: Path, capsys: Any) -> None:
    """Whatever fails behind the training is said, what is no user's mistake by its type as well;
    who ends the run ends it."""
    run = begun(config(tmp_path))
    assert run.optional("the sum", lambda: 3) == 3
    for error, said in [
        (UserError("no answer"), "no answer"),
        (torch.OutOfMemoryError("CUDA out of memory"), "OutOfMemoryError: CUDA out of memory"),
        (OSError(5, "Input/output error", "a"), "OSError: [Errno 5] Input/output error: 'a'"),
        (KeyError("x"), "KeyError: 'x'"),
    ]:
        assert run.optional("the evaluation", lambda error=error: fail(error)) is None
        assert f"the evaluation failed and is left out: {said}\n" in capsys.readouterr().out
    for end in (Stopped("told"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(end)):
            run.optional("the evaluation", lambda end=end: fail(end))


def test_what_fails_on_one_rank_alone_ends_the_run(tmp_path: Path) -> None:
    """The others wait for it in the middle; what is raised together is on all ranks."""
    run = StageRun(config(tmp_path), "sft", OTHER_RANK, 0.0)

    def together() -> None:
        OTHER_RANK.together(lambda: fail(UserError("no answer")))

    assert run.optional("the evaluation", together) is None
    for error in (KeyError("x"), UserError("memory ran out")):
        with pytest.raises(type(error)):
            run.optional("the evaluation", lambda error=error: fail(error))


def test_a_second_signal_says_how_to_go_on(tmp_path: Path, monkeypatch, capsys: Any) -> None:
    """As the first does, behind its step; by what was typed, though the launcher is gone by now."""
    monkeypatch.setattr(sys, "argv", ["stage1_sft.py", "--seed", "3"])
    said: list[tuple[str, int]] = []
    with begun(config(tmp_path)) as run:
        run.going_on(9, nn.Linear(1, 1))
        how = record(run.path / "state.json")["resume"]
        monkeypatch.setattr("cores.run.stage.command", None)
        monkeypatch.setattr(STOP, "reason", None)  # put back: trainers of other tests ask it too
        monkeypatch.setattr(STOP, "leave", lambda *told: said.append(told), raising=False)
        STOP.tell("SIGINT")
        assert (said, STOP.reason) == ([], "SIGINT")
        with pytest.raises(Stopped, match=f"to go on:\n{how}$"):
            run.leave(1, 9)
        STOP.tell("SIGINT")
    newest = "SIGINT: ended at once; to go on from the newest checkpoint, if there is one:\n"
    assert said == [(f"{newest}{how}\n", 143)]
