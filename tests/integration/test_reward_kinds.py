"""Ratings through stages 2 and 3, a base of the reward model's own, runs that go on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from _helpers import good, in_process, record, rows, script
from _resume import apart, checkpoint, metrics, until
from _tiny import words, write_jsonl
from transformers import GPT2Config, GPT2LMHeadModel

from cores.errors import UserError
from cores.models import ScalarModel, load_scalar

BINNED = "--reward.kind binned --reward.bins 3 --reward.head_layers 2".split()
POINTWISE = "--reward.kind pointwise --reward.freeze_base true".split()


@pytest.fixture(scope="module")
def rated(tmp_path_factory: pytest.TempPathFactory, files: dict[str, Path]) -> list[str]:
    """Options that give replies with a score each: one side of each pair, and one row without."""
    made: list[dict[str, Any]] = []
    for i, pair in enumerate(rows(files["preference"])):
        side, score = ("chosen", 3) if i % 2 else ("rejected", 1 + i % 3 % 2)
        made.append({"prompt": pair["prompt"], "completion": pair[side], "score": score})
    made[0]["score"] = None
    path = write_jsonl(tmp_path_factory.mktemp("rated") / "rated.jsonl", made)
    return ["--data.preference.path", str(path)]


def workplace(root: Path, finished: Path) -> Path:
    """An output_dir with stage 1 alone, by a link."""
    root.mkdir()
    (root / "sft").symlink_to(finished / "sft")
    return root


@pytest.mark.parametrize("options", [POINTWISE, BINNED], ids=["pointwise", "binned"])
def test_ratings_through_stage_3(
    options: list[str], tmp_path: Path, finished: Path, llama: Path, files, rated: list[str], capfd
) -> None:
    """The critic begins as the reward model, scores on paper are its scores, and the critic's
    folder has its form."""
    out = workplace(tmp_path / "run", finished)
    arguments = [*good(llama, files, out), *rated, *options]
    in_process("reward", arguments)
    about = record(out / "reward")
    printed = capfd.readouterr().out
    assert "1 no score" in printed
    assert "held-out mean squared error" in printed
    assert about["metrics"].keys() == {"rows", "mse", "correlation", "variance", "calibration"}
    in_process("ppo", arguments)
    model = ScalarModel(load_scalar(out / "reward"))
    assert model.mean == about["reward_mean"]
    critic: Any = load_scalar(out / "ppo" / "critic")
    assert critic.score.__class__ is model.model.score.__class__
    assert critic.config.num_labels == (3 if options is BINNED else 1)
    tokenizer = words()
    for sample in rows(out / "ppo" / "samples.jsonl")[:4]:
        text = f"{sample['prompt']} {sample['reply']}"
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            found = model.eval().scores(ids, torch.ones_like(ids).bool()).item()
        assert found == pytest.approx(sample["score"], abs=2e-4)


def test_a_run_on_ratings_goes_on(
    tmp_path: Path, finished: Path, llama: Path, files, rated: list[str], monkeypatch
) -> None:
    """Bit for bit, its figures between two log lines too; export loads its head."""
    outs = [workplace(tmp_path / name, finished) for name in ("whole", "parts")]
    more = "--reward.max_steps 43 --reward.learning_rate 1e-2 --checkpoint.every_minutes null"
    arguments = [[*good(llama, files, out), *rated, *BINNED, *more.split()] for out in outs]
    until(monkeypatch, "reward", arguments[0], 43)
    for stop in (1, 5, 43):
        until(monkeypatch, "reward", arguments[1], stop)
    assert apart(*(checkpoint(out, "reward", 43) for out in outs)) == []
    one, other = (metrics(out / "reward.unfinished") for out in outs)
    assert one == other
    assert all("bin_accuracy" in row for row in one)
    script("export.py", [outs[1] / "reward.unfinished", tmp_path / "out", "--step", "43"])
    exported: Any = load_scalar(tmp_path / "out")
    weights = checkpoint(outs[1], "reward", 43)
    assert torch.equal(exported.score[2].weight, weights["weights:score.2.weight"])


def test_a_base_of_its_own(
    tmp_path: Path, finished: Path, llama: Path, files: dict[str, Path]
) -> None:
    """Another family with the same tokenizer becomes the reward model, with rows of its own."""
    base, tokenizer = tmp_path / "base", words()
    config = GPT2Config(
        vocab_size=len(tokenizer) + 64, n_positions=512, n_embd=16, n_layer=1, n_head=1,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    out = workplace(tmp_path / "run", finished)
    arguments = [*good(llama, files, out), "--reward.base", str(base)]
    in_process("reward", arguments)
    saved = json.loads((out / "reward" / "config.json").read_text(encoding="utf-8"))
    assert saved["architectures"] == ["GPT2ForSequenceClassification"]
    assert set(record(out / "reward")["parents"]) == {"sft", "base"}
    in_process("ppo", arguments)
    critic = json.loads((out / "ppo" / "critic" / "config.json").read_text(encoding="utf-8"))
    assert critic["model_type"] == "gpt2"


def test_a_base_of_another_tokenizer(
    tmp_path: Path, finished: Path, llama: Path, gpt2: Path, files: dict[str, Path]
) -> None:
    """Refused by its key; so is one that is a reward model, or not there."""
    out = workplace(tmp_path / "run", finished)
    for base, said in {
        gpt2: r"^reward\.base: .* has another tokenizer than the stage-1 model \(\d+ tokens",
        finished / "reward": r"a reward model perhaps",
        tmp_path / "none": r"no folder|there is no",
    }.items():
        with pytest.raises(UserError, match=said):
            in_process("reward", [*good(llama, files, out), "--reward.base", str(base)])
