"""Two machines on one: all stages between two hosts in network namespaces, on the CPU, and what
happens where they differ, where one is lost, and when a run goes on elsewhere.

    python scripts/trials/two_nodes.py OUT [CASE ...]

Each host (`node-a`, `node-b`) has a network, a host name and a disk of its own: what the other
writes it does not see. Needs Linux, root and `ip` (iproute2). Prints a line a case, keeps what the
hosts said below OUT/said, writes OUT/two_nodes.json, and exits with 1 if a case is not as it should
be. A minute a case on two cores of a shared server, `cut` two.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.tiny import write_base, write_rows  # noqa: E402

HOSTS = {"node-a": "10.77.0.1", "node-b": "10.77.0.2"}
A, B = HOSTS
STAGES = {"sft": "stage1_sft.py", "reward": "stage2_rm.py", "ppo": "stage3_ppo.py"}
FILE = "configs/accelerate/nodes_cpu.yaml"
SHORT = """--sft.max_steps 4 --sft.batch_size 8 --sft.microbatch_size 2 --reward.max_steps 4
--reward.batch_size 8 --reward.microbatch_size 2 --reward.calibration_samples 16 --ppo.updates 3
--ppo.batch_size 8 --ppo.minibatch_size 4 --ppo.microbatch_size 2 --ppo.max_new_tokens 8
--ppo.eval_prompts 4 --checkpoint.every_steps 1""".split()
LONG = ["--sft.max_steps", "100000", "--checkpoint.every_steps", "20"]
SIZES = {"sft": 4, "reward": 4, "ppo": 3}
"""Steps of each stage."""


class Trial:
    """Two hosts and their disks, below one folder."""

    def __init__(self, out: Path) -> None:
        self.out, self.disk = out.absolute(), out.absolute() / "disk"
        """`disk` is where each host has a disk of its own mounted."""
        self.running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Trial":
        self.__exit__()
        for host in HOSTS:
            _ip(f"netns add {host}")
        _ip(f"link add veth-a netns {A} type veth peer name veth-b netns {B}")
        for (host, address), end in zip(HOSTS.items(), ("veth-a", "veth-b"), strict=True):
            for words in (f"addr add {address}/24 dev {end}", f"link set {end} up",
                          "link set lo up"):  # fmt: skip
                _ip(f"-n {host} {words}")
        return self

    def __exit__(self, *_: object) -> None:
        for host in HOSTS:
            kill(host)
            subprocess.run(["ip", "netns", "del", host], stderr=subprocess.DEVNULL, check=False)

    def make(self) -> None:
        """A base, data and a configuration that both see, and two empty disks."""
        shutil.rmtree(self.out, ignore_errors=True)
        for place in (self.disk, self.out / "said", *(self.out / host for host in HOSTS)):
            place.mkdir(parents=True)
        things = [f"bring me {n} {thing}" for n in range(12) for thing in ("maps", "keys", "lamps")]
        replies = [f"yes, {text[9:]} at once" for text in things]
        write_base(self.out / "base", [*things, *replies], 300, 1024, 0)
        rows = list(zip(things, replies, strict=True))
        write_rows(self.out / "data", {
            "sft": [{"prompt": p, "completion": r} for p, r in rows],
            "preference": [{"prompt": p, "chosen": r, "rejected": "no"} for p, r in rows],
            "prompts": [{"prompt": p} for p, _ in rows],
        })  # fmt: skip
        data: dict[str, Any] = {name: {"path": str(self.out / "data" / f"{name}.jsonl")}
                for name in ("sft", "preference", "prompts")}  # fmt: skip
        data["test_fraction"] = 0.2
        config = {
            "output_dir": str(self.disk / "run"),
            "model": {"path": str(self.out / "base")},
            "data": data,
            "template": {"kind": "none"},
        }
        (self.out / "config.yaml").write_text(json.dumps(config), encoding="utf-8")

    def start(self, host: str, machine: int, stage: str, *more: str, alone: bool = False,
              small: bool = False) -> subprocess.Popen[str]:  # fmt: skip
        """The launcher of a stage on a host; `alone`: on one machine; `small`: on a small disk."""
        mount = f"mount -t tmpfs -o size=64m none {self.disk}" if small else (
            f"mount --bind {self.out / host} {self.disk}")  # fmt: skip
        main = HOSTS[host] if machine == 0 else next(HOSTS[h] for h in HOSTS if h != host)
        several = ["--config_file", FILE, "--machine_rank", str(machine), "--main_process_ip", main]
        if alone:
            several = ["--config_file", "configs/accelerate/cpu.yaml"]
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", *several]
        words = [STAGES[stage], "--config", str(self.out / "config.yaml"), *SHORT, *more]
        inside = f"{mount} && hostname {host} && exec {shlex.join([*launcher, *words])}"
        name = f"{len(list((self.out / 'said').iterdir())):02}-{host}.txt"
        with (self.out / "said" / name).open("w") as said:
            process = subprocess.Popen(
                ["ip", "netns", "exec", host, "unshare", "-u", "-m", "sh", "-c", inside],
                cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, text=True, env=_environment(),
            )  # fmt: skip
        process.said = self.out / "said" / name  # type: ignore[attr-defined]
        self.running.append(process)
        return process

    def both(self, stage: str, *more: str, first: str = A, **how: Any) -> list["End"]:
        """A stage on both hosts, `first` as machine 0: how each ended."""
        second = B if first == A else A
        processes = [self.start(first, 0, stage, *more, **how), self.start(second, 1, stage, *more)]
        return [End(process) for process in processes]

    def at(self, host: str, *parts: str) -> Path:
        """A path of the run on a host's disk, seen from outside."""
        return Path(self.out, host, "run", *parts)


