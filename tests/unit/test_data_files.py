"""Files that are not what they should be: something else, packed, hidden, out of reach."""

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from _data_helpers import read, refused, rows

from cores.data.files import LONGEST, READERS
from cores.data.sources import Row
from cores.data.values import text_of
from cores.errors import UserError


def test_files_that_are_something_else(tmp_path: Path) -> None:
    """Compressed, of another encoding, Parquet: no JSON, and how to come to it."""
    for content in (gzip.compress(b"{}"), '{"text": "x"}'.encode("utf-16"), b"PAR1\xff\xff"):
        (tmp_path / "a.jsonl").write_bytes(content)
        message = refused(tmp_path / "a.jsonl")
        assert f"{tmp_path / 'a.jsonl'}:1: not UTF-8" in message
        assert "unpack it if it is compressed" in message


def test_a_parquet_file_with_two_columns_of_one_name(tmp_path: Path) -> None:
    """One of them would be lost."""
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert "the schema names text more than once" in refused(tmp_path / "a.parquet")


def test_hidden_files_are_left_out_and_counted(tmp_path: Path) -> None:
    """Copies of editors and systems would double the rows; named themselves they are read."""
    for name in ("a.jsonl", ".a-checkpoint.jsonl", "._a.jsonl"):
        (tmp_path / name).write_text('{"text": "x"}\n')
    (tmp_path / ".ipynb_checkpoints").mkdir()
    source = read(tmp_path)
    assert (len(rows(source)), list(source.fingerprints), source.hidden) == (1, ["a.jsonl"], 2)
    assert len(rows(read(tmp_path / "._a.jsonl"))) == 1
    (tmp_path / "a.jsonl").unlink()
    assert "without any data file" in refused(tmp_path)


def test_packed_files_are_not_passed_over(tmp_path: Path) -> None:
    """Those that cannot be read: their rows would be missing without a word."""
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "README.md.gz").write_text("x")
    assert len(rows(read(tmp_path))) == 1
    (tmp_path / "b.jsonl.xz").write_text("x")
    assert "holds packed files (b.jsonl.xz), whose rows would be missing" in refused(tmp_path)
    (tmp_path / "b.jsonl.xz").rename(tmp_path / "b.parquet.gz")
    assert "holds packed files (b.parquet.gz)" in refused(tmp_path)


def packed(text: str, packing: str) -> bytes:
    """As the tool of that packing writes it."""
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, packing) as file:
        file.write(text.encode())
    return out.getvalue().to_pybytes()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("suffix", "packing"), [(".gz", "gzip"), (".bz2", "bz2"), (".zst", "zstd")]
)
def test_packed_files_are_read(tmp_path: Path, suffix: str, packing: str) -> None:
    """A row knows its line, in several packed pieces too; what is cut short is said."""
    path = tmp_path / f"a.jsonl{suffix}"
    content = packed('\ufeff{"text": "你"}\n', packing) + packed('\n{"text": "y"}\n', packing)
    path.write_bytes(content)
    source = read(tmp_path)
    assert list(source.fingerprints) == [path.name]
    assert [(row.where, row.columns["text"]) for row in rows(source)] == [
        (f"{path}:1", "你"),
        (f"{path}:3", "y"),
    ]
    path.write_bytes(content[:-12])
    assert f"{path}: cannot be unpacked (Truncated compressed stream)" in refused(path)
    path.write_bytes(b"junk")
    assert "cannot be unpacked" in refused(path)


def test_a_text_file_is_one_row(tmp_path: Path) -> None:
    """Verbatim, empty lines and line ends included."""
    path = tmp_path / "a.txt"
    path.write_bytes("\r\n第一行\n\n".encode())
    (row,) = rows(read(tmp_path))
    assert (row.where, row.columns) == (f"{path}:1", {"text": "\r\n第一行\n\n"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"a": [{"x": 1}], "b": [{"x": 1}]}', "one object with the lists a, b in it"),
        (
            '{"messages": [{"role": "user", "content": "x"}]}',
            "one object with no list of rows in it",
        ),
        ('{"a": [1, 2], "b": []}', "one object with no list of rows in it"),
        ("{}", "one object with no list of rows in it"),
    ],
)
def test_an_object_with_other_than_one_list(tmp_path: Path, content: str, said: str) -> None:
    """Which of them the rows are would be a guess."""
    (tmp_path / "a.json").write_text(content)
    assert f"a.json: holds {said}" in refused(tmp_path / "a.json")


@pytest.mark.parametrize("inside", [False, True])
def test_what_is_no_regular_file(tmp_path: Path, inside: bool) -> None:
    """A pipe would be waited for for ever, a device never ends."""
    for number, make in enumerate((os.mkfifo, os.mkdir, lambda p: os.symlink("/dev/zero", p))):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / "a.jsonl"
        make(path)
        message = refused(folder if inside else path)
        assert message.startswith("data.sft.path")
        assert str(path) in message


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOENT])
@pytest.mark.parametrize("what", ["open", "read"])
def test_the_disk_refuses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, what: str
) -> None:
    """At the opening and in the middle: path, reason and what to do."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')

    def fails(*_: Any, **__: Any) -> Any:
        raise OSError(code, os.strerror(code))

    source = read(path)
    if what == "open":
        monkeypatch.setattr(Path, "open", fails)
    else:
        monkeypatch.setitem(READERS, ".jsonl", lambda _: iter(fails, None))
    with pytest.raises(UserError, match=os.strerror(code)) as caught:
        rows(source)
    assert str(caught.value).startswith(f"data.sft.path {str(path)!r} cannot be read: ")


def test_links_in_a_circle_and_names_too_long(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    for path in (tmp_path / "a.jsonl", tmp_path, tmp_path / ("x" * 300 + ".jsonl")):
        assert refused(path).startswith("data.sft.path")


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """They could not be written into stage.json at the end."""
    (tmp_path / "a\udcff.jsonl").write_text('{"text": "x"}\n')
    assert "the byte 0xff" in refused(tmp_path)


def test_splits_and_names_of_local_files(tmp_path: Path) -> None:
    """They have none: rows of every split would be read as the one asked for."""
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    for choice in ({"split": "test"}, {"name": "small"}):
        assert "no configurations and no splits" in refused(tmp_path / "a.jsonl", **choice)


def test_a_text_that_is_too_long(tmp_path: Path) -> None:
    """An unbalanced quote makes the rest of a file one text: refused before it is tokenized."""
    row = Row("a.jsonl:1", {"text": "x" * (LONGEST + 1)})
    with pytest.raises(UserError, match=r"a.jsonl:1: column 'text' has 10000001 characters"):
        text_of(row, "text")
    (tmp_path / "a.csv").write_text('text\n"' + "x\n" * (LONGEST // 2 + 1))
    assert "a.csv:2: malformed CSV row: field larger" in refused(tmp_path / "a.csv")
