"""Broken configurations and command lines: a checked Config, or one paragraph that says where."""

import contextlib
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from _broken import JUNK, broken, count, paragraph
from hypothesis import given
from hypothesis import strategies as st

from cores.config import Config, parse_config, plain
from cores.config.parse import KEYS
from cores.errors import UserError

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))
LEAVES = [key for key, kind in KEYS.items() if "[" not in key]
VALUES = [
    "",
    "null",
    "true",
    "no",
    "0",
    "1",
    "-1",
    "3.5",
    "1e400",
    "-.inf",
    ".nan",
    "1e-320",
    "1_0",
    "0x1F",
    "1:30",
    "9" * 5000,
    "[" * 5000,
    "{a: " * 500,
    "[1, 2]",
    "[[1]]",
    '["a"]',
    "{}",
    "{a: 1}",
    "{1: 2}",
    "{a: {b: 1}}",
    "&a [*a]",
    "*a",
    "!!python/name:os.system x",
    "!!binary YQ==",
    "2020-01-01",
    "=",
    "<<",
    "~",
    "~nobody/x",
    "a\0b",
    "a\udcffb",
    "a\ud800b",
    "\x1b[31m",
    "\u2028",
    "'",
    '"',
    "- a",
    "?",
    "grpo",
    "gae",
    "coati",
    "chat",
    "none",
    "roles",
    "text",
    "4bit",
    "bf16",
    "file.py:f",
    "a.jsonl",
    '{"model": 1e999}',
    '{"model": -1}',
    '[{"path": "a"}]',
    '[{"path": "a", "weight": 1e-400}]',
    '[{"path": "a"}, 3]',
    '[{"path": null}]',
    "4294967296",
    str(2**31),
    str(2**63),
    str(10**29),
]


def outcome(argv: list[str], *places: str) -> str:
    """Parse: printed, refused or read. What is read must be possible and survive being printed and
    read again; what is said of the rest, name a place."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            config = parse_config(argv, "stage.py", "A stage.")
    except SystemExit:
        count("printed")
        assert printed.getvalue()
        return "printed"
    except UserError as error:
        count("refused")
        paragraph(str(error), "command line: ", "--config", "key ", *places)
        return "refused"
    count("read")
    _possible(config)
    text = json.dumps(plain(config), allow_nan=False)
    assert Config(**_again(Config, json.loads(text))) == config
    return "read"


def _possible(section: Any) -> None:
    """Numbers in the ranges that libraries take; text that can be written."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        for item in value if isinstance(value, list) else [value]:
            if dataclasses.is_dataclass(item):
                _possible(item)
            elif isinstance(item, str):
                item.encode()
                assert "\0" not in item
            elif isinstance(item, float):
                assert math.isfinite(item)
            elif isinstance(item, int):
                assert 0 <= item < 2**32


def _again(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `cls` out of nested dicts."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        value = values[field.name]
        if dataclasses.is_dataclass(field.type):
            value = field.type(**_again(field.type, value))  # type: ignore[operator]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            item = field.type.__args__[0]  # type: ignore[union-attr]
            value = [item(**_again(item, one)) for one in value]
        found[field.name] = value
    return found


@given(st.sampled_from(CONFIGS).flatmap(lambda file: broken(file.read_bytes())))
def test_broken_files(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Ours, with pieces cut out, doubled, exchanged and put in."""
    file = tmp_path_factory.getbasetemp() / "broken.yaml"
    file.write_bytes(content)
    assert outcome(["--config", str(file)], str(file)) in ("read", "refused")


@given(st.lists(st.tuples(st.sampled_from(LEAVES), st.sampled_from(VALUES)), max_size=4))
def test_odd_values_in_a_file(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    """Any key with any value, in dotted form and nested."""
    file = tmp_path_factory.getbasetemp() / "odd.yaml"
    text = "\n".join(f"{key}: {value}" for key, value in pairs)
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert outcome(["--config", str(file)], str(file)) in ("read", "refused")


WORDS = st.one_of(
    st.sampled_from(LEAVES).map("--{}".format),
    st.tuples(st.sampled_from(LEAVES), st.sampled_from(["", "+", ".x", "[0]"])).map(
        lambda pair: f"--{pair[0]}{pair[1]}"
    ),
    st.tuples(st.sampled_from(LEAVES), st.sampled_from(VALUES)).map("--{0[0]}={0[1]}".format),
    st.sampled_from(VALUES),
    st.sampled_from(
        ["--", "--=", "-h", "--help", "--print_config", "--config", "--overwrite", "-x"]
    ),
    st.text(max_size=8),
)


@given(st.lists(WORDS, max_size=5))
def test_odd_command_lines(words: list[str]) -> None:
    """Words in any order. Nothing but what asks for it prints."""
    asked = any(word.startswith(("-h", "--help", "--print_config")) for word in words)
    assert outcome(words) != "printed" or asked


@given(st.sampled_from(LEAVES), st.sampled_from(VALUES))
def test_one_option(key: str, value: str) -> None:
    """Each key with each value."""
    assert outcome([f"--{key}", value]) in ("read", "refused")


@given(
    st.recursive(
        st.sampled_from(VALUES),
        lambda inner: (
            st.dictionaries(
                st.sampled_from([k.rpartition(".")[2] for k in LEAVES]), inner, max_size=3
            )
            | st.lists(inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_odd_trees(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    """Mappings and lists of known names where they do not belong."""
    file = tmp_path_factory.getbasetemp() / "tree.yaml"
    file.write_bytes(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass"))
    assert outcome(["--config", str(file)], str(file)) in ("read", "refused")


def test_the_junk_reaches_every_place(tmp_path: Path) -> None:
    """Each piece of junk as a whole file, and in the place of a section: none of it is one."""
    file = tmp_path / "junk.yaml"
    for junk in JUNK:
        for content in (junk, b"sft:\n  lora: " + junk):
            file.write_bytes(content)
            assert outcome(["--config", str(file)], str(file)) == "refused", content
