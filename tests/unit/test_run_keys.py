"""What of an unfinished run may change, and what is said of what may not."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from _models import LAUNCH
from _stages import begun, config, write
from test_run_stage import break_off

from cores.config import (
    CheckpointSection,
    Config,
    FaultsSection,
    LoggingSection,
    PPOSection,
    parse_config,
    plain,
)
from cores.errors import UserError
from cores.run import StageRun
from cores.run.folder import differing, read_state


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
        changed(faults=FaultsSection(nonfinite="skip", max_skips=9)),
        changed("ppo", reward_timeout=None, sample_every=0),
    ],
)
def test_what_may_change(now: Config) -> None:
    """Nothing that is trained depends on it, and what errors advise for going on is among it."""
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
    (other,) = [line for line in differing(plain(Config()), both) if line != said]
    assert other.startswith("reward.epochs: 1.0 -> 2.0 (")


@pytest.mark.parametrize(
    ("ppo", "more", "grows"),
    [
        ({}, 1, True),
        ({}, -1, False),
        ({"lr_schedule": "cosine"}, 1, False),
        ({"lr_schedule": "linear"}, 1, False),
        ({"warmup": 0.1}, 1, False),
        ({"warmup": 1}, 1, True),
        ({"warmup": 3}, 1, True),
    ],
)
def test_updates_may_grow(ppo: dict[str, Any], more: int, grows: bool) -> None:
    """Where no rate depends on how many there will be: a constant schedule without a warm-up."""
    base = {"updates": 10, "lr_schedule": "constant", "warmup": 0.0, **ppo}
    before = replace(Config(), ppo=replace(PPOSection(), **base))
    now = replace(before, ppo=replace(before.ppo, updates=10 + more))
    said = f"ppo.updates: 10 -> {10 + more} (warm-up and schedule are shares of it; it may grow in"
    lines = differing(plain(before), now)
    assert not lines if grows else [line[: len(said)] for line in lines] == [said]


@pytest.mark.parametrize("key", ["sft.epochs", "sft.max_steps", "reward.epochs"])
def test_other_lengths_say_why_not(key: str) -> None:
    """Warm-up and schedule of stages 1 and 2."""
    section, _, name = key.partition(".")
    (line,) = differing(plain(Config()), changed(section, **{name: 7}))
    assert line.startswith(f"{key}: ")
    assert line.endswith("-> 7 (warm-up and schedule are shares of it)")


def test_keys_of_other_versions() -> None:
    """One that the run did not know has its default; one that is gone is named."""
    before = plain(Config())
    del before["ppo"]["temperature"]
    assert differing(before, Config()) == []
    assert differing(before, changed("ppo", temperature=0.5)) == ["ppo.temperature: 1.0 -> 0.5"]
    before["ppo"]["old"] = 1
    assert differing(before, Config()) == ["ppo.old: is gone"]


def test_keys_that_were_renamed(tmp_path: Path) -> None:
    """Are what they are called now: such a run goes on, with the same value alone."""
    before = plain(Config())
    for stage in ("sft", "reward", "ppo"):
        before[stage]["warmup_ratio"] = before[stage].pop("warmup")
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"config": before, "facts": {}}), encoding="utf-8")
    found = read_state(path)["config"]
    assert differing(found, Config()) == []
    assert differing(found, changed("sft", warmup=7)) == ["sft.warmup: 0.03 -> 7"]


def depends(data: str = "d" * 64, folder: str = "runs/a/sft", sft: str = "a" * 64) -> Any:
    """What a run of stage 2 or 3 depends on, of two sources of data."""
    sources = [{"train": {"fingerprints": {name: data}, "read": 3}} for name in ("a.csv", "b.csv")]
    parents = {"sft": {"folder": folder, "files": {"model.safetensors": sft}}}
    return {"data": {"sources": sources}, "parents": parents, "reward_files": "x"}


def test_other_data_or_parents_are_refused(tmp_path: Path) -> None:
    """Each by source, split and file; the files of reward functions may be mended, with a note."""
    path, about = break_off(config(tmp_path), 3, **depends()), depends()
    about["data"]["sources"][1]["train"] |= {"fingerprints": {"b.csv": "e" * 64}, "read": 4}
    said = (
        f"{path}: data are not what the unfinished run began with (data.sources[1].train."
        f'fingerprints.b.csv: "{"d" * 12}... -> "{"e" * 12}...; data.sources[1].train.read: 3 -> '
        "4). Put"
    )
    with pytest.raises(UserError, match=re.escape(said)):
        begun(config(tmp_path), **about)
    with pytest.raises(UserError, match=r": data and parents are not .*; parents\.sft\.files\."):
        begun(config(tmp_path), **depends("e" * 64, sft="b" * 64))
    with pytest.raises(UserError, match=r": parents are not .*\(parents\.sft: .* -> null\)"):
        begun(config(tmp_path), **{**depends(), "parents": {}})
    assert begun(config(tmp_path), **{**depends(), "reward_files": "y"}).resumed is not None


def test_a_run_may_be_moved(tmp_path: Path) -> None:
    """Its parents are the same by their files, wherever the folder is."""
    break_off(config(tmp_path / "a"), 3, **depends())
    (tmp_path / "a").rename(tmp_path / "b")
    assert begun(config(tmp_path / "b"), **depends(folder="runs/b/sft")).resumed is not None


def test_mended_reward_functions_are_said(tmp_path: Path, capsys: Any) -> None:
    break_off(config(tmp_path), 3, reward_files="x")
    begun(config(tmp_path), reward_files="y")
    assert "the files of ppo.rewards are not those" in capsys.readouterr().out


def test_resume_never_removes_when_training_begins(tmp_path: Path, capsys: Any) -> None:
    """Said before data and models are read; a mistake in those costs no checkpoint."""
    path = break_off(config(tmp_path, seed=1), 3, 7)
    made = config(tmp_path, seed=2, resume="never")

    def fails() -> None:
        run.claim()
        raise UserError("no such data")

    with pytest.raises(UserError, match="no such data"), StageRun(made, "sft", LAUNCH, 0.0) as run:
        fails()
    said = f"--resume never: {path} (2 checkpoints, the newest at step 7) is removed when"
    assert said in capsys.readouterr().out
    assert (path / "checkpoints" / "step-7").exists()
    with begun(made) as run:  # which ends without having finished
        assert run.resumed is None
        assert not (path / "checkpoints").exists()
    begun(made)
    assert "(0 checkpoints, nothing to go on from)" in capsys.readouterr().out


def test_resume_never_beside_a_finished_stage(tmp_path: Path) -> None:
    """It needs --overwrite, which a run that goes on remembers; refused, it has removed nothing."""
    write(tmp_path, "sft")
    path = break_off(config(tmp_path, overwrite=True), 3)
    with pytest.raises(UserError, match="exists already"):
        begun(config(tmp_path, resume="never"))
    assert (path / "checkpoints" / "step-3").exists()
    assert begun(config(tmp_path, resume="never", overwrite=True)).resumed is None


def test_the_command_to_go_on_with_removes_nothing(tmp_path: Path, monkeypatch) -> None:
    """One that began by removing an older run would remove this one as well."""
    monkeypatch.setattr("sys.argv", ["stage1_sft.py", "--resume", "never"])
    path = break_off(config(tmp_path, resume="never"), 3)
    resume = json.loads((path / "state.json").read_text())["resume"]
    assert resume.endswith("stage1_sft.py --resume never --resume auto")
    assert parse_config(resume.split()[2:], "", "").resume == "auto"
