"""Adapters from stage to stage: merged or alone, mixed with full training, on quantised bases."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import (
    ACCELERATE,
    FEW_STEPS,
    GPT2,
    ROOT,
    SCRIPTS,
    in_process,
    record,
    script,
    sha256,
    sources,
)
from _helpers import run as start
from _modes_worker import undropped
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cores.errors import UserError
from cores.models import ScalarModel, load_policy, load_scalar

LORA = {stage: [f"--{stage}.lora.rank", "2"] for stage in SCRIPTS}
ALONE = {stage: [*LORA[stage], f"--{stage}.lora.merge", "false"] for stage in SCRIPTS}
FULL: dict[str, list[str]] = {stage: [] for stage in SCRIPTS}
FAST = """--sft.learning_rate 0.01 --reward.learning_rate 0.01 --ppo.actor_learning_rate 0.01
--ppo.critic_learning_rate 0.01""".split()
ADAPTERS = ("sft", "reward", "ppo", "ppo/critic")
WEIGHTS = "adapter/adapter_model.safetensors"
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture(scope="module")
def words(gpt2: Path, files: dict[str, Path]) -> list[str]:
    """Arguments of short runs from a GPT-2 whose vocabulary has to grow by a pad token."""
    return ["--config", str(GPT2), *sources(files), *FEW_STEPS, *FAST, "--model.path", str(gpt2)]


def chain(out: Path, words: list[str], of_stage: dict[str, list[str]]) -> Path:
    """The stages named, each with its own options, into `out`."""
    for stage, options in of_stage.items():
        in_process(stage, [*words, *options, "--output_dir", str(out)])
    return out


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Path:
    """Adapters in every stage, merged weights beside them."""
    return chain(tmp_path_factory.mktemp("merged") / "run", words, LORA)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, words: list[str]) -> Path:
    """The same with adapters alone in every stage."""
    return chain(tmp_path_factory.mktemp("alone") / "run", words, ALONE)


def logits(model: Any) -> torch.Tensor:
    """Logits of `IDS`."""
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_merging_decides_what_is_written_and_nothing_else(merged: Path, alone: Path) -> None:
    """Invariant 30: every stage starts from an adapter on an adapter as it does from the merged
    folder, so both chains end in the same bytes."""
    for name in ADAPTERS:
        assert (merged / name / "model.safetensors").is_file()
        assert not list((alone / name).glob("*.safetensors"))
        assert sha256(alone / name / WEIGHTS) == sha256(merged / name / WEIGHTS)
        assert (alone / name / "tokenizer.json").is_file()
        configs = [json.loads((run / name / "config.json").read_text()) for run in (alone, merged)]
        assert configs[0] == configs[1]
    for stage in ("sft", "reward"):
        assert record(alone / stage)["metrics"] == record(merged / stage)["metrics"]
    assert WEIGHTS in record(alone / "reward")["files"]


def test_adapters_load_by_peft(merged: Path, alone: Path, gpt2: Path) -> None:
    """Invariant 30: each adapter names what it was trained from, and on that gives the logits of
    the merged folder; a reward model's has its calibrated head, so the scores are the same too."""
    bases = {"sft": str(gpt2.resolve()), "reward": "sft", "ppo": "sft", "ppo/critic": "reward"}
    for name, base in bases.items():
        for run in (merged, alone):
            facts = json.loads((run / name / "adapter" / "adapter_config.json").read_text())
            assert facts["base_model_name_or_path"] == str((run / base).resolve())
        scalar = name in ("reward", "ppo/critic")
        auto: Any = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
        expected = logits(auto.from_pretrained(merged / name))
        if name != "sft":  # whose base has no row for the pad token yet
            head = {"num_labels": 1} if scalar else {}
            start = auto.from_pretrained(merged / base, **head)
            assert not torch.allclose(logits(start), expected, atol=1e-3)
            adapted = PeftModel.from_pretrained(start, str(alone / name / "adapter"))
            torch.testing.assert_close(logits(adapted), expected, atol=1e-5, rtol=1e-5)
        if scalar:
            ours = ScalarModel(load_scalar(alone / name).eval())
            mean = record(merged / "reward")["reward_mean"]
            with torch.no_grad():
                score = ours.scores(IDS, torch.ones_like(IDS, dtype=torch.bool))
            torch.testing.assert_close(score, expected[:, 0] - mean, atol=1e-5, rtol=1e-5)
        else:
            ours_policy = load_policy(alone / name, dropout=False)
            torch.testing.assert_close(logits(ours_policy), expected, atol=1e-6, rtol=1e-4)


