"""What the benchmarks cannot measure, or show, they refuse before anything is run or written."""

from pathlib import Path

import pytest

from cores.errors import UserError
from scripts.bench import costs, ppo_step, rollout, tables
from scripts.bench.peers import pair
from scripts.bench.workloads import WORKLOADS, settings


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"seconds": 1}', "bench; take"),
        ("[1]", "bench; take"),
        ("{", r"bench \(line 1: .*\); take"),
        ('{"kind": "ppo_step"}', r"bench \(it has no 'standard'\); take"),
    ],
)
def test_a_file_that_is_no_measurement_is_refused(text: str, why: str, tmp_path: Path) -> None:
    """By its own name, and nothing is copied beside the project's measurements."""
    (tmp_path / "other.json").write_text(text, encoding="utf-8")
    before = sorted((tables.DOCS / "performance").iterdir())
    with pytest.raises(UserError, match=rf"other\.json: not a measurement of scripts/{why}"):
        tables.load(tmp_path)
    with pytest.raises(UserError):
        tables.main([str(tmp_path)])
    assert sorted((tables.DOCS / "performance").iterdir()) == before


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--ppo.epochs", "give --epochs in its place"),
        ("--ppo.batch_size=8", "give --batch in its place"),
        ("--rollout.engine", "give --engine in its place"),
        ("--model.precision", "it is part of the workload"),
    ],
)
def test_options_that_contradict_the_workload_are_refused(option: str, said: str) -> None:
    """They would be measured as what they are not."""
    with pytest.raises(UserError, match=f"would be measured as what it is not: {said}"):
        settings(WORKLOADS["W4"], "hf", [option, "1"])


@pytest.mark.parametrize(
    "words",
    [
        ["--batch", "0"], ["--updates", "0"], ["--warm-up", "0"], ["--minibatch", "-1"],
        ["--json", "/proc/nope/x.json"], ["--json", "."],
    ],
)  # fmt: skip
def test_numbers_and_files_that_cannot_be_are_refused_at_once(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        ppo_step.arguments(["--workload", "W4", *words])
    assert end.value.code == 2
    assert f"argument {words[0]}: {words[1]}" in capsys.readouterr().err


def test_other_benchmarks_refuse_what_they_cannot_measure(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--response 4: geometric lengths need more than 4"):
        rollout.main(
            ["--model", "tiny", "--batch", "1", "--response", "4", "--lengths", "geometric"]
        )
    with pytest.raises(UserError, match=r"--only nothing: no name has it\. There are W1-batch16"):
        costs.main([str(tmp_path), "--only", "nothing"])
    with pytest.raises(UserError, match=r"--peer-path /nowhere: there is no such folder\. Make"):
        pair.main(["--workload", "W4", "--peer-path", "/nowhere"])
