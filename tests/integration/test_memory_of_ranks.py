"""Two ranks, and memory that runs out on one of them: both take half as many rows, or both end."""

import subprocess
from pathlib import Path

import torch
from _helpers import OURS, ROOT, TORCHRUN, environment

WORKER = ROOT / "tests" / "integration" / "_memory_worker.py"


def test_memory_that_runs_out_on_one_rank(tmp_path: Path) -> None:
    """In scoring or in any micro-batch of a step: the same step within rounding, with a note. A
    second time all end, with one paragraph."""
    ended = subprocess.run(
        [*TORCHRUN, str(WORKER), str(tmp_path)], cwd=ROOT, text=True, capture_output=True,
        timeout=170, env=environment(PYTHONPATH=f"{ROOT}:{WORKER.parent}"),
    )  # fmt: skip
    (message,) = OURS.findall(ended.stderr)
    message = " ".join(message.split())
    assert "memory ran out (rank 1 has none left)" in message, ended.stderr
    assert "ppo.microbatch_size" in message
    assert ended.returncode != 0
    assert ended.stdout.count("memory ran out; from here on") == 4
    assert len(list(tmp_path.iterdir())) == 8
    wanted = torch.load(tmp_path / "never-0.pt")
    for file in tmp_path.iterdir():
        for name, tensor in torch.load(file).items():
            torch.testing.assert_close(
                tensor, wanted[name], atol=1e-6, rtol=0, msg=f"{file} {name}"
            )
