"""Texts read while training: passes, order, held-out rows, parts of several processes, mistakes."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from _data_helpers import NONE, config, write_jsonl
from _tokenizers import gpt2_like
from accelerate.data_loader import IterableDatasetShard

from cores.config.data import DataSection, SourceSection, WeightedSource
from cores.config.schema import Config
from cores.data import StreamedData, build, sft_data, show, stream
from cores.data.mixture import held_out
from cores.errors import UserError


def made(path: Any, fraction: float = 0.0, **source: Any) -> Config:
    return config(str(path), NONE, test_fraction=fraction, source={"streaming": True, **source})


def streamed(path: Any, fraction: float = 0.0, **source: Any) -> StreamedData:
    data = sft_data(made(path, fraction, **source), gpt2_like())
    assert isinstance(data, StreamedData)
    return data


def numbers(rows: Iterator[dict[str, Any]]) -> list[int]:
    end = "<|endoftext|>"
    return [int(str(gpt2_like().decode(row["input_ids"])).removesuffix(end)) for row in rows]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return write_jsonl(tmp_path / "a.jsonl", [{"text": str(i)} for i in range(40)])


def test_each_row_once_a_pass(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passes of 40 rows through a buffer of 7: no row is lost or repeated within a pass."""
    monkeypatch.setattr(stream, "BUFFER", 7)
    data = streamed(path)
    found = numbers(islice(data.train, 120))
    for start in (0, 40, 80):
        assert sorted(found[start : start + 40]) == list(range(40))
    assert found[:40] != found[40:80] != list(range(40))
    assert max(abs(n - i) for i, n in enumerate(found[:40])) > 7, "the buffer moves rows"
    assert numbers(islice(data.train, 50)) == found[:50], "the seed decides"


def test_rows_are_those_of_a_set_in_memory(path: str) -> None:
    data, whole = streamed(path), sft_data(config(path, NONE), gpt2_like())
    key = lambda row: row["input_ids"]  # noqa: E731
    rows = list(islice(data.train, 40))
    assert sorted(rows, key=key) == sorted(whole.train, key=key)
    assert rows != whole.train, "shuffled, though it is smaller than the buffer"


