"""JSON files: strict both ways, whole or not at all."""

import json
import os
from pathlib import Path

import pytest

from cores.errors import UserError
from cores.files import LARGEST, read_json, write_json

MALFORMED = {
    "empty": (b"", "empty"),
    "cut": (b'{"a": 1, "b', "Unterminated"),
    "list": (b"[1]", "a list, not an object"),
    "null": (b"null", "not an object"),
    "text": (b'"x"', "a str, not an object"),
    "nan": (b'{"a": NaN}', "a (nan) is no number of JSON"),
    "infinity": (b'{"a": -Infinity}', "a (-inf) is no number of JSON"),
    "too large": (b'{"a": [1e999]}', "a.0 (inf) is no number of JSON"),
    "digits": (b'{"a": 1' + b"0" * 5000 + b"}", "4300"),
    "deep": (b'{"a":' * 100_000, "recursion"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "utf-8"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html>", "a web page"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_whatever_is_no_object_is_refused(kind: str, tmp_path: Path) -> None:
    """With the file, the reason and the remedy, on one line."""
    data, reason = MALFORMED[kind]
    path = tmp_path / "record.json"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        read_json(path, "Write it again.")
    said = str(error.value)
    assert said.startswith(f"{path}: damaged (")
    assert reason in said
    assert said.endswith("). Write it again.")
    assert "\n" not in said


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder, a pipe (reading it would wait for ever), a link to itself, a file too large."""
    path = tmp_path / "record.json"
    for make in (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to(path)):
        make()
        with pytest.raises(UserError, match=r"record\.json: damaged \(no (regular|such) file\)"):
            read_json(path)
        path.rmdir() if path.is_dir() else path.unlink()
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(UserError, match="more than 64 MiB"):
        read_json(path)


def test_written_is_read_again(tmp_path: Path) -> None:
    """Text of any language and paths that are not UTF-8, as JSON that any reader takes."""
    path = tmp_path / "record.json"
    value = {"text": "日本語 é", "path": "caf\udce9", "numbers": [1, 2.5, -1e300], "none": None}
    write_json(path, {"old": 1})
    write_json(path, value)
    assert read_json(path) == json.loads(path.read_bytes()) == value
    assert "日本語" in path.read_text("utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_no_nan_is_written(number: float, tmp_path: Path) -> None:
    """Its key is named, and the file that was there stays."""
    path = tmp_path / "record.json"
    write_json(path, {"a": 1})
    with pytest.raises(UserError, match=r"metrics\.scores\.1 \((nan|-?inf)\) is no finite number"):
        write_json(path, {"metrics": {"scores": [1.0, number]}})
    assert read_json(path) == {"a": 1}


def test_infinity_in_a_configuration(tmp_path: Path) -> None:
    """Some models' config.json has it, as Python writes it."""
    path = tmp_path / "config.json"
    path.write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_json(path, finite=False) == {"time_step_limit": [0.0, float("inf")]}
