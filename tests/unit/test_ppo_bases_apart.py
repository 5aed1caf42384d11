"""What keeps the roles of stage 3 from one frozen base, by name."""

import re
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from _models import (
    LORA,
    causal,
    ppo_config,
    toy_tokenizer,
)
from _one_base import parents_in, trainer_of
from safetensors.torch import load_file, save_file

from cores.errors import UserError
from cores.models import save_model
from cores.ppo.one_base import Bases, bases
from cores.runtime.parents import Parent


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The parents of a kind."""
    return parents_in(tmp_path_factory.mktemp("stages"))


def without(parent: Parent, **changes: Any) -> Parent:
    """A parent whose record says something else."""
    return replace(parent, record=parent.record | changes)


def test_what_keeps_them_apart_is_named(made: Any, capsys: Any, tmp_path: Path) -> None:
    """Where it must be one base and cannot: which key, why, what to do; by default a line says what
    is shared and why the rest is not."""
    parents = made("gpt2")
    sft, reward = parents["sft"], parents["reward"]
    other = without(reward, parents={"sft": {"files": {"model.safetensors": "another"}}})
    based = without(reward, parents={**reward.record["parents"], "base": {}})
    full = replace(reward, folder=tmp_path)
    elsewhere = without(reward, source={"hub": "someone/else"})
    cases = [
        (other, 0, "stage 2's adapter is to another model than"),
        (based, 0, r"a base of its own \(reward.base\)"),
        (full, 0, r"stage 2 trained no adapter \(reward.lora.rank\)"),
        (elsewhere, 0, r"the reward model is from elsewhere \(reward.path\)"),
        (reward, 2, r"the launch makes shards \(DeepSpeed ZeRO-2\)"),
    ]
    for parent, stage, words in cases:
        given = {"sft": sft, "reward": parent}
        must, may, apart = (
            ppo_config(lora=replace(LORA, share_base=share)) for share in ("true", "auto", "false")
        )
        with pytest.raises(
            UserError, match=f"ppo.lora.share_base: true is not possible: .*{words}"
        ):
            bases(must, given, None, stage)
        found = bases(may, given, None, stage)
        assert not found.one
        assert re.search(
            f"one base: actor, reference; critic and reward model on .*{words}", found.line
        )
        assert bases(apart, given, None, stage) == Bases()
    unhashed = without(sft, files=dict.fromkeys(sft.record["files"], ""))  # on another rank
    must = ppo_config(lora=replace(LORA, share_base="true"))
    assert bases(must, {"sft": unhashed, "reward": reward}, None, 0).reward
    trainer_of(parents, "auto")
    assert "one base: actor, reference, critic, reward model\n" in capsys.readouterr().out
    assert not bases(ppo_config(), parents, None, 0).one  # all weights are trained
    t5 = ppo_config(lora=replace(LORA, share_base="true"))
    save_model(causal("t5"), toy_tokenizer(), tmp_path / "t5")
    given = {"sft": Parent("sft", tmp_path / "t5", {}), "reward": reward}
    with pytest.raises(UserError, match="classifier of t5 have bodies of two kinds"):
        bases(t5, given, None, 0)


def test_an_adapter_that_is_not_whole(made: Any, tmp_path: Path) -> None:
    """A tensor that is missing, of another shape or no number is refused with its folder."""
    parents = made("gpt2")
    folder = tmp_path / "reward"
    copytree(parents["reward"].folder, folder)
    file = folder / "adapter/adapter_model.safetensors"
    whole = load_file(file)
    first = next(name for name in whole if "lora_A" in name)
    head = next(name for name in whole if "score" in name)
    for changed, words in (
        ({n: t for n, t in whole.items() if n != first}, "are not those of its adapter_config"),
        ({n: t for n, t in whole.items() if n != head}, "are not those of its adapter_config"),
        (whole | {head: torch.zeros(1, 3)}, "are not those of its adapter_config"),
        (whole | {first: whole[first] * float("nan")}, "NaN or infinite values"),
    ):
        save_file(changed, file)
        given = {**parents, "reward": replace(parents["reward"], folder=folder)}
        with pytest.raises(UserError, match=words):
            trainer_of(given, "true")
