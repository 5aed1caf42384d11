"""Families whose classification class is ours: runs that stop and go on, export, adapters."""

from pathlib import Path

import pytest
import torch
from _documented import documented
from _families import family_config
from _helpers import in_process, record, script
from _resume import apart, checkpoint, metrics, until
from safetensors.torch import load_file
from test_families import make_base, words
from transformers import AutoConfig

from cores.files import read_json
from cores.models import ScalarModel, load_scalar

KINDS = {
    "codegen": "--reward.lora.rank 2 --reward.lora.merge false --reward.head_layers 2",
    "granite": "--ppo.critic_init zero",
}


@pytest.mark.parametrize("kind", KINDS)
def test_stages_2_and_3_go_on(
    kind: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit as if they had not stopped; a checkpoint's export is the finished model; the
    folders name the class, and the documented lines compute their scores."""
    base = make_base(family_config(kind), tmp_path / "base")
    outs = [tmp_path / "whole", tmp_path / "parts"]
    options = [[*words(base, files, out), *KINDS[kind].split()] for out in outs]
    in_process("sft", options[0])
    outs[1].mkdir()
    (outs[1] / "sft").symlink_to(outs[0] / "sft")
    for stage in ("reward", "ppo"):
        until(monkeypatch, stage, options[0], 2)
        for stop in (1, 2):
            until(monkeypatch, stage, options[1], stop)
        assert apart(*(checkpoint(out, stage, 2) for out in outs)) == []
        one, other = (metrics(out / f"{stage}.unfinished") for out in outs)
        assert one == other
        exported(stage, outs[0])
        for arguments in options:
            in_process(stage, arguments)
    name = f"{type_name(base)}ForSequenceClassification"
    for place in ("reward", "ppo/critic"):
        assert read_json(outs[0] / place / "config.json")["architectures"] == [name]
    model = ScalarModel(load_scalar(outs[0] / "reward")).eval()
    assert model.mean == record(outs[0] / "reward")["reward_mean"]
    ids = torch.tensor([[7, 9, 11, 5]])
    if kind == "granite":  # whole and of one layer
        stock = documented("classifier")(AutoConfig.from_pretrained(outs[0] / "reward"))
        with torch.no_grad():
            score = model.scores(ids, torch.ones_like(ids).bool()).item()
            logit = stock.from_pretrained(outs[0] / "reward").eval()(input_ids=ids).logits.item()
        assert logit - model.mean == pytest.approx(score, abs=1e-5)


def type_name(base: Path) -> str:
    """Of a language model's folder, what its class is called before ForCausalLM."""
    (name,) = read_json(base / "config.json")["architectures"]
    return str(name).removesuffix("ForCausalLM")


def exported(stage: str, out: Path) -> None:
    """The last checkpoint's folder loads: of stage 2 the reward model, of stage 3 the critic."""
    made = out.parent / f"made-{stage}"
    role = ["--role", "critic"] if stage == "ppo" else []
    script("export.py", [str(out / f"{stage}.unfinished"), str(made), "--step", "2", *role])
    model = load_scalar(made)
    if (made / "model.safetensors").exists():
        assert load_file(made / "model.safetensors").keys() == model.state_dict().keys()
