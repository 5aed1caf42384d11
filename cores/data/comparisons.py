"""Replies to one prompt with their scores, and what each stage takes of them.

Every preset of `format` gives these (cores/data/presets.py); the rules are here, one for all:
stage 1 takes the best reply, all of them where several are equally good; stage 2 takes every two
replies of unequal score as a pair (Ouyang et al. 2022, section 3.5), or each reply with its score;
stage 3 takes the prompt.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from cores.config.data import OneSource
from cores.config.schema import Config
from cores.data.formats import Stage
from cores.data.sources import Row
from cores.data.values import short

TEXT = (str, type(None))
"""null is empty, as everywhere."""
ASKED = (str, list, type(None))
"""A prompt, or a reply: text or turns."""


class MisfitError(Exception):
    """A row that is not of the form that its preset names; becomes a UserError with the form."""

    def __init__(self, row: Row, problem: str) -> None:
        super().__init__(f"{row.where}: {problem}")


@dataclass(frozen=True)
class Reply:
    """One of the replies to a prompt."""

    text: Any
    """Text, or a list of the one turn."""
    score: float | None
    """Higher is better, comparable with the others to this prompt alone. None: nobody judged it."""
    row: Row
    """Where it stands."""


@dataclass(frozen=True)
class Comparison:
    """A prompt and its replies."""

    row: Row
    """Where the prompt stands."""
    prompt: Any
    """Text or turns."""
    replies: list[Reply]
    lowest: float | None = None
    """Where each score is a rating of its reply by itself, comparable over prompts: the lowest
    that there is. None: scores compare the replies to this prompt alone."""
    margin: bool = False
    """What two scores differ by is what the better reply has to lead by."""


@dataclass(frozen=True)
class Job:
    """What a preset works for."""

    stage: Stage
    config: Config
    source: OneSource
    key: str
    """The dotted key of the source's section."""
    counts: Counter[str] = field(default_factory=Counter)
    """What was read, made and left out, in words for the report."""


def need(row: Row, key: str, *kinds: type) -> Any:
    """The value at `key`; MisfitError if it is missing or of none of these types."""
    if key not in row.columns:
        raise MisfitError(row, f"{key!r} is missing (found: {', '.join(row.columns) or 'nothing'})")
    value = row.columns[key]
    if not isinstance(value, kinds):
        raise MisfitError(row, f"{key!r} holds {short(value)}")
    return value


def objects(row: Row, key: str) -> list[Row]:
    """The objects of the list at `key`, each as a row that knows where it stands."""
    items = need(row, key, list)
    for item in items:
        if not isinstance(item, dict):
            raise MisfitError(row, f"{key!r} must be a list of objects, but holds {short(item)}")
    return [Row(f"{row.where}, item {n} of {key!r}", item) for n, item in enumerate(items, 1)]


def number(row: Row, key: str, missing: bool = False) -> float | None:
    """A score; null, an empty text, and with `missing` no column are None. True is 1. Texts are
    read, as CSV holds them."""
    if missing and key not in row.columns:
        return None
    value = need(row, key, int, float, *TEXT)
    if value is None or value == "":
        return None
    said = {"true": 1.0, "false": 0.0}.get(str(value).lower())
    try:
        score = float(value) if said is None else said
    except (ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise MisfitError(row, f"{key!r} must be a number, but holds {short(value)}")
    return score


def lifted(row: Row, key: str) -> Row:
    """The row with the columns of the object at `key` beside its own."""
    inner = need(row, key, dict)
    return Row(row.where, {k: v for k, v in row.columns.items() if k != key} | inner)


def rows_of(found: Iterable[Comparison], uses: str, least: float, job: Job) -> list[Row]:
    """The rows that the stage reads, in standard columns beside the source's own but those of
    `uses`. Stage 1 takes no reply whose score is below `least`. Counted in `job.counts`."""
    make = {"sft": _best, "ppo": _prompt}.get(job.stage, _pairs)
    if job.stage == "reward" and job.config.reward.kind != "pairwise":
        make = _scored

    def made(row: Row, columns: dict[str, Any]) -> Row:
        rest = {k: v for k, v in row.columns.items() if k not in uses.split()}
        # Reward functions of stage 3 may read any column, so it keeps them all.
        return Row(row.where, {**(row.columns if job.stage == "ppo" else rest), **columns})

    return [made(*each) for one in found for each in make(one, least, job)]


Made = Iterator[tuple[Row, dict[str, Any]]]


def _best(one: Comparison, least: float, job: Job) -> Made:
    scores = [reply.score for reply in one.replies if reply.score is not None]
    best = max([*scores, least])
    for reply in one.replies:
        if reply.score is not None and reply.score >= best:
            job.counts["replies taken"] += 1
            yield reply.row, {"prompt": one.prompt, "completion": reply.text}
        else:
            job.counts["worse replies left out"] += 1


def _pairs(one: Comparison, least: float, job: Job) -> Made:
    judged = [reply for reply in one.replies if reply.score is not None]
    job.counts["replies without a score left out"] += len(one.replies) - len(judged)
    job.counts["prompts without two scored replies left out"] += len(judged) < 2
    for a, b in combinations(judged, 2):
        lead = (a.score or 0.0) - (b.score or 0.0)
        if not lead:
            job.counts["ties left out"] += 1
            continue
        chosen, rejected = (a, b) if lead > 0 else (b, a)
        job.counts["pairs made"] += 1
        margin = {"margin": abs(lead)} if one.margin else {}
        pair = {"prompt": one.prompt, "chosen": chosen.text, "rejected": rejected.text}
        yield one.row, pair | margin


def _scored(one: Comparison, least: float, job: Job) -> Made:
    if one.lowest is None:
        raise MisfitError(one.row, "replies are compared there, and none has a score of its own")
    # Bins are ratings from 1 up.
    shift = 1 - one.lowest if job.config.reward.kind == "binned" else 0.0
    for reply in one.replies:
        if reply.score is None:
            job.counts["replies without a score left out"] += 1
            continue
        job.counts["scored replies taken"] += 1
        score = reply.score + shift
        yield reply.row, {"prompt": one.prompt, "completion": reply.text, "score": score}


def _prompt(one: Comparison, least: float, job: Job) -> Made:
    job.counts["prompts taken"] += 1
    yield one.row, {"prompt": one.prompt}
