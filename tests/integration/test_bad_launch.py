"""Users' mistakes in processes of their own, under python and under the launchers."""

import time

import pytest
from _helpers import ACCELERATE, OURS, PYTHON, ROOT, TORCHRUN, good, one_paragraph, run
from _tiny import write_jsonl


@pytest.mark.parametrize("launcher", [PYTHON, ACCELERATE], ids=["python", "accelerate"])
def test_process_ends_with_one_paragraph(launcher, llama, files, tmp_path) -> None:
    """A missing parent."""
    out = tmp_path / "out"
    done = run("ppo", good(llama, files, out), launcher, timeout=60)
    assert done.returncode == 1
    assert "no finished stage there" in one_paragraph(done.stderr)
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
    assert time.monotonic() - start < 60
    assert done.returncode == 1
    message = one_paragraph(done.stderr)
    assert f"{option[0][2:]}" in message
    assert option[1] in message
    assert {"model": "--model.path FOLDER", "data": "--data.sft.path FILE"}[what] in message
    assert not out.exists()


def test_machines_of_a_launch_that_is_over() -> None:
    """Nobody is there to be told why this process ends."""
    left = {"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    done = run("sft", [], timeout=60, **left, MASTER_PORT="9")
    assert "unset GROUP_WORLD_SIZE GROUP_RANK" in one_paragraph(done.stderr)


@pytest.mark.long
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
        ours = OURS.findall(done.stderr)
        assert len(ours) == 1
        assert ours[0].startswith("error: ")
        assert said in " ".join(ours[0].split())
        assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("name", [pytest.param("gpu", marks=pytest.mark.long), "ddp"])
def test_file_for_gpus_without_one(name: str, llama, files, tmp_path) -> None:
    """Said once, before data or models are read; the file is named."""
    out, file = tmp_path / "out", str(ROOT / "configs" / "accelerate" / f"{name}.yaml")
    words = good(llama, files, out)
    done = run("sft", words, [*ACCELERATE[:-1], file], timeout=90, CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0
    ours = OURS.findall(done.stderr)
    assert len(ours) == 1
    assert f"error: {file}: " in ours[0]
    assert "torch sees none here" in " ".join(ours[0].split())
    assert done.stdout == ""
    assert not out.exists()


@pytest.mark.long
def test_two_processes_of_a_file_for_one(llama, files, tmp_path) -> None:
    """accelerate starts one and says nothing; the remedy is named."""
    out, launcher = tmp_path / "out", [*ACCELERATE, "--num_processes", "2"]
    done = run("sft", good(llama, files, out), launcher, timeout=90)
    assert done.returncode == 1
    assert "num_processes is 2, but a launch of this kind starts 1" in " ".join(done.stderr.split())
    assert "cpu2.yaml" in done.stderr
    assert done.stdout == ""
    assert not out.exists()


@pytest.mark.parametrize(("stage", "source"), [("sft", "sft"), ("reward", "preference")])
def test_batches_before_data(refused, stage, source, llama, files, parents, tmp_path) -> None:
    """A batch that does not divide is said before rows are read, and those are bad as well."""
    bad = write_jsonl(tmp_path / "bad.jsonl", [{"question": "a"}])
    words = [*good(llama, files, parents), "--overwrite", f"--data.{source}.path", str(bad)]
    message = refused(stage, [*words, f"--{stage}.microbatch_size", "3"], parents)
    assert f"{stage}.microbatch_size: 3 does not divide the 8 rows of a process" in message
