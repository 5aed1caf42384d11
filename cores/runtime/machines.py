"""What the machines of one launch know of each other, over the store at which torch's ranks meet.

Before there is a process group, machines that differ or cannot reach each other are named. From
then on each tells that it lives and, when it ends, why: of one that is lost collectives alone would
say nothing for half an hour.
"""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from cores.errors import UserError
from cores.files import changes

BEAT = 2.0
"""Seconds between two signs of life."""
LOST, BROKEN = 90.0, 10.0
"""Seconds of silence after which a machine is lost; where a connection of this rank has broken."""
ARRIVAL = 300.0
"""Seconds that machines wait for each other at the start: imports from a cold disk take long."""
REACH = 10.0
"""Seconds to wait for a connection."""
CLOCK = 30.0
"""Seconds by which clocks may differ."""
FREE = 2**30
"""Bytes that must be free where the run is written."""
GONE = (RuntimeError, OSError)
"""What a store raises that ends or cannot be reached: torch's DistError is the former."""


class Machines:
    """The machines as one rank sees them."""

    def __init__(self, env: MutableMapping[str, str] = os.environ) -> None:
        self.env = env
        """What torch's launcher said."""
        self.hosts: list[str] = []
        """Their names, once they have met; none where there is one machine."""
        self.heard: dict[int, float] = {}
        """When each of the others was heard of last."""
        self.broken = False
        """A connection of this rank has broken: a silent machine is the likeliest cause."""
        self.end: Callable[[str], None] = lambda text: None
        """Ends this process: another machine is at fault, as the text says."""

    @property
    def several(self) -> bool:
        """Whether torch's launcher runs on more than one."""
        return int(self.env.get("GROUP_WORLD_SIZE", 1)) > 1 and "MASTER_ADDR" in self.env

    @property
    def rank(self) -> str:
        """This process as errors name it: by its host where there are several."""
        own = f"rank {self.env.get('RANK', '0')}"
        return f"{own} of {socket.gethostname()}" if self.several else own

    def meet(self, facts: dict[str, Any], folder: Path) -> None:
        """Check the machines against each other, and watch them from now on.

        `facts`: JSON values that must be the same on all; `folder`: where rank 0 writes. UserError
        on every rank, by host, if machines differ, cannot reach each other or are not there.
        """
        if self.hosts or not self.several:
            return  # they have met, or there is one
        own, count = int(self.env["GROUP_RANK"]), int(self.env["GROUP_WORLD_SIZE"])
        first, store = self.env["LOCAL_RANK"] == "0", _store(ARRIVAL)
        with _listening(self.env) as server:
            if first:
                note = {"host": socket.gethostname(), "at": server.getsockname()[:2], **facts}
                store.set(f"note/{own}", json.dumps(note))
                notes = _all(store, "note", count)
                look = {"time": time.time(), "problems": list(_problems(notes, own, folder))}
                store.set(f"found/{own}", json.dumps(look))
            self.hosts = [note["host"] for note in _all(store, "note", count)]
            found = _all(store, "found", count)
        problems = [text for each in found for text in each["problems"]]
        if text := " ".join([*problems, *_clocks(found, self.hosts)][:3]):
            raise UserError(text)
        self.heard = dict.fromkeys((m for m in range(count) if m != own), time.monotonic())
        threading.Thread(target=self._hear, args=(store, own, first), daemon=True).start()
        threading.Thread(target=self._judge, daemon=True).start()

    def _hear(self, store: Any, own: int, first: bool) -> None:
        """Tell that this machine lives, and listen to the others, until the store is gone."""
        before, beats = dict.fromkeys(self.heard, b""), 0
        with suppress(*GONE):
            while True:
                if first:
                    store.set(f"beat/{own}", str(beats := beats + 1))
                for m in before:
                    if (beat := store.get(f"beat/{m}")) != before[m]:
                        before[m], self.heard[m] = beat, time.monotonic()
                    if store.check([f"said/{m}"]):
                        self.end(store.get(f"said/{m}").decode())
                time.sleep(BEAT)

    def _judge(self) -> None:
        """End this rank where a machine is lost. By a thread of its own: the store's may hang."""
        while not (lost := self.lost()):
            time.sleep(BEAT / 4)
        self.end(
            f"{' and '.join(lost)} cannot be heard any more: switched off, cut off from the "
            "network, or every process of the run was killed there (see its screen and logs). The "
            "same command goes on from the last checkpoint, with fewer machines too (num_machines, "
            "num_processes)."
        )

    def lost(self) -> list[str]:
        """Hosts that are silent. Where machine 0 is, whose store all talk over, it alone."""
        limit, now = BROKEN if self.broken else LOST, time.monotonic()
        silent = [m for m, at in sorted(self.heard.items()) if now - at > limit]
        return [self.hosts[m] for m in ([0] if 0 in silent else silent)]

    def doubt(self, seconds: float) -> float:
        """How long this rank, whose connection has broken, leaves the word to the cause: `seconds`
        where there is one machine."""
        self.broken = bool(self.heard)
        return BROKEN + 2 * BEAT if self.heard else seconds

    def tell(self, text: str) -> None:
        """Let the other machines know why this one ends, as far as they can be reached."""

        def deliver() -> None:
            with suppress(*GONE):
                _store(REACH).set(f"said/{self.env['GROUP_RANK']}", f"{self.rank} ended: {text}")
                time.sleep(1.5 * BEAT)  # the store may end with this process

        if self.several:
            speaker = threading.Thread(target=deliver, daemon=True)
            speaker.start()
            speaker.join(REACH)


