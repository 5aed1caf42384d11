"""One stream of metrics, several readers: each tracker holds what metrics.jsonl holds."""

import contextlib
import io
import json
import os
import struct
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from _helpers import SCRIPTS, good, in_process, record, rows

from cores.config import parse_config, plain
from cores.run.folder import flat
from cores.runtime.fingerprint import model_files

Values = dict[str, list[tuple[int, float]]]
"""Name of a metric to its (step, value)s."""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory, llama: Path, files: dict[str, Path]) -> tuple[Path, str]:
    """All stages with all trackers there are: the run's folder and what was printed."""
    out = tmp_path_factory.mktemp("runs") / "tracked"
    os.environ["TRACKIO_DIR"] = str(out.parent / "trackio")  # read when trackio is imported
    installed = [name for name in ("tensorboard", "wandb", "trackio") if find_spec(name)]
    words = [*good(llama, files, out), "--logging.trackers", json.dumps(installed)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for stage in SCRIPTS:
            in_process(stage, [*words, "--logging.project", "tests"])
    return out, printed.getvalue()


def written(folder: Path) -> Values:
    """metrics.jsonl, by the stage and the name, and the figures on held-out rows."""
    stage = folder.name
    values: Values = {}
    for row in rows(folder / "metrics.jsonl"):
        step = row.pop("step")
        for name, value in row.items():
            values.setdefault(f"{stage}/{name}", []).append((step, value))
    facts, last = record(folder)["metrics"], step
    found = {
        "sft": lambda: [
            (0, {"loss": facts["test_loss_before"]}),
            (last, {"loss": facts["test_loss"]}),
        ],
        "reward": lambda: [(last, facts)],
        "ppo": lambda: [(0, facts["before"]), (last, facts["after"])],
    }[stage]()
    for step, figures in found:
        for name, value in figures.items():
            if isinstance(value, int | float):
                values.setdefault(f"{stage}/held_out/{name}", []).append((step, value))
    return values


def same(found: Values, expected: Values) -> None:
    """Equal names, steps and values (event files hold single precision)."""
    assert found.keys() == expected.keys()
    for name, pairs in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in pairs]
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in pairs], rel=1e-6)


def settings(out: Path, stage: str) -> dict[str, Any]:
    """The configuration of a stage under dotted keys."""
    return flat(record(out / stage)["config"])


@pytest.mark.parametrize("stage", list(SCRIPTS))
def test_tensorboard(tracked: tuple[Path, str], stage: str) -> None:
    """Event files are in the stage's folder, complete though it was moved."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tracked[0] / stage
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    found = {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }
    same(found, written(folder))
    assert events.Tags()["tensors"] == (["ppo/samples/text_summary"] if stage == "ppo" else [])
    places = {path.parent for path in tracked[0].rglob("events.out.*")}
    assert places == {tracked[0] / name / "tensorboard" for name in SCRIPTS}  # a run a stage


def wandb_records(path: Path) -> list[Any]:
    """The records of a .wandb file: LevelDB's log format behind a header of 7 bytes.

    Blocks of 32 KiB; a record's parts have crc (4 bytes), length (2), and type (1): 1 whole,
    2 first, 3 middle, 4 last.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, block = path.read_bytes(), 7, 32768
    found, record_ = [], b""
    while at + 7 <= len(data):
        if block - at % block < 7:  # too little for a header: filled up
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        record_ += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            found.append(Record.FromString(record_))
            record_ = b""
    return found


@pytest.mark.parametrize("stage", list(SCRIPTS))
def test_wandb_offline(tracked: tuple[Path, str], stage: str) -> None:
    """Beside the stages, with the run's name and configuration; a line says how to send it."""
    pytest.importorskip("wandb")
    out, printed = tracked
    runs = {}
    for path in (out / "wandb").glob("offline-run-*/*.wandb"):
        records = wandb_records(path)
        started = next(r.run for r in records if r.WhichOneof("record_type") == "run")
        runs[started.display_name] = (path, started, records)
    assert runs.keys() == {f"tracked/{name}" for name in SCRIPTS}
    path, started, records = runs[f"tracked/{stage}"]
    assert started.project == "tests"
    assert f"wandb is offline; `wandb sync {path.parent}` sends this run\n" in printed
    kept = {item.key: json.loads(item.value_json) for item in started.config.update}
    assert settings(out, stage).items() <= kept.items()
    found: Values = {}
    for history in [r.history for r in records if r.WhichOneof("record_type") == "history"]:
        items = {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in history.item}
        for name in items:
            if not name.startswith(("_", "ppo/samples")):  # its own: step, time; a table
                found.setdefault(name, []).append((items["_step"], items[name]))
    same(found, written(out / stage))


@pytest.mark.parametrize("stage", list(SCRIPTS))
def test_trackio(tracked: tuple[Path, str], stage: str) -> None:
    """On this machine, under the project, and quietly."""
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    out, printed = tracked
    found: Values = {}
    for row in SQLiteStorage.get_logs("tests", f"tracked/{stage}"):
        for name in row.keys() - {"step", "timestamp", "ppo/samples"}:
            found.setdefault(name, []).append((row["step"], row[name]))
    same(found, written(out / stage))
    kept = SQLiteStorage.get_run_config("tests", f"tracked/{stage}")
    assert settings(out, stage).items() <= kept.items()
    assert "rackio" not in printed


def test_trackers_are_no_part_of_a_checkpoint(tracked: tuple[Path, str]) -> None:
    """Sending or deleting a tracker's files must not look like a damaged model."""
    for stage in SCRIPTS:
        assert not [name for name in model_files(tracked[0] / stage) if "tensorboard" in name]
    assert {p.name for p in tracked[0].iterdir()} - {"wandb", "report.html"} == set(SCRIPTS)


def test_settings_are_named_as_on_the_command_line() -> None:
    """Dotted keys; lists as text, which is all that every tracker takes."""
    config = parse_config(["--ppo.stop_token_ids", "[3,4]", "--seed", "7"], "stage.py", "")
    values = flat(plain(config))
    assert values["ppo.stop_token_ids"] == "[3, 4]"
    assert values["seed"] == 7
    assert values["ppo.lora.rank"] == 0
    assert all(isinstance(v, str | int | float | bool | None) for v in values.values())
