"""Configurations and parents that cannot work: one paragraph, exit status 1, nothing written."""

import json
import shutil
from pathlib import Path

import pytest
from _helpers import SCRIPTS, good


def test_missing_and_wrong_configuration(refused, llama, files, tmp_path) -> None:
    """Wrong key, wrong type, impossible combination, missing file: file and line, or the option."""
    out = tmp_path / "out"
    words = good(llama, files, out)
    config = tmp_path / "mine.yaml"
    for text, said in {
        "seed: 1\nppo:\n  kl_coeff: 0.1\n": f"{config}:3: there is no key ppo.kl_coeff. Did you "
        "mean ppo.kl_coef?",
        "seed: 1\nsft:\n  epochs: many\n": f"{config}:3: key sft.epochs: must be a number",
        "ppo:\n  minibatch_size: 3\n": f"{config}:2: key ppo.minibatch_size: 3 does not divide",
        "sft: 3\n": f"{config}:1: key sft: is a section",
    }.items():
        config.write_text(text, encoding="utf-8")
        for stage in SCRIPTS:
            message = refused(stage, ["--config", config, "--output_dir", out], out)
            assert message.startswith(f"error: {said}"), message
    message = refused("sft", [*words, "--sft.epochs", "many"], out)
    assert message.startswith("error: command line: --sft.epochs: must be a number")
    message = refused("sft", ["--config", tmp_path / "none.yaml"], out)
    assert f"--config: there is no file {tmp_path / 'none.yaml'}" in message


def test_output_dir_is_a_file(refused, llama, files, tmp_path) -> None:
    """A file in the place of the folder, or above it."""
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        message = refused("sft", good(llama, files, out), tmp_path)
        assert f"output_dir: {tmp_path / 'file'} is a file" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_missing_parents_are_all_named(refused, llama, files, parents) -> None:
    """Before data are read: the files named here do not even exist."""
    words = [*good(llama, files, parents), "--data.prompts.path", "none.jsonl"]
    shutil.rmtree(parents / "reward")
    message = refused("ppo", words, parents)
    assert message.startswith(f"error: {parents / 'reward'}: no finished stage there.")
    assert "stage2_rm.py" in message
    assert "stage1_sft.py" not in message
    shutil.rmtree(parents / "sft")
    message = refused("ppo", words, parents)
    for named in (str(parents / "sft"), str(parents / "reward"), "stage1_sft.py", "stage2_rm.py"):
        assert named in message
    nowhere = parents.parent / "nowhere"
    message = refused("reward", good(llama, files, nowhere), nowhere)
    assert f"{nowhere / 'sft'}: no finished stage there." in message


def flip_a_byte(folder: Path) -> Path:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    return path


def lose_the_weights(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    return folder / "model.safetensors"


def edit_the_tokenizer(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    return path


def truncate_the_record(folder: Path) -> Path:
    path = folder / "stage.json"
    path.write_bytes(path.read_bytes()[:200])
    return path


def empty_the_record(folder: Path) -> Path:
    (folder / "stage.json").write_text("{}", encoding="utf-8")
    return folder / "stage.json"


DAMAGES = [flip_a_byte, lose_the_weights, edit_the_tokenizer, truncate_the_record, empty_the_record]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("stage", "parent"), [("reward", "sft"), ("ppo", "reward")])
def test_damaged_parent(refused, llama, files, parents, damage, stage, parent) -> None:
    """The damaged file and the remedy are named."""
    if stage == "reward":
        shutil.rmtree(parents / "reward")
    path = damage(parents / parent)
    message = refused(stage, good(llama, files, parents), parents)
    assert message.startswith(f"error: {path}: "), message
    assert f"Run {SCRIPTS[parent]} again with --overwrite." in message


def test_parents_of_unlike_tokenizers(call, refused, llama, gpt2, files, parents) -> None:
    """A reward model that reads other tokens than the policy writes."""
    other = parents.parent / "other"
    roles = ["--template.kind", "roles", "--template.user.suffix", "\n"]
    status, _, err = call("sft", [*good(gpt2, files, other), *roles])
    assert (status, err) == (0, "")
    record = parents / "reward" / "stage.json"
    facts = json.loads(record.read_text(encoding="utf-8"))
    facts["config"]["template"] = json.loads((other / "sft" / "stage.json").read_text())["config"][
        "template"
    ]
    record.write_text(json.dumps(facts), encoding="utf-8")
    shutil.move(parents / "reward", other / "reward")
    message = refused("ppo", [*good(gpt2, files, other), *roles], other)
    assert message.startswith(f"error: {other / 'reward'}: its tokenizer")
    assert f"is not that of {other / 'sft'}" in message


def test_another_template_than_the_parent(refused, llama, files, parents) -> None:
    """A prompt that the model has never seen in that form."""
    words = [*good(llama, files, parents), "--template.system_prompt", "You serve."]
    message = refused("ppo", words, parents)
    assert "template.system_prompt: 'You serve.' here, but" in message
