"""Curves of a stage, thinned, with 95% intervals where rows tell a spread; replies side by side,
the words marked that changed."""

import math
import re
from difflib import SequenceMatcher
from typing import Any

from cores.report.doctor import Record, Row

POINTS = 500
"""Of a curve; where there are more rows, a point is the mean of some."""
BINS = 24
Z95 = 1.96


def curves(record: Record) -> dict[str, Any]:
    """`x` (steps), `series`, `half` (half-widths of some), `rows` a point: values or None each.

    Intervals are normal approximations: of a mean over the replies or pairs of a row, which are
    taken for independent.
    """
    before = [{"step": 0}, *record.rows]
    rows = [
        {**row, **_halves(record, row, then)}
        for row, then in zip(record.rows, before, strict=False)
    ]
    size = max(1, math.ceil(len(rows) / POINTS))
    points = [_point(rows[i : i + size]) for i in range(0, len(rows), size)]
    names = list(dict.fromkeys(key for point in points for key in point))
    series = {n: [point.get(n) for point in points] for n in names if n != "step"}
    half = {n.removesuffix("_half"): series.pop(n) for n in list(series) if n.endswith("_half")}
    return {"x": [p["step"] for p in points], "series": series, "half": half, "rows": size}


def _halves(record: Record, row: Row, before: Row) -> Row:
    """Half-widths of a row's means."""
    section = record.config.get(record.name) or {}
    size = section.get("batch_size") or 0
    if record.name == "ppo":
        spreads = {"score": row.get("score_std"), "kl": row.get("kl_std")}
        count = size
    else:
        right = row.get("accuracy")
        spreads = {"accuracy": None if right is None else math.sqrt(right * (1 - right))}
        count = size * (row.get("step", 0) - before.get("step", 0))
    return {
        f"{name}_half": Z95 * spread / math.sqrt(count)
        for name, spread in spreads.items()
        if spread is not None and count > 0
    }


def _point(rows: list[Row]) -> Row:
    """The mean of some rows, at the last one's step."""
    point: Row = {"step": rows[-1].get("step", 0)}
    for name in dict.fromkeys(key for row in rows for key in row if key != "step"):
        values = [row[name] for row in rows if name in row]
        shrink = math.sqrt(len(values)) if name.endswith("_half") else 1
        point[name] = float(f"{sum(values) / len(values) / shrink:.4g}")
    return point


def histogram(rows: list[Row]) -> dict[str, list[float]] | None:
    """How many held-out replies score what, before and after: `x` (middles), `before`, `after`."""
    found = {
        side: [row[side]["score"] for row in rows if isinstance(row.get(side), dict)]
        for side in ("before", "after")
    }
    both = [x for scores in found.values() for x in scores]
    if not both or max(both) <= min(both):
        return None
    low, width = min(both), (max(both) - min(both)) / BINS
    result = {"x": [round(low + (i + 0.5) * width, 4) for i in range(BINS)]}
    for side, scores in found.items():
        counts = [0.0] * BINS
        for score in scores:
            counts[min(BINS - 1, int((score - low) / width))] += 1
        result[side] = counts
    return result


WORDS = re.compile(r"[\u3040-\u9fff\uf900-\ufaff]|[^\s\u3040-\u9fff\uf900-\ufaff]+\s*|\s+")
"""Words with the blanks behind them; of scripts without blanks the characters."""
COMPARED = 300
"""Words of a reply that are compared; the rest is one piece."""
LONGEST = 2000
"""Characters shown of a text."""
BUDGET = 500_000
"""Bytes of all texts, so that the page stays small."""

Pieces = list[list[Any]]
"""[text, whether it changed] each."""


def pairs(rows: list[Row]) -> list[Row]:
    """Of held_out_samples.jsonl: prompt, and of before and after pieces, score and KL; the first
    rows that fit the budget."""
    found, used = [], 0
    for row in rows:
        before, after = row.get("before") or {}, row.get("after") or {}
        texts = [_cut(side.get("text", "")) for side in (before, after)]
        prompt = _cut(row.get("prompt", ""))
        used += len("".join([prompt, *texts]).encode("utf-8", "replace"))
        if used > BUDGET:
            break
        told = [
            {"pieces": pieces, "score": side.get("score"), "kl": side.get("kl")}
            for side, pieces in zip((before, after), marked(*texts), strict=True)
        ]
        found.append({"prompt": prompt, "before": told[0], "after": told[1]})
    return found


def rollouts(rows: list[Row]) -> list[Row]:
    """The newest of samples.jsonl that fit the budget, newest first."""
    found, used = [], 0
    for row in reversed(rows):
        told = {name: _cut(row.get(name, "")) for name in ("prompt", "reply")}
        used += len("".join(told.values()).encode("utf-8", "replace"))
        if used > BUDGET // 5:
            break
        found.append({**told, "update": row.get("update"), "score": row.get("score")})
    return found


def marked(before: str, after: str) -> tuple[Pieces, Pieces]:
    """The pieces of both, in order; joined they are the texts."""
    a, b = WORDS.findall(before), WORDS.findall(after)
    rest = ["".join(words[COMPARED:]) for words in (a, b)]
    a, b = a[:COMPARED], b[:COMPARED]
    sides: tuple[Pieces, Pieces] = ([], [])
    for kind, a1, a2, b1, b2 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for side, words in zip(sides, (a[a1:a2], b[b1:b2]), strict=True):
            if words:
                side.append(["".join(words), int(kind != "equal")])
    for side, text in zip(sides, rest, strict=True):
        if text:
            side.append([text, int(rest[0] != rest[1])])
    return sides


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
