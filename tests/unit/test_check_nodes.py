"""What scripts/check_nodes.py says before a launch on several machines."""

import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from cores.errors import UserError
from scripts import check_nodes

ROOT = Path(__file__).resolve().parents[2]
FILE = str(ROOT / "configs" / "accelerate" / "nodes_cpu.yaml")
GOOD = {"config_file": "f", "num_machines": 2, "num_processes": 4, "machine_rank": 1,
        "main_process_port": 29500, "main_process_ip": "127.0.0.1"}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"main_process_ip": None}, "main_process_ip is missing. Give it there, or as --main"),
        ({"machine_rank": None}, "machine_rank is missing"),
        ({"machine_rank": 2}, "machine_rank is 2, but of 2 machines they go from 0 to 1"),
        ({"num_machines": "two"}, "num_machines is 'two', no whole number"),
        ({"num_machines": 1}, "num_machines is 1. One machine needs no such check"),
        ({"num_processes": 3}, "num_processes is 3, over 2 machines: it counts the processes of"),
        ({"num_processes": 0}, "num_processes is 0"),
        ({"main_process_port": 0}, "main_process_port is 0; several machines need one"),
    ],
)
def test_numbers_that_do_not_fit(change: dict[str, Any], says: str) -> None:
    """Each by its key."""
    check_nodes.check(GOOD)
    with pytest.raises(UserError, match=f"^f: {says}"):
        check_nodes.check(GOOD | change)


def test_more_processes_than_gpus() -> None:
    """The host is named; a file for CPUs needs none."""
    with pytest.raises(UserError, match="500 processes a machine, but torch sees"):
        check_nodes.check_gpus(GOOD | {"num_processes": 1000})
    check_nodes.check_gpus(GOOD | {"num_processes": 1000, "use_cpu": True})


def test_words_and_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The command line overrules the file, whose other numbers count; a mistake is one sentence."""
    words = ["--config_file", FILE, "--machine_rank", "1", "--num_processes", "6"]
    found = check_nodes.settings(words)
    assert (found["machine_rank"], found["num_processes"], found["num_machines"]) == (1, 6, 2)
    assert check_nodes.main(words) == 1
    assert capsys.readouterr().err == (
        f"error: {FILE}: main_process_ip is missing. Give it there, or as --main_process_ip.\n"
    )


def test_machines_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each learns who is there; one that stays alone says which number is missing."""
    monkeypatch.setattr(check_nodes, "WAIT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    launch = GOOD | {"main_process_port": port, "machine_rank": 0}
    with pytest.raises(UserError, match="machine_rank 1 has not come within 1 s"):
        check_nodes.meet(launch)
    with pytest.raises(UserError, match=r"127\.0\.0\.1 port .* does not answer"):
        check_nodes.meet(launch | {"machine_rank": 1})
    monkeypatch.setattr(check_nodes, "WAIT", 20.0)
    found: list[list[str]] = []
    other = threading.Thread(target=lambda: found.append(check_nodes.meet(launch)))
    other.start()
    found.append(check_nodes.meet(launch | {"machine_rank": 1}))
    other.join()
    assert found == [[socket.gethostname()] * 2] * 2
    with pytest.raises(UserError, match="main_process_ip: no-such-host leads nowhere"):
        check_nodes.meet(launch | {"main_process_ip": "no-such-host"})


def test_slurm_starts_one_launcher_a_machine(tmp_path: Path) -> None:
    """With Slurm's numbers, behind the check; srun and scontrol are stand-ins that run both tasks
    one after the other."""
    stand_ins = {
        "srun": 'shift; for SLURM_NODEID in 0 1; do export SLURM_NODEID; "$@"; done',
        "scontrol": "echo first; echo second",
    }
    for name, text in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "JOB_ID": "7",
        "JOB_NODELIST": "first,second",
        "JOB_NUM_NODES": "2",
        "GPUS_ON_NODE": "8",
    }
    env = {f"SLURM_{name}": value for name, value in slurm.items()}
    done = subprocess.run(
        ["bash", "scripts/slurm.sh", "stage1_sft.py", "--config", "a file.yaml"], cwd=ROOT,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "echo", **env},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = (
        "--config_file configs/accelerate/nodes_ddp.yaml --num_machines 2 --num_processes 16 "
        "--main_process_ip first --main_process_port 20007 --machine_rank"
    )
    launch = f"-m accelerate.commands.launch --quiet {words}"
    stage = "stage1_sft.py --config a file.yaml"
    assert done.stdout.splitlines() == [
        f"scripts/check_nodes.py {words} 0", f"scripts/check_nodes.py {words} 1",
        f"{launch} 0 {stage}", f"{launch} 1 {stage}",
    ]  # fmt: skip
