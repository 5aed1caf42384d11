"""Users' mistakes in processes of their own, under python and under the launchers."""

import re
import time

import pytest
from _helpers import ACCELERATE, PYTHON, TORCHRUN, good, one_paragraph, run
from _tiny import write_jsonl


@pytest.mark.parametrize("launcher", [PYTHON, ACCELERATE], ids=["python", "accelerate"])
def test_process_ends_with_one_paragraph(launcher, llama, files, tmp_path) -> None:
    """A wrong key, then a missing parent."""
    out = tmp_path / "out"
    for stage, words, said in [
        ("sft", [*good(llama, files, out), "--sft.epoch", "1"], "there is no key sft.epoch"),
        ("ppo", good(llama, files, out), "no finished stage there"),
    ]:
        done = run(stage, words, launcher, timeout=60)
        assert done.returncode == 1
        assert said in one_paragraph(done.stderr)
        assert done.stdout == ""
        assert not out.exists()


@pytest.mark.parametrize("what", ["model", "data"])
def test_hub_out_of_reach(what, llama, files, tmp_path) -> None:
    """Soon, and with the way to a local path; no retries on the screen."""
    out, start = tmp_path / "out", time.monotonic()
    words = good(llama, files, out)
    option = {
        "model": ["--model.path", "some-owner/some-model"],
        "data": ["--data.sft.path", "some-owner/some-data"],
    }[what]
    done = run("sft", [*words, *option], timeout=60, HF_HOME=str(tmp_path / "hub"))
    assert time.monotonic() - start < 40
    assert done.returncode == 1
    message = one_paragraph(done.stderr)
    assert f"{option[0][2:]}" in message
    assert option[1] in message
    assert {"model": "--model.path FOLDER", "data": "--data.sft.path FILE"}[what] in message
    assert not out.exists()


def test_every_rank_ends(llama, files, tmp_path) -> None:
    """Two processes: rank 0 alone speaks, all end, the status is not 0."""
    out = tmp_path / "out"
    bad = tmp_path / "bad.jsonl"
    write_jsonl(bad, [{"question": "a"}])
    for stage, words, said in [
        ("reward", good(llama, files, out), "no finished stage there"),
        ("sft", [*good(llama, files, out), "--data.sft.path", str(bad)], "question"),
    ]:
        start = time.monotonic()
        done = run(stage, words, TORCHRUN, timeout=90)
        assert time.monotonic() - start < 60
        assert done.returncode != 0
        ours = re.findall(r"(?m)^error.*(?:\n(?![WE]\d{4} ).+)*", done.stderr)
        assert len(ours) == 1
        assert ours[0].startswith("error: ")
        assert said in " ".join(ours[0].split())
        assert not list(tmp_path.glob("out*"))
