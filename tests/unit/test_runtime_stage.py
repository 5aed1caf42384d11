"""Stage folders, fingerprints and metrics."""

import copy
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from _models import LAUNCH, causal, toy_tokenizer
from _stages import config, facts, write
from accelerate import PartialState
from cores.runtime.metrics import Metrics
from cores.runtime.stage import StageFolder

from cores.config import Config, LoggingSection
from cores.errors import UserError
from cores.models import load_policy, load_tokenizer, save_model
from cores.runtime.fingerprint import model_files, sha256_file, tokenizer_fingerprint
from cores.runtime.launch import Launch
from cores.runtime.parents import load_parents

OTHER_RANK = Launch(1, 2, torch.device("cpu"), "fp32")


def fail(made: Config, error: BaseException) -> None:
    """A stage that breaks after it has written something."""
    with StageFolder(made, "sft", LAUNCH, 0.0) as folder:
        (folder.path / "model.safetensors").write_text("half")
        raise error


def test_a_stage_is_moved_to_its_place_when_it_is_complete(tmp_path: Path) -> None:
    """Invariant 30: before `finish` nothing stands there; afterwards the files with their hashes,
    the configuration and versions, and nothing beside."""
    root = tmp_path / "run"
    folder = StageFolder(config(root, seed=5), "sft", LAUNCH, 0.0)
    folder.check()
    with folder:
        (folder.path / "model.safetensors").write_text("weights")
        assert not folder.final.exists()
        folder.finish(facts(metrics={"loss": 1.5}))
    assert [p.name for p in root.iterdir()] == ["sft"]
    record = json.loads((root / "sft" / "stage.json").read_text())
    digest = sha256_file(root / "sft" / "model.safetensors")
    assert record["files"] == {"model.safetensors": digest}
    assert (record["stage"], record["processes"], record["metrics"]) == ("sft", 1, {"loss": 1.5})
    assert record["config"]["seed"] == 5
    assert record["versions"]["torch"] == torch.__version__


def test_nothing_half_written_after_an_error(tmp_path: Path) -> None:
    """Invariant 30: an exception leaves no folder, not even the run's own, and goes on."""
    root = tmp_path / "run"
    with pytest.raises(RuntimeError, match="broken"):
        fail(config(root), RuntimeError("broken"))
    assert not root.exists()


def test_an_error_leaves_other_stages_and_the_old_one(tmp_path: Path) -> None:
    """Invariant 30: a failed --overwrite keeps the finished stage as it was."""
    write(tmp_path, "sft", "old")
    before = model_files(tmp_path / "sft")
    with pytest.raises(KeyboardInterrupt):
        fail(config(tmp_path, overwrite=True), KeyboardInterrupt())
    assert model_files(tmp_path / "sft") == before
    assert [p.name for p in tmp_path.iterdir()] == ["sft"]


def test_overwrite_replaces_the_whole_folder(tmp_path: Path) -> None:
    """Invariant 30: files of the old stage do not stay; without --overwrite it is an error; what a
    killed run left is cleared."""
    folder = write(tmp_path, "sft", "old")
    (folder / "extra.json").write_text("{}")
    for name in (".sft.partial", ".sft.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "junk.json").write_text("{}")
    with pytest.raises(UserError, match=r"exists already\. Give --overwrite"):
        StageFolder(config(tmp_path), "sft", LAUNCH, 0.0).check()
    StageFolder(config(tmp_path, overwrite=True), "sft", LAUNCH, 0.0).check()
    write(tmp_path, "sft", "new")
    assert (folder / "model.safetensors").read_text() == "new"
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "stage.json"}
    assert [p.name for p in tmp_path.iterdir()] == ["sft"]


