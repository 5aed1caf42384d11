"""Replies side by side, the words marked that changed."""

import re
from difflib import SequenceMatcher
from typing import Any

from cores.report.record import Row

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
        told: Row = {"prompt": prompt}
        for name, side, pieces in zip(
            ("before", "after"), (before, after), marked(*texts), strict=True
        ):
            told[name] = {"pieces": pieces, "score": side.get("score"), "kl": side.get("kl")}
        found.append(told)
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