def test_merged_on_request(merged: Path, alone: Path, tmp_path: Path) -> None:
    """scripts/merge_adapter.py writes the folder that the stage would have written."""
    script("merge_adapter.py", [alone / "reward", out := tmp_path / "whole"])
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert sha256(out / name) == sha256(merged / "reward" / name)
    for folder, to, words in (
        (out, tmp_path / "x", "there is no adapter in it"),
        (alone / "reward", out, "exists already"),
    ):
        with pytest.raises(UserError, match=words):
            script("merge_adapter.py", [folder, to])


@pytest.mark.parametrize(
    "stages",
    [
        {"reward": FULL["reward"], "ppo": ALONE["ppo"]},
        {"reward": ALONE["reward"], "ppo": FULL["ppo"]},
    ],
    ids=["full reward", "full ppo"],
)
def test_full_and_adapters_mixed(
    alone: Path,
    words: list[str],
    stages: dict[str, list[str]],
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    """Invariant 10: any stage may have adapters, whatever the one before had; KL starts at 0. Roles
    that cannot have one base, and must, are refused."""
    out = tmp_path / "run"
    shutil.copytree(alone / "sft", out / "sft")
    chain(out, words, stages)
    assert record(out / "ppo")["metrics"]["before"]["kl"] == 0
    for stage, options in stages.items():
        assert (out / stage / "adapter").exists() == bool(options)
        assert (out / stage / "model.safetensors").exists() == (not options)
    if stages["ppo"]:
        shutil.rmtree(out / "ppo")
        must = ["--output_dir", str(out), *LORA["ppo"], "--ppo.lora.share_base", "true"]
        message = refused("ppo", [*words, *must], out)
        assert "ppo.lora.share_base: true is not possible: stage 2 trained no adapter" in message


def within_rounding(one: Path, other: Path) -> None:
    """Adapters of stage 3 in two runs, actor's and critic's."""
    for name in ("ppo", "ppo/critic"):
        ours, theirs = (load_file(run / name / WEIGHTS) for run in (one, other))
        assert ours.keys() == theirs.keys()
        for key, weight in ours.items():
            torch.testing.assert_close(weight, theirs[key], atol=1e-4, rtol=0)
        assert max(w.abs().max().item() for n, w in ours.items() if "lora_B" in n) > 0.01


def test_one_base_in_stage_3(
    alone: Path, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Invariants 10, 30: by default the roles share one, which a line says; apart, the same comes
    out but for rounding."""
    out, line = tmp_path / "run", "one base: actor, reference, critic, reward model\n"
    for stage in ("sft", "reward"):
        shutil.copytree(alone / stage, out / stage)
    for share in ("yes", "no"):
        shutil.rmtree(out / "ppo", ignore_errors=True)
        section = tmp_path / "share.yaml"
        section.write_text(f"ppo: {{lora: {{share_base: {share}}}}}", encoding="utf-8")
        chain(out, [*words, "--config", str(section)], {"ppo": ALONE["ppo"]})
        assert (line in capsys.readouterr().out) == (share == "yes")
        within_rounding(out, alone)
        same = sha256(out / "ppo" / WEIGHTS) == sha256(alone / "ppo" / WEIGHTS)
        assert same or share == "no"


@pytest.mark.long
def test_two_processes_on_one_base(alone: Path, words: list[str], tmp_path: Path) -> None:
    """Invariant 21: two processes with DDP around each role's modules train what one does."""
    out = tmp_path / "run"
    for stage in ("sft", "reward"):
        shutil.copytree(alone / stage, out / stage)
    two = ["--config_file", str(ROOT / "configs" / "accelerate" / "cpu2.yaml")]
    options = [*words, *ALONE["ppo"], "--ppo.lora.share_base", "true", "--output_dir", str(out)]
    done = start("ppo", options, [*ACCELERATE[:-2], *two])
    assert done.returncode == 0, done.stderr
    assert record(out / "ppo")["processes"] == 2
    within_rounding(out, alone)


def test_a_base_that_is_gone_or_another(
    alone: Path, words: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    """An adapter alone needs the very model it was trained on: what is missing, where, what to do;
    and a changed adapter is a damaged checkpoint."""
    out, base = tmp_path / "run", tmp_path / "base"
    shutil.copytree(Path(words[words.index("--model.path") + 1]), base)
    arguments = [*words, "--model.path", str(base), "--output_dir", str(out)]
    in_process("sft", [*arguments, *ALONE["sft"]])
    (base / "model.safetensors").write_bytes(b"another model")
    message = refused("reward", arguments, out)
    assert f"{base.resolve()}, which is not the one that it was trained on" in message
    assert "stage1_sft.py" in message
    shutil.rmtree(base)
    message = refused("reward", arguments, out)
    assert f"an adapter alone, to the model in {base.resolve()}" in message
    assert "Put the model back there" in message
    (out / "sft" / WEIGHTS).write_bytes(b"another adapter")
    assert f"sft/{WEIGHTS}: not the file that the stage wrote" in refused("reward", arguments, out)


def test_every_stage_on_a_quantised_base(
    alone: Path, words: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    """8-bit bases in all stages leave ordinary folders that an unquantised run goes on from; a
    stage that would train the base itself is refused."""
    pytest.importorskip("bitsandbytes")
    out, quantised = tmp_path / "run", ["--model.quantization", "8bit"]
    chain(out, [*words, *quantised], LORA)
    for name, auto in (
        ("sft", AutoModelForCausalLM),
        ("reward", AutoModelForSequenceClassification),
        ("ppo", AutoModelForCausalLM),
    ):
        model, info = auto.from_pretrained(out / name, output_loading_info=True)  # type: ignore[attr-defined]
        assert not any(info.values())
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert sha256(out / name / WEIGHTS) != sha256(alone / name / WEIGHTS)
    assert record(out / "ppo")["metrics"]["before"]["kl"] == 0
    shutil.rmtree(out / "ppo")
    message = refused("ppo", [*words, *quantised, "--output_dir", str(out)], out)
    assert "ppo.lora.rank is 0" in message


@pytest.mark.long
def test_two_processes_on_a_quantised_base(words: list[str], tmp_path: Path) -> None:
    """Invariant 21: two processes train the adapter of an 8-bit base as one does."""
    pytest.importorskip("bitsandbytes")
    base = tmp_path / "base"
    shutil.copytree(words[words.index("--model.path") + 1], base)
    undropped(base / "config.json")
    options = [*words, *LORA["sft"], "--model.path", str(base), "--model.quantization", "8bit"]
    in_process("sft", [*options, "--output_dir", str(tmp_path / "one")])
    two = ["--config_file", str(ROOT / "configs" / "accelerate" / "cpu2.yaml")]
    done = start("sft", [*options, "--output_dir", tmp_path / "two"], [*ACCELERATE[:-2], *two])
    assert done.returncode == 0, done.stderr
    assert record(tmp_path / "two" / "sft")["processes"] == 2
    ours, theirs = (load_file(tmp_path / n / "sft" / WEIGHTS) for n in ("one", "two"))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-5, rtol=0)
    assert max(w.abs().max().item() for n, w in ours.items() if "lora_B" in n) > 0.01
