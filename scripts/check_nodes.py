"""Before a launch on several machines: whether each could take part, and all are there.

    python scripts/check_nodes.py --config_file configs/accelerate/nodes_ddp.yaml \\
        --machine_rank 0 --main_process_ip 10.0.0.1 [--num_machines N] [--num_processes N]

On every machine at about the same time, with the words that `accelerate launch` gets; numbers that
are not given are the file's. accelerate's launcher waits for missing machines, or for a name that
leads nowhere, ten minutes and ends in a traceback, before anything of ours runs. Says what is wrong
in a sentence (status 1), or who is there. `scripts/slurm.sh` runs it first.
"""

import argparse
import json
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.errors import UserError

WAIT = 120.0
"""Seconds that machines wait for each other."""
NUMBERS = ("num_machines", "num_processes", "machine_rank", "main_process_port")


def settings(words: list[str]) -> dict[str, Any]:
    """What the launch would be, from the file and the words; UserError if it could not begin."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config_file", required=True)
    parser.add_argument("--main_process_ip")
    for name in NUMBERS:
        parser.add_argument(f"--{name}", type=int)
    given = {k: v for k, v in vars(parser.parse_args(words)).items() if v is not None}
    path = given["config_file"]
    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--config_file: {path} cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise UserError(f"--config_file: {path} holds no settings of accelerate's.")
    return found | given


def check(launch: dict[str, Any]) -> None:
    """UserError if a number is missing or does not fit the others."""
    where = launch["config_file"]
    for name in (*NUMBERS, "main_process_ip"):
        if launch.get(name) is None:
            raise UserError(f"{where}: {name} is missing. Give it there, or as --{name}.")
        if name in NUMBERS and type(launch[name]) is not int:
            raise UserError(f"{where}: {name} is {launch[name]!r}, no whole number.")
    machines, rank = launch["num_machines"], launch["machine_rank"]
    if machines < 2:
        raise UserError(f"{where}: num_machines is {machines}. One machine needs no such check.")
    if not 0 <= rank < machines:
        raise UserError(
            f"{where}: machine_rank is {rank}, but of {machines} machines they go from 0 to "
            f"{machines - 1}, each once."
        )
    if launch["num_processes"] < machines or launch["num_processes"] % machines:
        raise UserError(
            f"{where}: num_processes is {launch['num_processes']}, over {machines} machines: it "
            "counts the processes of all, as many on each. Set it to machines times GPUs of one."
        )
    if not 0 < launch["main_process_port"] < 2**16:
        raise UserError(
            f"{where}: main_process_port is {launch['main_process_port']}; several machines need "
            "one that all know, such as 29500."
        )


def check_gpus(launch: dict[str, Any]) -> None:
    """UserError if this machine has fewer GPUs than the launch takes."""
    import torch

    asked, shown = launch["num_processes"] // launch["num_machines"], torch.cuda.device_count()
    cpu = launch.get("use_cpu") or (launch.get("distributed_type") == "DEEPSPEED" and not shown)
    if not cpu and asked > shown:
        raise UserError(
            f"{socket.gethostname()}: {asked} processes a machine, but torch sees {shown} GPUs "
            "here. Lower num_processes, or see that CUDA_VISIBLE_DEVICES hides none."
        )


def meet(launch: dict[str, Any]) -> list[str]:
    """Host names of all machines, when they have met at the launch's address."""
    from torch.distributed import TCPStore

    rank, machines = launch["machine_rank"], launch["num_machines"]
    ip, port, host = launch["main_process_ip"], launch["main_process_port"], socket.gethostname()
    try:
        socket.getaddrinfo(ip, port)
    except OSError as error:
        raise UserError(f"{host}: main_process_ip: {ip} leads nowhere ({error}).") from None
    try:
        store = TCPStore(ip, port, None, rank == 0, timedelta(seconds=WAIT), False)
        store.set(f"host/{rank}", json.dumps([host, rank]))
    except RuntimeError as error:
        why = str(error).splitlines()[0][:200]
        way = f"port {port} cannot be opened" if rank == 0 else f"{ip} port {port} does not answer"
        raise UserError(
            f"{host}: {way} ({why}). See that main_process_ip is machine 0's address, that this "
            "check runs there too, and that no firewall and no other run has the port."
        ) from None
    names = [f"host/{m}" for m in range(machines)]
    until = time.monotonic() + WAIT
    while late := [m for m, name in enumerate(names) if not store.check([name])]:
        if time.monotonic() > until:
            numbers = ", ".join(map(str, late))
            raise UserError(f"{host}: machine_rank {numbers} has not come within {WAIT:.0f} s.")
        time.sleep(0.2)
    hosts = [json.loads(each)[0] for each in store.multi_get(names)]
    store.add("met", 1)
    while rank == 0 and store.add("met", 0) < machines:  # it holds the store
        time.sleep(0.1)
    return hosts


def main(words: list[str]) -> int:
    """0 where all are there."""
    try:
        launch = settings(words)
        check(launch)
        check_gpus(launch)
        hosts = meet(launch)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(hosts)} machines are there: {', '.join(hosts)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
