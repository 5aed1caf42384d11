"""`--data.inspect N`: rows with trained and untrained tokens told apart, and length quantiles;
`--data.inspect_json FILE`: the rows for programs."""

import json
import os
import re
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.config.data import DataSection
from cores.data.build import StageData
from cores.data.encode import IGNORED
from cores.data.images import ImageTokens
from cores.data.stream import StreamedData
from cores.errors import UserError

GREEN, GREY, RESET = "\x1b[32m", "\x1b[90m", "\x1b[0m"
STREAMED = 1000
"""Rows of a stream whose lengths are told."""
QUANTILES = {"p0": 0.0, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


def show(
    data: StageData | StreamedData,
    tokenizer: PreTrainedTokenizerBase,
    section: DataSection,
    images: ImageTokens | None = None,
) -> None:
    """What the section asks for: its first `inspect` training rows, the length quantiles of all (of
    a stream: of the first thousand) and what was left out, printed; its rows in `inspect_json`.

    Trained tokens (in pairs: the replies) are green, others grey; where the environment has
    NO_COLOR (https://no-color.org) trained tokens stand in [brackets] instead.
    """
    rows = list(islice(data.train, STREAMED if isinstance(data, StreamedData) else None))
    if section.inspect_json is not None:
        write(rows, data.test, tokenizer, Path(section.inspect_json), images)
    if not section.inspect:
        return print(*data.report.lines(), sep="\n")
    colour = not os.environ.get("NO_COLOR")
    trained, given = _paint("trained", True, colour), _paint("untrained", False, colour)
    print(f"{trained} {given}")
    for number, row in enumerate(rows[: section.inspect], 1):
        for name, ids, flags in _sides(row):
            count = f", {sum(flags)} trained" if any(flags) else ""  # stage 3's are prompts
            print(f"--- row {number}{name}: {len(ids)} tokens{count}")
            parts = segments(ids, flags, tokenizer)
            print("".join(_paint(text.replace("\x1b", "␛"), flag, colour) for text, flag in parts))
    print("--- lengths in tokens", *length_lines(rows), *data.report.lines(), sep="\n")


def write(
    train: list[dict[str, Any]],
    test: list[dict[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    file: Path,
    images: ImageTokens | None = None,
) -> None:
    """A line a row, training rows first, then held-out rows with `"held_out": true`: `ids`,
    `labels` (-100 where untrained) and `segments`, each `[text, trained]`; of a pair these for
    `chosen` and `rejected`; `images`, the files; `score` of a rating, and its `class` among the
    bins, from 0; `encoder`, the text that an encoder reads, beside which they are the reply's. An
    image of several tokens is written as <IMG>. UserError for a file that cannot be written."""
    lines = [_line(row, tokenizer) for row in train]
    lines += [_line(row, tokenizer) | {"held_out": True} for row in test]
    if images is not None and images.count > 1:
        token = re.compile(f"(?:{re.escape(images.token)})+")
        sides = (line.get(side, line) for line in lines for side in ("chosen", "rejected"))
        for side in sides:
            side["segments"] = [(token.sub("<IMG>", text), flag) for text, flag in side["segments"]]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"data.inspect_json: {file} cannot be written ({error.strerror or error}); name "
            "another file."
        ) from error


def _line(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    if "encoder_ids" in row:
        encoder = readable(tokenizer, row["encoder_ids"])
        reply = {"input_ids": row["labels"], "labels": row["labels"]}
        return {"encoder": encoder, **_line(reply, tokenizer)}
    sides = {
        name.strip(): {
            "ids": ids,
            "labels": [i if flag else IGNORED for i, flag in zip(ids, flags, strict=True)],
            "segments": segments(ids, flags, tokenizer),
        }
        for name, ids, flags in _sides(row)
    }
    beside = {name: row[name] for name in ("images", "score", "class") if name in row}
    return sides.get("", sides) | beside


def segments(
    ids: list[int], flags: list[bool], tokenizer: PreTrainedTokenizerBase
) -> list[tuple[str, bool]]:
    """The row's text in runs of one flag, each as what it adds to the decoding of all before it.

    Single tokens may be part of a character, and some decoders strip a space at the beginning.
    """
    parts, end, done = [], 0, ""
    for flag, run in groupby(flags):
        end += len(list(run))
        text = readable(tokenizer, ids[:end])
        parts.append((text[len(done) :], flag))
        done = text
    return parts


def readable(
    tokenizer: PreTrainedTokenizerBase, ids: list[int], skip_special_tokens: bool = False
) -> str:
    """The text of `ids`, up to the last whole character.

    A length limit may fall between the bytes of a character; what is left of it would show as
    U+FFFD, and with some tokenizers so would all bytes before it.
    """
    for cut in range(min(4, len(ids) + 1)):
        shown = ids[: len(ids) - cut]
        text = str(tokenizer.decode(shown, skip_special_tokens=skip_special_tokens))
        if not text.endswith("\ufffd"):
            break
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
    judged = {" chosen": "chosen_ids", " rejected": "rejected_ids", "": "ids"}
    for name, ids in ((name, row[key]) for name, key in judged.items() if key in row):
        yield name, ids, [i >= row["prompt_length"] for i in range(len(ids))]
    if "encoder_ids" in row:
        yield " encoder", row["encoder_ids"], [False] * len(row["encoder_ids"])
        yield " reply", row["labels"], [True] * len(row["labels"])
    elif "input_ids" in row:
        ids = row["input_ids"]
        labels = row.get("labels", [IGNORED] * len(ids))
        yield "", ids, [label != IGNORED for label in labels]


def _paint(text: str, trained: bool, colour: bool) -> str:
    if colour:
        return f"{GREEN if trained else GREY}{text}{RESET}"
    return f"[{text}]" if trained else text
