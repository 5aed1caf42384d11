"""One run of a stage: the claim of its folder, what it leaves when it breaks off, and the end."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from _models import LAUNCH, causal, toy_tokenizer
from _stages import begun, config, facts, save_weights, state, write
from torch import nn

from cores import files
from cores.config import Config, LoggingSection
from cores.errors import UserError
from cores.models import load_policy, load_tokenizer, save_model
from cores.run import Checkpoint, StageRun, Stopped
from cores.runtime.fingerprint import model_files, sha256_file
from cores.runtime.launch import Launch
from cores.runtime.parents import load_parents
from cores.runtime.stop import STOP

OTHER_RANK = Launch(1, 2, torch.device("cpu"), "fp32")


def claimed(made: Config, stage: str = "sft") -> StageRun:
    run = StageRun(made, stage, LAUNCH, 0.0)
    run.claim()
    return run


def break_off(made: Config, *steps: int, error: BaseException | None = None, **about: Any) -> Path:
    """A run that saves at these steps, with a row of metrics for each, and then fails; gives its
    folder."""
    failure, run = error or RuntimeError("broken"), begun(made, **about)

    def train() -> None:
        run.going_on(9, nn.Linear(1, 1))
        for step in steps:
            run.log(step, {"loss": 1.0 / step}, f"loss {step}")
            run.save(step, state(step))
        raise failure

    with pytest.raises(type(failure)), run:
        train()
    return run.path


def names(folder: Path) -> set[str]:
    """What stands there beside the report, which every end of a run writes."""
    return {p.name for p in folder.iterdir()} - {"report.html"}


def record(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_finish_waits_for_a_checkpoint_under_way(tmp_path: Path) -> None:
    """Whoever calls it: what is still being written would be moved away from under it."""
    run, waited = begun(config(tmp_path)), []
    with run:
        writing: Any = SimpleNamespace(result=lambda: waited.append(run.final.exists()))
        run.writing = writing
        run.finish(save_weights(), facts())
    assert waited == [False]


def test_a_stage_is_moved_to_its_place_when_it_is_complete(tmp_path: Path) -> None:
    """Invariant 30: before `finish` nothing stands there; afterwards the files with their hashes,
    the configuration and versions, what the screen said, and nothing beside."""
    root = tmp_path / "run"
    run = begun(config(root, seed=5))
    with run:
        run.save(3, state(3))
        assert not run.final.exists()
        assert names(root) == {".sft.lock", "sft.unfinished"}
        run.finish(save_weights(), facts(metrics={"loss": 1.5}))
    assert names(root) == {"sft"}
    assert names(root / "sft") == {
        "model.safetensors", "config.json", "stage.json", "log.txt", "README.md",
    }  # fmt: skip
    found = record(root / "sft" / "stage.json")
    digest = sha256_file(root / "sft" / "model.safetensors")
    assert found["files"].items() >= {"model.safetensors": digest}.items()
    assert (found["stage"], found["processes"], found["metrics"]) == ("sft", 1, {"loss": 1.5})
    assert (found["version"], found["config"]["seed"]) == (1, 5)
    assert found["versions"]["torch"] == torch.__version__


def test_an_error_before_the_run_begins_leaves_nothing(tmp_path: Path) -> None:
    """Invariant 30: not even the output_dir that was made for the claim."""
    run = StageRun(config(tmp_path / "a" / "run"), "sft", LAUNCH, 0.0)

    def claim() -> None:
        run.claim()
        assert names(tmp_path / "a" / "run") == {".sft.lock"}
        raise UserError("no such data")

    with pytest.raises(UserError, match="no such data"), run:
        claim()
    assert names(tmp_path) == set()


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), Stopped("told")])
def test_an_error_keeps_what_was_trained(error: BaseException, tmp_path: Path) -> None:
    """Metrics, log, state and checkpoints stay, with the reason; the finished older stage is as it
    was, and no lock stays."""
    old = write(tmp_path, "sft", "old")
    before = {p: p.read_bytes() for p in old.iterdir()}
    path = break_off(config(tmp_path, overwrite=True), 2, 4, error=error)
    assert {p: p.read_bytes() for p in old.iterdir()} == before
    assert names(tmp_path) == {"sft", "sft.unfinished"}
    assert names(path) == {"metrics.jsonl", "log.txt", "state.json", "checkpoints"}
    assert names(path / "checkpoints") == {"step-2", "step-4"}
    assert record(path / "state.json")["stopped"] == f"{type(error).__name__}: {error}"


def test_it_goes_on_from_the_newest_checkpoint(tmp_path: Path, capsys: Any) -> None:
    """With its state, time and rows up to there; the log goes on behind the first part's."""
    made = config(tmp_path)
    path = break_off(made, 2, 4, about_data="a")
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 9.0}\n{"step": 6, "lo')
    run = begun(made, about_data="a")
    assert run.resumed is not None
    assert (run.resumed.step, run.resumed.numbers["at"], run.saved) == (4, 4, 4)
    assert run.resumed.tensors("weights")["w"].tolist() == [4.0] * 3
    assert run.seconds >= run.seconds_before > 0
    rows = [json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    assert run.last_row() == {"loss": 0.25}
    with run:
        run.going_on(9, nn.Linear(1, 1))
        assert STOP.stepping
        run.stepped()
        run.finish(save_weights(), facts())
    assert "resuming sft at step 4 of 9" in capsys.readouterr().out
    text = (tmp_path / "sft" / "log.txt").read_text()
    assert text.index("sft 2/9") < text.index("resuming sft at step 4 of 9") < text.index("wrote ")


def test_without_a_checkpoint_it_begins_anew(tmp_path: Path) -> None:
    """The rows of the first attempt go, whatever its options were."""
    path = break_off(config(tmp_path))
    (path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    run = begun(config(tmp_path, seed=9))
    assert run.resumed is None
    assert (path / "metrics.jsonl").read_text() == ""


def test_other_options_are_refused_before_anything_is_touched(tmp_path: Path) -> None:
    """By key, with both values and the ways out."""
    path = break_off(config(tmp_path, seed=1), 3)
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    for _ in range(2):  # a second try is refused like the first
        with (
            pytest.raises(
                UserError, match=r"other options stands there, at step 3: seed: 1 -> 2\. "
            ),
            StageRun(config(tmp_path, seed=2), "sft", LAUNCH, 0.0) as run,
        ):
            run.claim()
    assert {p: p.stat().st_mtime_ns for p in path.rglob("*")} == before


def test_a_finished_stage_needs_overwrite(tmp_path: Path) -> None:
    """Refused before anything; a run that began with it goes on without."""
    write(tmp_path, "sft", "old")
    with pytest.raises(UserError, match=r"exists already\. Give --overwrite"):
        claimed(config(tmp_path))
    break_off(config(tmp_path, overwrite=True), 3)
    break_off(config(tmp_path), 4)
    run = begun(config(tmp_path))
    assert run.resumed is not None
    with run:
        run.finish(save_weights("new"), facts())
    assert (tmp_path / "sft" / "model.safetensors").read_text() == "new"


@pytest.mark.parametrize("exchanges", [True, False], ids=["renameat2", "two renames"])
def test_overwrite_replaces_the_whole_folder(
    exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invariant 30: files of the old stage do not stay, on file systems that exchange names and on
    those that do not."""
    if not exchanges:
        monkeypatch.setattr(files, "RENAME_EXCHANGE", 1 << 30)  # EINVAL
    folder = write(tmp_path, "sft", "old")
    (folder / "extra.json").write_text("{}")
    write(tmp_path, "sft", "new")
    assert (folder / "model.safetensors").read_text() == "new"
    assert names(folder) == {
        "model.safetensors", "config.json", "stage.json", "log.txt", "README.md",
    }  # fmt: skip
    assert names(tmp_path) == {"sft"}


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 31: only the main process makes, finishes and clears the folder; the others learn
    from it what to go on from."""
    root = tmp_path / "run"
    monkeypatch.setattr(Launch, "shared", lambda self, value: value)
    monkeypatch.setattr(Launch, "agree", lambda self, *values: list(values))
    asked = LoggingSection(trackers=["tensorboard"])
    run = begun(config(root, logging=asked), launch=OTHER_RANK)
    with run:
        run.log(1, {"loss": 1.0}, "line")
        run.append("samples.jsonl", [{"update": 1}])
        run.samples("held_out_samples.jsonl", lambda: [{"a": 1}], anew=True)
        run.save(1, state(1))
        run.finish(lambda to: OTHER_RANK.once(save_weights(), to), facts())
    assert not root.exists()


def test_other_ranks_go_on_from_the_same_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = break_off(config(tmp_path), 2, 4)
    place = path / "checkpoints" / "step-2"
    sent = Checkpoint(place, 2, record(place / "state.json"))
    monkeypatch.setattr(Launch, "shared", lambda self, value: sent)
    run = StageRun(config(tmp_path), "sft", OTHER_RANK, 0.0)
    run.claim()
    assert run.resumed == sent
    assert (run.saved, run.seconds_before) == (2, sent.numbers["seconds"])


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_returns_when_the_folder_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Invariant 30: one launch runs the chain, so no rank may look for a parent that rank 0 is
    still writing: all meet, rank 0 after it has moved the folder."""
    monkeypatch.setattr(Launch, "shared", lambda self, value: value)
    run = begun(config(tmp_path), launch=replace(OTHER_RANK, rank=rank))
    in_place = []
    monkeypatch.setattr(Launch, "agree", lambda *_: in_place.append(run.final.exists()))
    with run:
        run.finish(lambda to: run.launch.once(save_weights(), to), facts())
    assert in_place == [rank == 0]


def test_home_is_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 30: in a YAML file no shell does it, and a folder named ~ is nobody's wish."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save_model(causal("gpt2"), toy_tokenizer(), tmp_path / "base")
    assert len(load_tokenizer("~/base")) == len(toy_tokenizer())
    assert load_policy("~/base", dropout=False).config.model_type == "gpt2"
    written = write(Path("~/run"), "sft")
    assert written.expanduser().is_dir()
    assert load_parents(config(Path("~/run")), ["sft"])["sft"].folder == tmp_path / "run" / "sft"


def test_the_log_has_the_end_of_a_part(tmp_path: Path, capsys: Any) -> None:
    """What is said of an error behind the run is of its log, and of no other's."""
    path = break_off(config(tmp_path), 1)
    print("error: why")
    assert (path / "log.txt").read_text().endswith("error: why\n")
    with begun(config(tmp_path / "other")):
        print("another")
    print("outside")
    assert "another" not in (path / "log.txt").read_text()
    assert (tmp_path / "other" / "sft.unfinished" / "log.txt").read_text() == "another\n"


def test_model_files_of_a_finished_stage(tmp_path: Path) -> None:
    """Those of an unfinished one are not among them."""
    folder = write(tmp_path, "sft")
    for name in ("state.json", "checkpoints/step-1/a.safetensors", "weights/step-1/config.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    assert set(model_files(folder)) == {"model.safetensors", "config.json"}
