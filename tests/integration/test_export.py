"""The folder of a checkpoint is the folder that the stage would have finished with."""

from pathlib import Path

import pytest
from _helpers import good, in_process, script
from _resume import until
from safetensors.torch import load_file
from test_resume import ADAPTERS, PPO, workplace
from torch import equal
from transformers import AutoConfig

from cores.errors import UserError

CASES = {
    "sft": ("sft", "actor", []),
    "reward": ("reward", "actor", []),
    "ppo-lora": ("ppo", "actor", ADAPTERS),
    "critic-lora": ("ppo", "critic", ADAPTERS),
    "critic-zero": ("ppo", "critic", ["--ppo.critic_init", "zero"]),
    "elsewhere": ("ppo", "critic", ["--reward.path", "{reward}"]),
    "reward-of-elsewhere": ("reward", "actor", ["--sft.path", "{sft}"]),
}


@pytest.mark.parametrize("case", list(CASES))
def test_the_last_checkpoint_is_the_finished_stage(
    case: str, tmp_path: Path, parents: Path, llama: Path, files: dict[str, Path], monkeypatch
) -> None:
    """Weights bit for bit; of the critic also the mean that its values are less."""
    stage, role, more = CASES[case]
    out, made = workplace(tmp_path / "out", parents), tmp_path / "made"
    for gone in {"sft": ["sft", "reward"], "reward": ["reward"], "ppo": []}[stage]:
        (out / gone).unlink()
    for name in ("sft", "reward"):
        if f"{{{name}}}" in more:
            (out / name).unlink()
    short = PPO[2:] if stage == "ppo" else [f"--{stage}.learning_rate", "1e-2"]
    places = {"sft": parents / "sft", "reward": parents / "reward"}
    steps = 2 if stage == "ppo" else 3
    words = [*good(llama, files, out), *short, *(word.format(stage, **places) for word in more)]
    until(monkeypatch, stage, words, steps)
    script(
        "export.py",
        [str(out / f"{stage}.unfinished"), str(made), "--step", str(steps), "--role", role],
    )
    in_process(stage, words)
    finished = out / stage / ("critic" if role == "critic" else "")
    one, other = (load_file(folder / "model.safetensors") for folder in (made, finished))
    assert one.keys() == other.keys()
    if stage == "reward":  # calibration, behind the last step, scales the head
        ratio = other["score.weight"] / one.pop("score.weight")
        assert ratio.std() < 1e-5 < ratio.mean()
    assert [name for name in one if not equal(one[name], other[name])] == []
    mean = [getattr(AutoConfig.from_pretrained(f), "reward_mean", 0) for f in (made, finished)]
    assert stage == "reward" or mean[0] == mean[1]
    assert not (role == "critic" and "zero" not in case) or mean[1] != 0


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    """A run without a folder, finished or of a newer program; a folder that stands in the way."""
    with pytest.raises(UserError, match=r"ppo\.unfinished: no unfinished run there"):
        script(
            "export.py", [str(tmp_path / "ppo.unfinished"), str(tmp_path / "made"), "--step", "1"]
        )
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "stage.json").write_text("{}")
    with pytest.raises(UserError, match="ppo: a finished stage, a model as it stands"):
        script("export.py", [str(tmp_path / "ppo"), str(tmp_path / "made"), "--step", "1"])
    (tmp_path / "ppo.unfinished").mkdir()
    (tmp_path / "ppo.unfinished" / "state.json").write_text('{"version": 2}')
    with pytest.raises(UserError, match="written by a newer version of this program"):
        script(
            "export.py", [str(tmp_path / "ppo.unfinished"), str(tmp_path / "made"), "--step", "1"]
        )
    with pytest.raises(UserError, match="exists already"):
        script("export.py", [str(tmp_path / "ppo.unfinished"), str(tmp_path), "--step", "1"])


def test_help_has_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    """And what RUN and OUT are."""
    with pytest.raises(SystemExit):
        script("export.py", ["--help"])
    said = capsys.readouterr().out
    assert "\n    python scripts/export.py RUN --step N OUT\n" in said
    assert "A reward\nmodel is not calibrated yet" in said
