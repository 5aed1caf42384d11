"""Lines now and then, the bar between them, what a line says, and which command comes next."""

import io
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import LAUNCH, causal

from cores.config import Config
from cores.run import progress
from cores.run.progress import Progress, clock, described, onward
from cores.runtime.screen import Log, Screen

CPU = torch.device("cpu")


class Clock:
    """Stands in for `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def steps(made: Progress, time: Clock, last: int, seconds: float, logged: int) -> None:
    """Steps up to `last` that take so long each; figures behind every one that `logged` divides."""
    for step in range(made.done + 1, last + 1):
        time.now += seconds
        made.step(step)
        if step % logged == 0:
            made.note(step, f"loss {step}")


def test_a_line_a_minute_in_a_file(time: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """The first figures, then every minute whether or not there are newer ones, then the last; the
    time left is that of the pace since this run went on."""
    made = Progress("sft", 400, 100, CPU)
    steps(made, time, 400, 1.0, 50)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        f"sft {step}/400" for step in (150, 210, 270, 330, 390, 400)
    ]
    assert [line.split("  ")[1:3] for line in lines[:2]] == [
        ["loss 150", "4:10 left"], ["loss 200", "3:10 left"],
    ]  # fmt: skip
    assert lines[-1].startswith("sft 400/400  loss 400  ")
    assert "left" not in lines[-1]


def test_lines_are_no_denser_where_steps_are_fast(time: Clock, capsys: Any) -> None:
    made = Progress("ppo", 5000, 0, CPU)
    steps(made, time, 5000, 0.01, 1)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_the_bar_is_on_a_terminal_and_in_no_log(time: Clock, monkeypatch: Any) -> None:
    """It is taken away before anything else is written; lines come every ten seconds."""
    terminal, log = io.StringIO(), Log()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    screen: Any = Screen(terminal, log)
    monkeypatch.setattr("sys.stdout", screen)
    made = Progress("sft", 40, 0, CPU)
    steps(made, time, 25, 1.0, 5)
    print("note: something")
    written = terminal.getvalue()
    assert "sft [##----------------------] 4/40" in written
    assert max(map(len, written.replace("\r\x1b[K", "\n").splitlines())) < 80
    kept = "".join(log.waiting)
    assert [line.split("  ")[0] for line in kept.splitlines()] == [
        "sft 5/40", "sft 15/40", "sft 25/40", "note: something",
    ]  # fmt: skip
    assert "[#" not in kept
    for line in kept.splitlines():  # each stands at the beginning of a line
        before = written[: written.index(line)]
        assert before.endswith(("\n", "\r\x1b[K"))


def test_what_is_trained_is_told() -> None:
    """Weights and how many of them are trained; several processes."""
    model = causal("gpt2")
    told = described(model, Config(), replace(LAUNCH, world=2))
    assert told.startswith("GPT2LMHeadModel, 0.0 M weights, 2 x CPU, fp32")
    model.requires_grad_(False)
    assert "0.0 M trained" in described(model, Config(), LAUNCH)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61, "1:01"), (3723.4, "1:02:03")])
def test_times(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("words", "stage", "expected"),
    [
        ("python stage1_sft.py --config a.yaml", "sft", "python stage2_rm.py --config a.yaml"),
        ("accelerate launch --quiet x/stage2_rm.py --seed 1", "reward",
         "accelerate launch --quiet x/stage3_ppo.py --seed 1"),
        ("python stage1_sft.py --overwrite --resume auto --a 'b c'", "sft",
         "python stage2_rm.py --a 'b c'"),
        ("python stage1_sft.py --resume=never", "sft", "python stage2_rm.py"),
        ("python stage1_sft.py --overwrite true --seed 1 --resume auto", "sft",
         "python stage2_rm.py --seed 1"),
        ("torchrun --nproc 2 /r/stage3_ppo.py --config a.yaml", "ppo",
         "python /r/scripts/chat.py --config a.yaml"),
        ("python -m pytest", "sft", None),
    ],
)  # fmt: skip
def test_the_next_command(words: str, stage: str, expected: str | None) -> None:
    """The same words for the next stage, without what would replace or discard something; after
    the last one the models are there to talk to."""
    assert onward(shlex.split(words), stage, Config()) == expected


def test_stages_that_are_not_needed_are_passed_over(tmp_path: Path) -> None:
    """With a reward model from elsewhere, or none, stage 1 is followed by stage 3."""
    given = Config()
    words = ["python", "stage1_sft.py"]
    elsewhere = replace(given, reward=replace(given.reward, path="x"))
    functions = replace(given, ppo=replace(given.ppo, rewards={"a.py:f": 1.0}))
    for config in (elsewhere, functions):
        assert onward(words, "sft", config) == "python stage3_ppo.py"


def test_a_screen_that_user_code_has_closed(monkeypatch: Any) -> None:
    """A reward function did, before the first step; steps are counted all the same."""
    screen: Any = Screen(io.StringIO(), Log())
    monkeypatch.setattr("sys.stdout", screen)
    screen.close()
    made = Progress("sft", 40, 0, CPU)
    made.note(1, "loss 1")
    assert not made.terminal
    assert "sft 1/40" in screen.log.waiting[0]