def test_held_out_rows_are_not_trained(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [i for i in range(40) if held_out(str(i), 0.3)]
    data = streamed(path, 0.3)
    assert numbers(iter(data.test)) == held
    trained = Counter(numbers(islice(data.train, 2 * (40 - len(held)))))
    assert trained == {i: 2 for i in range(40) if i not in held}
    monkeypatch.setattr(build, "TEST_ROWS", 3)
    assert numbers(iter(streamed(path, 0.3).test)) == held[:3]


def test_held_out_rows_of_their_own(path: str, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "b.jsonl", [{"text": "77"}, {"text": ""}])
    data = streamed(path, 0.3, test_path=other)
    assert numbers(iter(data.test)) == [77]
    assert data.report.to_json()["test"]["dropped"] == {"empty text": 1}
    assert sorted(numbers(islice(data.train, 40))) == list(range(40))


def test_processes_read_parts_of_one_order(path: str) -> None:
    """As accelerate shards a stream: batches of 4 of two processes are those of one process."""
    one = numbers(islice(streamed(path).train, 24))
    parts = [
        numbers(islice(IterableDatasetShard(streamed(path).train, 4, False, 2, rank), 12))
        for rank in (0, 1)
    ]
    for k in range(3):
        assert parts[0][4 * k : 4 * k + 4] + parts[1][4 * k : 4 * k + 4] == one[8 * k : 8 * k + 8]


def test_counts_grow(tmp_path: Path) -> None:
    rows = [{"text": "" if i % 4 == 0 else "word " * i} for i in range(20)]
    data = streamed(write_jsonl(tmp_path / "a.jsonl", rows))
    assert data.report.lines() == [
        f"train: rows of {tmp_path}/a.jsonl (text), streamed while training"
    ]
    list(islice(data.train, 31))
    found = data.report.to_json()["train"]
    assert (found["used"], found["passes"], found["dropped"]) == (31, 2, {"empty text": 15})
    assert found["read"] == 46
    assert found["fingerprints"] == {"a.jsonl": f"{(tmp_path / 'a.jsonl').stat().st_size} bytes"}
    assert "31 of 46 rows" in data.report.lines()[0]
    list(islice(data.train, 3))
    assert data.report.train.used == 3, "from the beginning"


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first row is there though a later one is malformed, which is told when it is reached."""
    monkeypatch.setattr(stream, "BUFFER", 5)
    lines = [json.dumps({"text": str(i)}) for i in range(5000)]
    lines[3000] = '{"text": 3}'
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = iter(streamed(tmp_path / "a.jsonl").train)
    assert len(list(islice(rows, 1900))) == 1900
    with pytest.raises(UserError, match=r"a.jsonl:3001: column 'text' must be text"):
        list(rows)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.json", '[{"text": "x"}]', ["data.sft.path", "cannot be streamed", ".jsonl"]),
        ("a.jsonl", "", ["holds no rows"]),
        ("a.jsonl", '{"text": ""}\n{"text": " "}', ["no row of", "2 empty text"]),
        ("a.jsonl", '{"text": \n', ["a.jsonl:1: bad JSON"]),
        ("a.jsonl", '{"prompt": "a", "completion": "b"}', ["data.sft.streaming", "completion"]),
        ("a.csv", "text;label\nx;1\n", ["separated by semicolons"]),
    ],
)
def test_mistakes(tmp_path: Path, name: str, content: str, parts: list[str]) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        streamed(tmp_path / name)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("option", [{"image_folder": "x"}, {"similarity": 0.5}])
def test_options_of_images(path: str, option: dict[str, Any]) -> None:
    """Refused, as without streaming."""
    with pytest.raises(UserError, match="is for images, which this base does not read"):
        streamed(path, **option)


def test_other_kinds_of_files(tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.csv").write_text(
            f"\ufefftext,label\n{i},好\n{i + 10},坏\n", encoding="utf-8"
        )
    assert sorted(numbers(islice(streamed(folder).train, 6))) == [0, 1, 2, 10, 11, 12]
    assert len(list(islice(streamed(folder, limit=2).train, 4))) == 4
    assert set(numbers(islice(streamed(folder, limit=2).train, 4))) == {0, 10}


def test_shown(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("cores.data.inspect.STREAMED", 40)
    show(streamed(path), gpt2_like(), DataSection(inspect=2))
    out = capsys.readouterr().out
    assert out.count("--- row ") == 2
    assert "train: 40 of 40 rows" in out


def test_columns_of_later_rows(tmp_path: Path) -> None:
    """Refused, left out knowingly or named, as if the first row had them."""
    rows: list[dict[str, Any]] = [{"text": str(i)} for i in range(10)]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, {"text": "10", "tools": "a", "url": "b"}])
    whole = sft_data(config(path, NONE, source={"ignore": ["tools"]}), gpt2_like())
    data = streamed(path, ignore=["tools"])
    assert len(list(islice(data.train, 22))) == 22
    assert sorted(data.report.train.unread) == sorted(whole.report.train.unread)
    for read in (streamed, lambda path: sft_data(config(path, NONE), gpt2_like())):
        with pytest.raises(UserError, match=r"a\.jsonl:11: column 'tools' .* is not read"):
            read(path)


def mixed(
    tmp_path: Path, words: int, weigh: str, *more: dict[str, Any], **data_: Any
) -> StreamedData:
    """Two streams: texts of one word each, weight 1, and of so many words, weight 3."""
    rows = [{"text": f"a{i}"} for i in range(40)], [{"text": f"b{i} " * words} for i in range(40)]
    one, other = (write_jsonl(tmp_path / f"{n}.jsonl", rows[n]) for n in (0, 1))
    items = [
        WeightedSource(path=path, weight=weight, **extra)
        for path, weight, extra in zip((one, other), (1, 3), more or ({}, {}), strict=True)
    ]
    section = SourceSection(sources=items, streaming=True, weigh=weigh)  # type: ignore[arg-type]
    data = sft_data(
        replace(
            config(None, NONE), data=DataSection(sft=section, **{"test_fraction": 0.0} | data_)
        ),
        gpt2_like(),
    )
    assert isinstance(data, StreamedData)
    return data


def test_several_streams_in_exact_shares(tmp_path: Path) -> None:
    """At any time as near as rows allow; each source is shuffled, and goes round by itself."""
    data = mixed(tmp_path, 1, "rows")
    assert "weight 3" in data.report.lines()[1]
    rows = list(islice(data.train, 200))
    texts = [str(gpt2_like().decode(row["input_ids"])) for row in rows]
    for n in range(1, 200):
        assert abs(sum(text.startswith("b") for text in texts[:n]) - 0.75 * n) <= 1
    assert set(Counter(texts).values()) == {1, 2, 3, 4}, "50 rows of 40, 150 of 40"
    assert list(islice(data.train, 50)) == rows[:50], "a run that goes on sees the same"
    assert "38 rows, 76.00% of all" in data.report.lines()[1]
    assert data.report.to_json()["sources"][0]["rows"] == 12


def test_several_streams_in_shares_of_tokens(tmp_path: Path) -> None:
    data = mixed(tmp_path, 20, "tokens")
    rows = list(islice(data.train, 200))
    tokens = [len(row["input_ids"]) for row in rows]
    texts = [str(gpt2_like().decode(row["input_ids"])) for row in rows]
    long = sum(n for n, text in zip(tokens, texts, strict=True) if text.startswith("b"))
    assert abs(long - 0.75 * sum(tokens)) <= max(tokens)
    assert data.report.to_json()["sources"][1]["tokens"] == long


def test_several_streams_keep_what_one_has(tmp_path: Path) -> None:
    """Held-out rows in turn, losses of their own, joined texts, mistakes with the source's key."""
    data = mixed(tmp_path, 1, "rows", {"loss_weight": 1.0}, {"loss_weight": 0.2}, test_fraction=0.3)
    parts = [row["part"] for row in islice(data.train, 40)]
    assert parts.count(1) == 30
    texts = [str(gpt2_like().decode(row["input_ids"]))[:1] for row in data.test]
    assert texts[:4] == ["a", "b", "a", "b"]
    joined = mixed(tmp_path, 1, "tokens", join="\n")
    assert all(row["labels"] == row["input_ids"] for row in islice(joined.train, 3))
    with pytest.raises(UserError, match=r"^data.sft.sources\[1\].columns.text: .* no column 'no'"):
        mixed(tmp_path, 1, "rows", {}, {"columns": {"text": "no"}})
