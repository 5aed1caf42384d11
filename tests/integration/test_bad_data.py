"""Data and models that cannot work: one paragraph, exit status 1, nothing written."""

import json
import shutil

import pytest
from _helpers import SCRIPTS, good
from _tiny import POSITIONS


def test_bad_files(refused, llama, files, tmp_path) -> None:
    """Missing, empty, malformed, columns that fit nothing: file and line, or the columns found."""
    out, file = tmp_path / "out", tmp_path / "mine.jsonl"
    words = [*good(llama, files, out), "--data.sft.path", file]
    message = refused("sft", words, out)
    assert f"data.sft.path '{file}' does not exist" in message
    fine = json.dumps({"prompt": "a", "completion": "b"}) + "\n"
    for text, said in {
        "": f"data.sft.path '{file}' holds no rows",
        fine + '{"prompt": "a", \n': f"{file}:2: bad JSON",
        fine + "[1]\n": f"{file}:2: a row must be a JSON object",
        fine + '{"prompt": 3, "completion": "b"}\n': f"{file}:2: ",
        '{"question": "a", "answer": "b"}\n': "question, answer",
    }.items():
        file.write_text(text, encoding="utf-8")
        message = refused("sft", words, out)
        assert said in message
        assert "data.sft" in message or str(file) in message


def test_missing_columns_of_pairs(refused, llama, files, parents) -> None:
    """Demonstrations where pairs are wanted."""
    shutil.rmtree(parents / "reward")
    words = [*good(llama, files, parents), "--data.preference.path", files["sft"]]
    message = refused("reward", words, parents)
    assert "data.preference" in message
    assert "chosen" in message
    assert "instruction, input, output" in message


def test_source_that_is_not_set(refused, llama, tmp_path) -> None:
    """No data at all."""
    words = ["--model.path", llama, "--output_dir", tmp_path / "out"]
    message = refused("sft", words, tmp_path / "out")
    assert message.startswith("error: data.sft.path is not set")


def test_split_of_a_local_file(refused, gpt2, files, parents) -> None:
    """configs/colossalai.yaml evaluates on the hub set's own split; a file has none."""
    shutil.rmtree(parents / "reward")
    words = [*good(gpt2, files, parents), "--data.preference.test_split", "test"]
    message = refused("reward", words, parents)
    assert "data.preference.test_split is 'test'" in message
    assert "null" in message


@pytest.mark.parametrize(
    ("stage", "key"),
    [("sft", "sft.max_length"), ("reward", "reward.max_length"), ("ppo", "ppo.max_prompt_length")],
)
def test_all_rows_too_long(refused, llama, files, parents, stage, key) -> None:
    """Nothing is left, and the key that decides is named."""
    out = parents
    if stage == "sft":
        out = parents.parent / "new"
    elif stage == "reward":
        shutil.rmtree(parents / "reward")
    message = refused(stage, [*good(llama, files, out), f"--{key}", "2"], out)
    assert key in message
    assert "all dropped" in message


@pytest.mark.parametrize("stage", list(SCRIPTS))
def test_longer_than_the_model(refused, llama, files, parents, stage) -> None:
    """Rows may not be longer than the model's positions: known before data are read."""
    longer = str(POSITIONS - 8 + 1)
    key, value = {
        "sft": ("sft.max_length", str(POSITIONS + 1)),
        "reward": ("reward.max_length", str(POSITIONS + 1)),
        "ppo": ("ppo.max_prompt_length", longer),
    }[stage]
    shutil.rmtree(parents / stage, ignore_errors=True)
    source = {"sft": "sft", "reward": "preference", "ppo": "prompts"}[stage]
    words = [*good(llama, files, parents), f"--data.{source}.path", "none.jsonl", f"--{key}", value]
    message = refused(stage, words, parents)
    assert message.startswith(f"error: {key}")
    assert f"{POSITIONS + 1} tokens are more than the {POSITIONS} positions" in message


def test_models_that_cannot_be_loaded(refused, llama, files, tmp_path) -> None:
    """A folder that is not there, or holds no model, or only half of one."""
    out, empty, half = tmp_path / "out", tmp_path / "empty", tmp_path / "half"
    empty.mkdir()
    shutil.copytree(llama, half)
    (half / "model.safetensors").unlink()
    for folder, said in {
        tmp_path / "none": f"model.path: there is no folder {tmp_path / 'none'}",
        empty: str(empty),
        half: str(half),
    }.items():
        message = refused("sft", good(folder, files, out), out)
        assert said in message


def test_other_impossible_wishes(refused, llama, files, parents) -> None:
    """Batches that do not divide, stop ids of no token, layers and pads that do not exist."""
    words = good(llama, files, parents)
    new = parents.parent / "new"
    for stage, option, said in [
        ("sft", ["--sft.microbatch_size", "3"], "sft.microbatch_size: 3 does not divide"),
        ("sft", ["--sft.lora.rank", "2", '--sft.lora.target_modules=["no"]'], "sft.lora.target_m"),
        ("sft", ["--model.pad_token", "<no>"], "model.pad_token: '<no>' is not in"),
        ("ppo", ["--ppo.stop_token_ids", "[9999]"], "ppo.stop_token_ids: [9999] cannot stop"),
    ]:
        out = new if stage == "sft" else parents
        message = refused(stage, [*words, "--output_dir", out, *option], out)
        assert said in message
