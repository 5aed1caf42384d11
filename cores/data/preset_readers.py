"""How the rows of each preset are read: the replies to a prompt, and their scores.

A reader takes all rows of a source (neighbours may belong together) or, within `each`, one.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from typing import Any

from cores.data.comparisons import (
    ASKED,
    TEXT,
    Comparison,
    Job,
    MisfitError,
    Reply,
    lifted,
    need,
    number,
    objects,
)
from cores.data.sources import Row
from cores.data.transcripts import merged, part_turns
from cores.data.values import Ignored, Turn, role_of, turns_of

RATINGS = (
    ("chosen_rating", "rejected_rating"),
    ("rating_chosen", "rating_rejected"),
    ("chosen-rating", "rejected-rating"),
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
)
"""What the ratings of both sides of a pair are called."""
LABELS = ("label", "kto_tag")
"""What says whether a reply is wanted: TRL's and LLaMA-Factory's."""
TURN = "<extra_id_1>"
"""Before each further turn of a HelpSteer2 prompt, then the speaker and a line break."""

Scores = tuple[float | None, float | None]
RowReader = Callable[[Row, Job], Comparison | None]
PresetReader = Callable[[list[Row], Job], Iterable[Comparison]]


def each(read: RowReader, inside: str | None = None) -> PresetReader:
    """Of a row by itself; the columns of the object at `inside` count as its own. `read` gives None
    for a row of which nothing can be made, and counts it."""

    def all_of(rows: list[Row], job: Job) -> Iterator[Comparison]:
        for row in rows:
            one = read(lifted(row, inside) if inside else row, job)
            if one is not None:
                yield one

    return all_of


def two(prompt: str, a: str, b: str, scores: Callable[[Row], Scores]) -> RowReader:
    """Of rows with a prompt and two replies in columns, and what compares them."""

    def read(row: Row, job: Job) -> Comparison:
        texts = [need(row, key, *ASKED) for key in (a, b)]
        return Comparison(row, need(row, prompt, *ASKED), _replies(texts, scores(row), row))

    return read


def picked(key: str, first: int) -> Callable[[Row], Scores]:
    """The better of two by a column that is 0 or 1; `first` is the value that names the first."""

    def scores(row: Row) -> Scores:
        value = number(row, key)
        if value not in (0, 1):
            raise MisfitError(row, f"{key!r} is {row.columns[key]!r}, not 0 or 1")
        return (1.0, 0.0) if value == first else (0.0, 1.0)

    return scores


def several(prompt: str, key: str, text: str, score: str, sign: int) -> RowReader:
    """Of rows with a prompt and a list of replies, each with a rating (sign 1) or a rank (-1)."""

    def read(row: Row, job: Job) -> Comparison:
        items = objects(row, key)
        found = [number(item, score) for item in items]
        scores = [None if value is None else sign * value for value in found]
        texts = [need(item, text, *TEXT) for item in items]
        asked = need(row, prompt, *ASKED)
        lowest = 1.0 if sign > 0 else None
        return Comparison(row, asked, _replies(texts, scores, row), lowest=lowest)

    return read


def _replies(texts: Iterable[Any], scores: Iterable[float | None], row: Row) -> list[Reply]:
    return [Reply(text, score, row) for text, score in zip(texts, scores, strict=True)]


def helpsteer2(rows: list[Row], job: Job) -> Iterator[Comparison]:
    """Preferences: a row each. Ratings: neighbours with one prompt belong together."""
    for row in rows:
        if "response_1" in row.columns:
            strength = number(row, "preference_strength")
            texts = [need(row, key, *TEXT) for key in ("response_1", "response_2")]
            scores = (None if strength is None else 0.0, strength)
            yield Comparison(row, _turns(row), _replies(texts, scores, row), margin=True)
    rated = (row for row in rows if "response_1" not in row.columns)
    for _, group in groupby(rated, lambda row: need(row, "prompt", *TEXT)):
        told = [(need(r, "response", *TEXT), number(r, "helpfulness"), r) for r in group]
        replies = [Reply(*each) for each in told]
        first = replies[0].row
        yield Comparison(first, _turns(first), replies, lowest=0.0, margin=True)


def _turns(row: Row) -> str | list[Turn]:
    """The prompt of a HelpSteer2 row: its text, or the turns that it holds."""
    text, *further = (need(row, "prompt", *TEXT) or "").split(TURN)
    turns = [{"role": "user", "content": text.removesuffix("\n")}]
    for turn in further:
        speaker, _, content = turn.partition("\n")
        if speaker not in ("User", "Assistant"):
            raise MisfitError(row, f"'prompt' has {TURN} before {speaker!r}, not User or Assistant")
        turns.append({"role": speaker.lower(), "content": content.removesuffix("\n")})
    return turns if further else text


def ultrafeedback(row: Row, job: Job) -> Comparison | None:
    """All replies to an instruction, or the pairs that were made of them."""
    return (_completions if "completions" in row.columns else rated_pair)(row, job)


_completions = several("instruction", "completions", "response", "overall_score", 1)


def rated_pair(row: Row, job: Job) -> Comparison | None:
    """A pair with a rating of each side; sides are replies to `prompt`, or whole conversations."""
    one, other = next((names for names in RATINGS if names[0] in row.columns), RATINGS[0])
    ratings = number(row, one), number(row, other)
    if None not in ratings and (ratings[0] or 0.0) < (ratings[1] or 0.0):
        job.counts["pairs rated the other way round left out"] += 1
        return None
    sides = [need(row, side, *ASKED) for side in ("chosen", "rejected")]
    if all(isinstance(side, list) and len(side) > 1 for side in sides):
        prompt, texts, problem = _whole(row, Ignored(job.source.ignore, job.key))
        if problem is not None:
            job.counts[f"{problem}: left out"] += 1
            return None
    else:
        prompt, texts = need(row, "prompt", *ASKED), sides
    return Comparison(row, prompt, _replies(texts, ratings, row), lowest=1.0)


def _whole(row: Row, ignore: Ignored) -> tuple[list[Turn], list[str], str | None]:
    """Prompt and replies of two whole conversations, or why there are none."""
    parted = part_turns(turns_of(row, "chosen", ignore), turns_of(row, "rejected", ignore))
    if parted is None:
        return [], [], "pairs that do not differ in one last reply"
    asked = row.columns.get("prompt")
    if asked is None:
        return parted[0], list(parted[1]), None
    told = isinstance(asked, str)
    turns = [{"role": "user", "content": asked}] if told else turns_of(row, "prompt", ignore)
    prompt, problem = merged(turns, parted[0])
    return prompt, list(parted[1]), problem


def summary(row: Row, job: Job) -> Comparison:
    """The prompt is that of Stiennon et al. 2020 ; articles have no title."""
    if row.columns.get("post") is not None:
        subreddit, title, post = (need(row, key, *TEXT) for key in ("subreddit", "title", "post"))
        text = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
    else:
        text = f"Article:\n\n{need(row, 'article', str)}\n\nTL;DR:"
    texts = [need(item, "text", *TEXT) for item in objects(row, "summaries")]
    if len(texts) != 2:
        raise MisfitError(row, f"'summaries' holds {len(texts)}, not two")
    return Comparison(row, text, _replies(texts, picked("choice", 0)(row), row))


def kto(rows: list[Row], job: Job) -> Iterator[Comparison]:
    """Replies to one prompt belong together wherever they stand."""
    groups: dict[str, list[Reply]] = {}
    prompts = {}
    for row in rows:
        label = next((name for name in LABELS if name in row.columns), LABELS[0])
        wanted = number(row, label)
        if wanted not in (0, 1):
            raise MisfitError(row, f"{label!r} is {row.columns[label]!r}, not true or false")
        prompt, reply = _answered(row, job)
        before = [row.columns.get(name) for name in ("system", "history")]
        name = json.dumps([prompt, *before], sort_keys=True, default=str)
        prompts[name] = prompt
        groups.setdefault(name, []).append(Reply(reply, wanted, row))
    for name, replies in groups.items():
        yield Comparison(replies[0].row, prompts[name], replies)


def _answered(row: Row, job: Job) -> tuple[Any, Any]:
    """Prompt and reply of a demonstration in any of the usual columns."""
    for column in ("messages", "conversations"):
        if column in row.columns:
            turns = need(row, column, list)
            if not turns or role_of(turns[-1]) != "assistant":
                raise MisfitError(row, f"{column!r} does not end with a reply")
            return turns[:-1], turns[-1:]
    if "instruction" not in row.columns:
        return need(row, "prompt", *ASKED), need(row, "completion", *ASKED)
    parts = [need(row, "instruction", *TEXT), row.columns.get("input") and need(row, "input", str)]
    return job.config.template.separator.join(filter(None, parts)), need(row, "output", *TEXT)


def label_studio(row: Row, job: Job) -> Comparison:
    """The reply that more annotations selected; those that were skipped do not count."""
    votes = Counter[str]()
    for annotation in objects(row, "annotations"):
        results = [] if annotation.columns.get("was_cancelled") else objects(annotation, "result")
        for result in results:
            if result.columns.get("type") == "pairwise":
                side = need(lifted(result, "value"), "selected", str)
                if side not in ("left", "right"):
                    raise MisfitError(row, f"an annotation selects {side!r}, not left or right")
                votes[side] += 1
    scores = (float(votes["left"]), float(votes["right"])) if votes else (None, None)
    texts = [need(row, key, *TEXT) for key in ("answer1", "answer2")]
    return Comparison(row, need(row, "prompt", *ASKED), _replies(texts, scores, row))
