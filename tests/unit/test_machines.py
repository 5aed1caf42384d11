"""Machines of one launch, each in a thread of its own here, around a store in memory."""

import json
import shutil
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from cores.errors import UserError
from cores.files import changes
from cores.runtime import machines
from cores.runtime.machines import Machines


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> HashStore:
    """The one that all connect to; what waits, waits shortly."""
    kept = HashStore()
    kept.set_timeout(timedelta(seconds=5))
    monkeypatch.setattr(machines, "_store", lambda seconds: kept)
    monkeypatch.setattr(machines, "BEAT", 0.05)
    monkeypatch.setattr(machines, "ARRIVAL", 5.0)
    return kept


def machine(number: int, count: int = 2) -> Machines:
    """One of `count`, with a rank."""
    env = {"GROUP_RANK": number, "GROUP_WORLD_SIZE": count, "RANK": number, "LOCAL_RANK": 0,
           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 9}  # fmt: skip
    return Machines({name: str(value) for name, value in env.items()})


def meet(
    tmp_path: Path, *facts: dict[str, Any], count: int = 2
) -> tuple[list[Machines], list[str]]:
    """Machines with these facts meet; what each of them refuses."""
    found = [machine(number, count) for number in range(len(facts))]
    said = [""] * len(facts)

    def one(number: int) -> None:
        try:
            found[number].meet(facts[number], tmp_path / "not" / "yet")
        except UserError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(facts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found, said


def until(condition: Any) -> bool:
    """Whether it comes true soon."""
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())


def test_machines_that_fit(tmp_path: Path) -> None:
    """They know each other's names, and gloo the way."""
    found, said = meet(tmp_path, {"versions": {"torch": "2"}}, {"versions": {"torch": "2"}})
    host = socket.gethostname()
    assert said == ["", ""]
    assert [each.hosts for each in found] == [[host, host]] * 2
    assert found[1].env["GLOO_SOCKET_IFNAME"] == "lo"
    assert found[1].rank == f"rank 1 of {host}"
    assert found[0].lost() == found[1].lost() == []


def test_one_that_differs_is_named(tmp_path: Path) -> None:
    """On both, by what differs; before that nothing is begun."""
    facts = [{"versions": {"torch": v, "peft": "1"}} for v in ("2.13", "2.11")]
    found, said = meet(tmp_path, *facts)
    assert said[0] == said[1]
    assert "is not as " in said[0]
    assert 'versions.torch: "2.13" -> "2.11"' in said[0]
    assert found[0].heard == {}


def test_one_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store) -> None:
    """By its number; at once where it said why."""
    monkeypatch.setattr(machines, "ARRIVAL", 0.2)
    assert meet(tmp_path, {})[1] == [
        "machine_rank 1 of the launch has not come to the start within 0 s: see its own screen."
    ]
    machine(1).tell("sft.max_step: unknown.")
    host = socket.gethostname()
    assert meet(tmp_path, {})[1] == [f"rank 1 of {host} ended: sft.max_step: unknown."]


def test_a_silent_machine_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a minute and a half; where a connection has broken, soon. Machine 0 stands for all
    whose words went by its store."""
    one = Machines({})
    one.hosts, now = ["a", "b", "c"], time.monotonic()
    one.heard = {0: now, 2: now - 60}
    assert one.lost() == []
    one.doubt(0)
    assert one.lost() == ["c"]
    one.heard[0] = now - 60
    assert one.lost() == ["a"]


def test_a_machine_that_says_why_ends_the_others(tmp_path: Path) -> None:
    """With its words; one that is silent by its name."""
    found, _ = meet(tmp_path, {}, {})
    ended: list[str] = []
    found[0].end = ended.append
    found[1].tell("the planted mistake")
    assert until(lambda: ended)
    assert ended[0] == f"rank 1 of {socket.gethostname()} ended: the planted mistake"


def test_a_way_that_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ends and the address are named, and what to set."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()
    notes = [{"host": "a", "at": closed}, {"host": "b", "at": closed}]
    first, _ = machines._problems(notes, 1, tmp_path)
    assert first.startswith(f"b cannot reach a at 127.0.0.1, port {closed[1]} (")
    assert "GLOO_SOCKET_IFNAME" in first


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine that writes, at the nearest folder that is there."""
    usage = shutil.disk_usage(tmp_path)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with socket.create_server(("127.0.0.1", 0)) as server:
        notes = [{"host": h, "at": server.getsockname()} for h in "ab"]
        (problem,) = machines._problems(notes, 0, tmp_path / "not" / "yet")
        assert list(machines._problems(notes, 1, tmp_path)) == []
    assert problem.startswith(f"a: {tmp_path} has 0.00 GiB free")


def test_clocks() -> None:
    """Half a minute is nothing."""
    found = [{"time": 1000.0}, {"time": 1029.0}, {"time": 900.0}]
    (line,) = machines._clocks(found, ["a", "b", "c"])
    assert line.startswith("c: its clock is 100 s behind that of a")


def test_what_differs_is_found_in_json() -> None:
    """What machines send each other has come through JSON, where a tuple is a list."""
    sent = json.loads(json.dumps({"lora": {"targets": ("q", "v")}}))
    assert list(changes(sent, {"lora": {"targets": ["q", "v"]}}, "configuration")) == []