def test_an_output_dir_that_is_a_file(tmp_path: Path) -> None:
    """Invariant 30: found before anything is computed."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        StageFolder(config(tmp_path / "file" / "run"), "sft", LAUNCH, 0.0).check()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    """Invariant 31: only the main process makes, finishes and clears the folder."""
    root = tmp_path / "run"
    asked = LoggingSection(trackers=["tensorboard"])
    folder = StageFolder(config(root, logging=asked), "sft", OTHER_RANK, 0.0)
    with folder:
        folder.finish(facts())
        with Metrics(folder) as metrics:
            metrics.log(1, {"loss": 1.0}, "line")
    assert not root.exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_returns_when_the_folder_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """Invariant 30: one launch runs the chain, so no rank may look for a parent that rank 0 is
    still writing: all wait, rank 0 after it has moved the folder."""
    in_place = []
    folder = StageFolder(config(tmp_path), "sft", replace(OTHER_RANK, rank=rank), 0.0)
    monkeypatch.setattr(
        PartialState, "wait_for_everyone", lambda self: in_place.append(folder.final.exists())
    )
    with folder:
        folder.finish(facts())
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


def test_fingerprints_notice_what_matters(tmp_path: Path) -> None:
    """Invariant 30: vocabulary, special tokens and chat template; weights, configs and tokenizers
    in sub-folders too, stage.json and logs not."""
    tokenizer = toy_tokenizer()
    first = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(copy.deepcopy(tokenizer)) == first
    for name, value in (("pad_token", "w9"), ("eos_token", "w9"), ("chat_template", "x")):
        changed = copy.deepcopy(tokenizer)
        setattr(changed, name, value)
        assert tokenizer_fingerprint(changed) != first, name
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["new"])
    assert tokenizer_fingerprint(grown) != first
    save_model(causal("gpt2"), tokenizer, tmp_path)
    (tmp_path / "critic").mkdir()
    for name in ("critic/model.safetensors", "stage.json", "metrics.jsonl", "chat_template.jinja"):
        (tmp_path / name).write_text("x")
    found = set(model_files(tmp_path))
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} < found
    assert {"critic/model.safetensors", "chat_template.jinja"} < found
    assert not {"stage.json", "metrics.jsonl"} & found


def test_metrics_are_one_json_object_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariant 24: each entry is on disk at once, with its step and seconds, and on the screen."""
    folder = StageFolder(config(tmp_path), "sft", LAUNCH, 0.0)
    folder.path.mkdir()
    with Metrics(folder) as metrics:
        metrics.log(1, {"loss": 2.5}, "first")
        lines = (folder.path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[0]).items() >= {"step": 1, "loss": 2.5}.items()
        metrics.log(2, {"loss": 1.25, "kl": 0.1}, "second")
    rows = [json.loads(x) for x in (folder.path / "metrics.jsonl").read_text().splitlines()]
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 2.5), (2, 1.25)]
    assert rows[1]["seconds"] >= rows[0]["seconds"] >= 0
    assert capsys.readouterr().out == "first\nsecond\n"


def test_two_runs_of_one_stage_do_not_write_over_each_other(tmp_path: Path) -> None:
    """The second is refused while the first lives; what a killed run left is cleared."""
    partial = tmp_path / ".sft.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_text("theirs")
    (partial / "process").write_text(str(os.getppid()))
    with pytest.raises(UserError, match=rf"process {os.getppid()} is writing this stage now"):
        write(tmp_path, "sft")
    assert (partial / "model.safetensors").read_text() == "theirs"
    (partial / "process").write_text("999999999")
    folder = write(tmp_path, "sft", "ours")
    assert (folder / "model.safetensors").read_text() == "ours"
    assert not (folder / "process").exists()


def test_a_stage_that_another_run_finished_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    """`overwrite` is off at the end as it was at the beginning."""

    def finish_second() -> None:
        with StageFolder(config(tmp_path), "sft", LAUNCH, 0.0) as folder:
            (tmp_path / "sft").mkdir()
            folder.finish(facts())

    with pytest.raises(UserError, match="exists already"):
        finish_second()
    assert [p.name for p in tmp_path.rglob("*")] == ["sft"]
