"""Broken rows in every kind of file: rows and counts that agree, or a paragraph with the place."""

import io
import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from _broken import broken, count, paragraph
from _data_helpers import CHAT, NONE, ROLES, config
from _tokenizers import chat_like, gpt2_like, llama_like
from hypothesis import given
from hypothesis import strategies as st

from cores.data import StreamedData, preference_data, prompt_data, sft_data
from cores.errors import UserError

TURNS = [{"role": "user", "content": "A towel?"}, {"role": "assistant", "content": "Of course."}]
ROWS: list[dict[str, Any]] = [
    {"prompt": "A towel?", "completion": "Of course."},
    {"instruction": "Name it", "input": "the sea", "output": "Blue"},
    {"text": "Some words, and more of them."},
    {"messages": TURNS},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
    {"prompt": "Hi", "chosen": "Hello", "rejected": "What", "margin": 0.5},
    {"chosen": "Q: Hi? A: Sure", "rejected": "Q: Hi? A: Sorry"},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Yes", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    {"input": ["Hi", "A towel?"], "output": ["Hello", "Yes"]},
    {"meta_instruction": "S", "num_turns": 1, "chat": {"turn_1": {"Human": "Hi", "MOSS": "Yes"}}},
]
COLUMNS = sorted(
    {name for row in ROWS for name in row} | {"role", "content", "label", "a\nb", "turn_1"}
)
TEXTS = st.sampled_from(
    [
        "",
        " ",
        "A",
        "Hello there",
        "<|endoftext|>",
        "A <|im_end|> B",
        "</s>",
        "<|pad|>",
        "\0",
        "\ud800",
        "\n\nHuman: Hi\n\nAssistant: Yes",
        "Assistant:",
        "你好",
        "a" * 3000,
        "\u2028",
        "1e400",
        "9" * 5000,
        "nan",
        "-1",
        "0.5",
        '"',
        "=1+1",
        "\ufeff",
        "\r",
        "A<|endoftext|>",
    ]
)
SCALARS = st.one_of(
    TEXTS,
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**400, 2**63, -(2**70)]),
    st.floats(),
    st.text(max_size=5),
)
TURN = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system", "human", "tool", "", None]),
        "from": st.sampled_from(["human", "gpt", "system", "x", None]),
        "content": SCALARS,
        "value": SCALARS,
    },
)
VALUES = st.recursive(
    st.one_of(SCALARS, st.lists(TURN, max_size=4), st.just(TURNS)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(COLUMNS), inner, max_size=3)
    ),
    max_leaves=5,
)
CHANGES = st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=2)
MADE = st.lists(st.tuples(st.sampled_from(ROWS), CHANGES), min_size=1, max_size=4)
SETTINGS = st.fixed_dictionaries(
    {
        "stage": st.sampled_from(["sft", "reward", "ppo"]),
        "template": st.sampled_from([NONE, ROLES, CHAT]),
        "tokenizer": st.sampled_from([gpt2_like, chat_like, llama_like]),
        "fraction": st.sampled_from([0.0, 0.5]),
        "source": st.sampled_from(
            [
                {},
                {"transcripts": True},
                {"format": "text"},
                {"format": "preference"},
                {"limit": 1},
                {"format": "prompt"},
                {"format": "messages"},
                {"streaming": True},
                {"columns": {"prompt": "instruction", "input": "text", "reply": "output"}},
                {"columns": {"text": "prompt"}, "streaming": True},
            ]
        ),
    }
)


