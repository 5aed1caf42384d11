"""`--data.inspect N`: rows with trained and untrained tokens told apart, and length quantiles."""

import os
from collections.abc import Iterator
from itertools import groupby, islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.data.build import StageData, StreamedData
from cores.data.encode import IGNORED

GREEN, GREY, RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"
STREAMED = 1000
"""Rows of a stream whose lengths are told."""
QUANTILES = {"p0": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def show(data: StageData | StreamedData, tokenizer: PreTrainedTokenizerBase, n: int) -> None:
    """Print the first `n` training rows, the length quantiles of all (of a stream: of the first
    thousand), and what was left out.

    Trained tokens (in pairs: the replies) are green, others grey; where the environment has
    NO_COLOR (https://no-color.org) trained tokens stand in [brackets] instead.
    """
    colour = not os.environ.get("NO_COLOR")
    trained, given = _paint("trained", True, colour), _paint("untrained", False, colour)
    print(f"{trained} {given}")
    rows = list(islice(data.train, STREAMED if isinstance(data, StreamedData) else None))
    for number, row in enumerate(rows[:n], 1):
        for name, ids, flags in _sides(row):
            count = f", {sum(flags)} trained" if any(flags) else ""  # stage 3's are prompts
            print(f"--- row {number}{name}: {len(ids)} tokens{count}")
            print(_coloured(ids, flags, tokenizer, colour))
    print("--- lengths in tokens", *length_lines(rows), *data.report.lines(), sep="\n")


def readable(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], skip_special_tokens: bool = False
) -> str:
    """The text of `ids`, up to the last whole character.

    A length limit may fall between the bytes of a character; what is left of it would show as
    U+FFFD.
    """
    text = str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))
    return text.rstrip("\ufffd")


def length_lines(rows: list[dict[str, Any]]) -> list[str]:
    """A table: quantiles (nearest rank below) of prompts, replies and whole rows, in tokens;
    without what no row has."""
    lengths: dict[str, list[int]] = {}
    for row in rows:
        for name, ids, flags in _sides(row):
            lengths.setdefault(f"prompt{name}", []).append(len(ids) - sum(flags))
            lengths.setdefault(f"reply{name}", []).append(sum(flags))
            lengths.setdefault(f"row{name}", []).append(len(ids))
    lines = [" " * 16 + "".join(f"{name:>8}" for name in QUANTILES)]
    for name, values in lengths.items():
        if not any(values):
            continue
        values.sort()
        cells = (values[int(q * (len(values) - 1))] for q in QUANTILES.values())
        lines.append(f"{name:<16}" + "".join(f"{cell:>8}" for cell in cells))
    return lines


def _sides(row: dict[str, Any]) -> Iterator[tuple[str, list[int], list[bool]]]:
    """(name, ids, whether each is trained) of a row, twice for a pair."""
    if "chosen_ids" in row:
        for side in ("chosen", "rejected"):
            ids = row[f"{side}_ids"]
            yield f" {side}", ids, [i >= row["prompt_length"] for i in range(len(ids))]
    elif "score" in row:
        ids = row["ids"]
        yield "", ids, [i >= row["prompt_length"] for i in range(len(ids))]
    else:
        ids = row["input_ids"]
        labels = row.get("labels", [IGNORED] * len(ids))
        yield "", ids, [label != IGNORED for label in labels]


def _coloured(
    ids: list[int], flags: list[bool], tokenizer: PreTrainedTokenizerBase, colour: bool
) -> str:
    """The row's text in runs, each as what it adds to the decoding of all before it.

    Single tokens may be part of a character, and some decoders strip a space at the beginning.
    """
    parts, end, done = [], 0, ""
    for flag, run in groupby(flags):
        end += len(list(run))
        text = readable(tokenizer, ids[:end])
        parts.append(_paint(text[len(done) :].replace("\x1b", "␛"), flag, colour))
        done = text
    return "".join(parts)


def _paint(text: str, trained: bool, colour: bool) -> str:
    if colour:
        return f"{GREEN if trained else GREY}{text}{RESET}"
    return f"[{text}]" if trained else text
