"""What a run has left in its output_dir: stages that are finished, under way or stopped."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cores.errors import UserError, readable
from cores.files import read_json

STAGES = ("sft", "reward", "ppo")
AGAIN = "The stage has to be run again."
Row = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One stage, as its folder tells."""

    name: str
    folder: Path
    finished: bool
    told: Row
    """stage.json, or of an unfinished stage state.json."""
    rows: list[Row]
    """Of metrics.jsonl."""

    @property
    def config(self) -> Row:
        """The configuration, nested."""
        return self.told.get("config") or {}

    @property
    def data(self) -> Row:
        """What became of the data, `data` of stage.json: see `cores.data.report`."""
        return (self.told if self.finished else self.told.get("facts") or {}).get("data") or {}

    @property
    def metrics(self) -> Row:
        """The stage's own figures, known at its end."""
        return self.told.get("metrics") or {}

    def lines(self, name: str) -> list[Row]:
        """The rows of another file of JSON lines; none where it is not there."""
        return json_lines(self.folder / name)


def read_run(root: Path) -> list[Record]:
    """The stages of an output_dir, in their order; of one that is made anew the newer folder.

    UserError if there is none, or a file of one cannot be read.
    """
    found = [stage for name in STAGES if (stage := read_stage(root, name)) is not None]
    if not found:
        hint = " It is a stage's folder: give the one above it." if is_stage(root) else ""
        raise UserError(
            f"{root}: holds no stage of a run ({', '.join(STAGES)}, or one of them with "
            f".unfinished behind its name). Give the output_dir of a run.{hint}"
        )
    return found


def is_stage(folder: Path) -> bool:
    """Whether a stage, finished or not, has its record there."""
    return any((folder / name).is_file() for name in ("stage.json", "state.json"))


def read_stage(root: Path, name: str) -> Record | None:
    """One stage, if there is anything of it."""
    for folder, file in ((root / f"{name}.unfinished", "state.json"), (root / name, "stage.json")):
        if (folder / file).exists():
            told = read_json(folder / file, AGAIN)
            for key in ("config", "data", "metrics", "facts"):
                if not isinstance(told.get(key) or {}, dict):
                    raise UserError(f"{folder / file}: damaged ({key} is no object). {AGAIN}")
            return Record(name, folder, file == "stage.json", told, metrics(folder))
    return None


def metrics(folder: Path) -> list[Row]:
    """The rows of a stage's metrics.jsonl, all of them finite numbers; UserError otherwise."""
    path = folder / "metrics.jsonl"
    rows = json_lines(path)
    for number, row in enumerate(rows, start=1):
        for key, value in row.items():
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise UserError(
                    f"{path}:{number}: {key} is {json.dumps(value)}, no finite number. No stage "
                    "writes that: put the file back as it was."
                )
    return rows


def json_lines(path: Path) -> list[Row]:
    """The rows of a file of JSON lines; none where there is no file. A last line without its end is
    still being written, and left out. UserError for any other that is no JSON object."""
    if not path.exists():
        return []
    rows = []
    with readable(str(path)):
        lines = path.read_text(encoding="utf-8", errors="backslashreplace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(
                f"{path}:{number}: is no JSON object. Something else has written to this file: "
                "remove the line."
            )
        rows.append(row)
    return rows