def used(path: Path, settings: dict[str, Any]) -> int | None:
    """Build the data of a stage: how many rows it trains on, the counts adding up and ids being
    ids; None where the file is refused, in a paragraph that names a place."""
    tokenizer = settings["tokenizer"]()
    build = {"sft": sft_data, "reward": preference_data, "ppo": prompt_data}[settings["stage"]]
    made = config(
        str(path),
        settings["template"],
        settings["fraction"],
        settings["source"],
        sft={"max_length": 40},
        reward={"max_length": 40},
        ppo={"max_prompt_length": 40},
    )
    try:
        data = build(made, tokenizer)
        rows = list(islice(data.train, 20)) if isinstance(data, StreamedData) else data.train
    except UserError as error:
        count(f"{path.suffix}: refused")
        paragraph(str(error), str(path), "data.", "template")
        return None
    count(f"{path.suffix}: used")
    report: Any = data.report
    for split, found in (("train", rows), ("test", data.test)):
        counts = report.splits().get(split)
        assert counts is None or counts.read == counts.used + counts.dropped.total()
        assert isinstance(data, StreamedData) or counts is None or counts.used == len(found)
        for row in found:
            _usable(row, len(tokenizer))
    json.dumps(report.to_json(), allow_nan=False).encode()
    return len(rows)


def _usable(row: dict[str, Any], vocabulary: int) -> None:
    for name, ids in row.items():
        if name.endswith("_ids"):
            assert ids
            assert all(0 <= i < vocabulary for i in ids)
    assert "labels" not in row or len(row["labels"]) == len(row["input_ids"])
    assert 0 <= row.get("margin", 0.0) < math.inf


def as_file(rows: list[dict[str, Any]], suffix: str) -> bytes:
    """The rows in a kind of file, as far as it can hold them."""
    if suffix in PACKINGS:
        out = pyarrow.BufferOutputStream()
        with pyarrow.CompressedOutputStream(out, PACKINGS[suffix]) as file:
            file.write(as_file(rows, ".jsonl"))
        return bytes(out.getvalue().to_pybytes())
    if suffix == ".txt":
        return json.dumps(rows).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == ".json":
        held = {"of": 1, "rows": rows} if len(rows) > 2 else rows
        return json.dumps(held, indent=1).encode()
    names = list(dict.fromkeys(name for row in rows for name in row))
    if suffix in (".csv", ".tsv"):
        mark = "," if suffix == ".csv" else "\t"
        lines = [names, *([str(row.get(name, "")) for name in names] for row in rows)]
        cells = [mark.join('"' + c.replace('"', '""') + '"' for c in line) for line in lines]
        return ("\n".join(cells) + "\n").encode("utf-8", "surrogatepass")
    try:
        table = pyarrow.Table.from_pylist(rows)
        sink = io.BytesIO()
        pyarrow.parquet.write_table(table, sink)
    except (pyarrow.ArrowException, UnicodeError, OverflowError, TypeError, ValueError):
        return b"PAR1"  # what these rows cannot be
    return sink.getvalue()


PACKINGS = {".jsonl.gz": "gzip", ".jsonl.zst": "zstd"}
SUFFIXES = st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", *PACKINGS])


@given(MADE, SUFFIXES, SETTINGS)
def test_odd_rows(
    tmp_path_factory: pytest.TempPathFactory, made: Any, suffix: str, settings: dict[str, Any]
) -> None:
    """Rows with columns and values of the wrong kind."""
    path = tmp_path_factory.getbasetemp() / f"odd{suffix}"
    path.write_bytes(as_file([{**row, **changes} for row, changes in made], suffix))
    assert used(path, settings) != 0


@given(st.data(), SUFFIXES, SETTINGS)
def test_broken_files(
    tmp_path_factory: pytest.TempPathFactory, data: Any, suffix: str, settings: dict[str, Any]
) -> None:
    """Files that hold good rows, with pieces cut out, doubled, exchanged and put in."""
    row = data.draw(st.sampled_from(ROWS))
    path = tmp_path_factory.getbasetemp() / f"broken{suffix}"
    path.write_bytes(data.draw(broken(as_file([row, row, row], suffix))))
    assert used(path, settings) != 0


@given(st.binary(max_size=200), SUFFIXES, SETTINGS)
def test_noise(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str, settings: dict[str, Any]
) -> None:
    """Any bytes under any suffix."""
    path = tmp_path_factory.getbasetemp() / f"noise{suffix}"
    path.write_bytes(content)
    assert used(path, settings) != 0