class End:
    """How a launcher ended."""

    def __init__(self, process: "subprocess.Popen[str]", seconds: float = 300) -> None:
        self.status = process.wait(timeout=seconds)
        self.text = " ".join(process.said.read_text().split())  # type: ignore[attr-defined]

    def says(self, *parts: str) -> bool:
        """Whether it failed, with all of this on the screen and no traceback of ours before."""
        ours = self.text.partition("ChildFailedError")[0].partition("E1201")[0]
        return self.status != 0 and all(part in self.text for part in parts) and "error" in ours


def _ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "HF_"))}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def kill(host: str) -> None:
    """SIGKILL for every process of a host, as of one that is switched off."""
    found = subprocess.run(
        ["ip", "netns", "pids", host], capture_output=True, text=True, check=False
    )
    for number in found.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)


def until_saved(trial: Trial, step: int) -> None:
    """Wait for a checkpoint behind a step on the first host's disk."""
    folder, end = trial.at(A, "sft.unfinished", "checkpoints"), time.monotonic() + 120
    while not any(int(p.name[5:]) >= step for p in folder.glob("step-*")):
        assert time.monotonic() < end, "no checkpoint"
        time.sleep(0.2)


def chain(trial: Trial) -> dict[str, Any]:
    """All stages; only rank 0's host writes, and the other reads stages 1 and 2 from copies."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        ends = trial.both(stage)
        record = trial.at(A, stage, "stage.json")
        found[stage] = [end.status for end in ends]
        assert found[stage] == [0, 0], [end.text[:900] for end in ends]
        assert json.loads(record.read_text())["processes"] == 2
    assert not list((trial.out / B).rglob("*")), "the second host's disk is not empty"
    found["line"] = re.findall(r"\d+ processes on .*? GB/s\)", ends[0].text)[0]
    return found


def differ(trial: Trial) -> dict[str, Any]:
    """Another configuration on the second host: both say so, before anything is read."""
    first, second = trial.start(A, 0, "sft"), trial.start(B, 1, "sft", "--seed", "5")
    ends = [End(first), End(second)]
    assert all(end.says("node-b is not as node-a: configuration.seed: 0 -> 5") for end in ends), [
        end.text[:900] for end in ends]  # fmt: skip
    return {"status": [end.status for end in ends]}


def mistaken(trial: Trial) -> dict[str, Any]:
    """A mistake on the second host alone: the first is told, and does not wait."""
    began = time.monotonic()
    first, second = trial.start(A, 0, "sft"), trial.start(B, 1, "sft", "--sft.max_step", "5")
    ends = [End(first), End(second)]
    assert all(end.says("max_step") for end in ends), [end.text[:900] for end in ends]
    assert "of node-b" in ends[0].text
    return {"seconds": round(time.monotonic() - began)}


def full(trial: Trial) -> dict[str, Any]:
    """A disk that is nearly full where the run would be written."""
    ends = trial.both("sft", small=True)
    assert all(end.says("node-a: ", "GiB free") for end in ends), [e.text[:900] for e in ends]
    return {"status": [end.status for end in ends]}


def lost(trial: Trial, how: Callable[[], object], host: str = B) -> dict[str, Any]:
    """Stage 1 of many steps, in the middle of which `how` takes a host away."""
    processes = [trial.start(h, i, "sft", *LONG) for i, h in enumerate(HOSTS)]
    until_saved(trial, 20)
    how()
    began = time.monotonic()
    left = processes[0 if host == B else 1]
    end = End(left, 150)
    seconds = time.monotonic() - began
    assert end.says(f"error: {host} cannot be heard any more"), end.text[:900]
    assert seconds < 120
    kill(host)
    return {"seconds": round(seconds)}


def killed(trial: Trial) -> dict[str, Any]:
    """Every process of the second host is killed; the run goes on on one, then on two again."""
    found = lost(trial, lambda: kill(B))
    process = trial.start(A, 0, "sft", *LONG, alone=True)
    newest = max(int(p.name[5:]) for p in trial.at(A, "sft.unfinished").glob("checkpoints/step-*"))
    until_saved(trial, newest + 20)
    kill(A)
    text = End(process).text
    assert "resuming sft at step" in text, text[-1500:]
    return found


def swapped(trial: Trial) -> dict[str, Any]:
    """What goes on is on the host that is machine 1 now: refused by its name and folder."""
    killed(trial)
    ends = trial.both("sft", *LONG, first=B)
    assert all(end.says("node-a: ", "sft.unfinished has a checkpoint of step") for end in ends), [
        end.text[:900] for end in ends]  # fmt: skip
    return {"status": [end.status for end in ends]}


def resumed(trial: Trial) -> dict[str, Any]:
    """Each stage killed on both hosts and gone on: the checkpoint, which the first alone has, is
    sent to the second, and the result is that of an uninterrupted run."""
    from safetensors.torch import load_file

    tensors = 0
    for stage in STAGES:
        assert [end.status for end in trial.both(stage)] == [0, 0]
        before = trial.at(A, f"{stage}.whole")
        trial.at(A, stage).rename(before)
        for machine, host in enumerate(HOSTS):
            trial.start(host, machine, stage, "--checkpoint.stop_after_minutes", "0.0001")
        for process in trial.running[-2:]:
            assert "to go on" in End(process).text, End(process).text[:900]
        ends = trial.both(stage)
        assert [end.status for end in ends] == [0, 0], [end.text[:900] for end in ends]
        assert f"resuming {stage} at step" in ends[0].text
        for path in before.rglob("*.safetensors"):
            one = load_file(path)
            other = load_file(trial.at(A, stage) / path.relative_to(before))
            assert all((one[name] == other[name]).all() for name in one), (stage, path)
            tensors += len(one)
    return {"tensors": tensors}


CASES: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "chain": chain,
    "differ": differ,
    "mistaken": mistaken,
    "full": full,
    "killed": killed,
    "first_killed": lambda trial: lost(trial, lambda: kill(A), A),
    "cut": lambda trial: lost(trial, lambda: _ip(f"-n {B} link set veth-b down")),
    "swapped": swapped,
    "resumed": resumed,
}


def main(argv: list[str]) -> int:
    """Every case asked for, on fresh hosts and disks."""
    out, names = Path(argv[0]), argv[1:] or list(CASES)
    results, wrong = {}, 0
    for name in names:
        began = time.monotonic()
        with Trial(out / name) as trial:
            trial.make()
            try:
                results[name] = CASES[name](trial)
            except (AssertionError, subprocess.TimeoutExpired, StopIteration) as error:
                results[name], wrong = {"wrong": str(error)[:4000]}, wrong + 1
        print(f"{name}: {json.dumps(results[name])} ({time.monotonic() - began:.0f} s)", flush=True)
    (out / "two_nodes.json").write_text(json.dumps(results, indent=1) + "\n")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
