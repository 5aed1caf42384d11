"""Ranks that watch each other."""

import json
from pathlib import Path

from cores.runtime.ranks import WAITING, Watch


def beat(folder: Path, rank: int, what: str, since: float, at: float) -> None:
    note = {"what": what, "since": since, "at": at}
    (folder / f"beat_{rank}").write_text(json.dumps(note))


def test_a_stopped_rank_is_named_once(tmp_path: Path) -> None:
    """Rank 1 noted itself 90 s ago; the lowest rank that lives says so, and not again at once."""
    beat(tmp_path, 0, "update", 0.0, 99.0)
    beat(tmp_path, 1, "update", 0.0, 10.0)
    beat(tmp_path, 2, "update", 0.0, 99.0)
    zero, two = Watch(), Watch()
    (line,) = zero.look(tmp_path, 0, 100.0)
    assert "rank 1 has not moved for 90 s" in line
    assert zero.look(tmp_path, 0, 105.0) == []
    assert two.look(tmp_path, 2, 100.0) == []


def test_a_stopped_rank_0_is_named_by_rank_1(tmp_path: Path) -> None:
    """Whoever lives speaks."""
    beat(tmp_path, 0, "update", 0.0, 10.0)
    beat(tmp_path, 1, "update", 0.0, 99.0)
    (line,) = Watch().look(tmp_path, 1, 100.0)
    assert "rank 0 has not moved" in line


def test_a_rank_that_others_wait_for_is_named_with_what_it_does(tmp_path: Path) -> None:
    """It lives, and sleeps in a reward function; nothing is said while nobody waits, or of others
    that wait as well."""
    watch = Watch()
    beat(tmp_path, 0, WAITING, 20.0, 99.0)
    beat(tmp_path, 1, "its reward functions", 15.0, 99.0)
    beat(tmp_path, 2, WAITING, 15.0, 99.0)
    assert watch.look(tmp_path, 0, 100.0) == []
    with watch.doing(WAITING):
        watch.since = 20.0
        (line,) = watch.look(tmp_path, 0, 100.0)
    assert "rank 1 has been at its reward functions for 85 s" in line
    assert watch.what == "starting"