MACHINES = Machines()


def _store(seconds: float) -> Any:
    """A connection to the store of this launch."""
    from torch import distributed

    rendezvous: Any = distributed.rendezvous
    store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=seconds)))
    return distributed.PrefixStore("machines", store)


def _all(store: Any, name: str, count: int) -> list[dict[str, Any]]:
    """The JSON objects that each machine puts in the store by this name; UserError if one does not
    come, or a machine ends before."""
    keys, until = [f"{name}/{m}" for m in range(count)], time.monotonic() + ARRIVAL
    while not store.check(keys):
        for m in range(count):
            if store.check([f"said/{m}"]):
                raise UserError(store.get(f"said/{m}").decode())
        if time.monotonic() > until:
            late = next(m for m in range(count) if not store.check([keys[m]]))
            raise UserError(
                f"machine_rank {late} of the launch has not come to the start within "
                f"{ARRIVAL:.0f} s: see its own screen."
            )
        time.sleep(0.1)
    return [json.loads(each) for each in store.multi_get(keys)]


def _listening(env: MutableMapping[str, str]) -> socket.socket:
    """A server at this machine's address on the way to machine 0, at a port that the system chooses
    as it does for ranks. gloo is told the network's interface, else it takes that of the host's
    name, which is often the loopback."""
    asked = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    family, kind, _, _, place = socket.getaddrinfo(*asked, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(place)  # sends nothing
        address = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            env.setdefault("GLOO_SOCKET_IFNAME", name)
    return socket.create_server((address, 0), family=family)


def _problems(notes: list[dict[str, Any]], own: int, folder: Path) -> Iterator[str]:
    """What is wrong with this machine, or with the way from it to others."""
    main, mine = notes[0], notes[own]
    lines = [line for k in main if k not in ("host", "at") for line in changes(main[k], mine[k], k)]
    if lines:
        yield (
            f"{mine['host']} is not as {main['host']}: {'; '.join(lines[:3])}. Start the same "
            "command on every machine, with the same files, program and libraries."
        )
    for other in notes:
        try:
            socket.create_connection(tuple(other["at"]), timeout=REACH).close()
        except OSError as error:
            yield (
                f"{mine['host']} cannot reach {other['host']} at {other['at'][0]}, port "
                f"{other['at'][1]} ({error}). Ranks talk over ports that the system chooses, "
                "beside main_process_port: open them between the machines, let main_process_ip be "
                "machine 0's address in their network, or name its interface by "
                "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME."
            )
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if own == 0 and (free := shutil.disk_usage(there).free) < FREE:
        yield (
            f"{mine['host']}: {there} has {free / 2**30:.2f} GiB free, and the run is written "
            f"there. Free at least {FREE >> 30} GiB, or give another --output_dir."
        )


def _clocks(found: list[dict[str, Any]], hosts: list[str]) -> Iterator[str]:
    """Machines whose clock is not that of the first; all looked when the last had arrived."""
    for each, host in zip(found, hosts, strict=True):
        ahead = each["time"] - found[0]["time"]
        if abs(ahead) > CLOCK:
            way = "ahead of" if ahead > 0 else "behind"
            yield f"{host}: its clock is {abs(ahead):.0f} s {way} that of {hosts[0]}. Use NTP."
