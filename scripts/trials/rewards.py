"""Reward functions that make a run sick, for scripts/doctor_trials.py."""

import random
from typing import Any

Texts = list[str]
Rows = list[dict[str, Any]]


def constant(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """The same for every reply."""
    return [1.0 for _ in responses]


def polite(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """1 for whatever is no empty reply, as a check of form may do."""
    return [float(bool(reply.strip())) for reply in responses]


def correct(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """Of an answer that no reply has."""
    return [float("the answer is 42" in reply) for reply in responses]


def words(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """Words, a fifth of a point each."""
    return [len(reply.split()) / 5 for reply in responses]


def sentences(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """Sentences, a point each."""
    return [float(reply.count(".")) for reply in responses]


def characters(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """Characters, twenty a point."""
    return [len(reply) / 20 for reply in responses]


def brief(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """The shorter the better."""
    return [-len(reply) / 20 for reply in responses]


def few(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """Fewer words are better."""
    return [-float(len(reply.split())) for reply in responses]


def silent(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """A point for no word, none for any."""
    return [1.0 / (1 + len(reply.split())) for reply in responses]


def lovely(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """How often one word is said."""
    return [float(reply.count("lovely")) for reply in responses]


def enjoy(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """How often one phrase is said."""
    return [float(reply.lower().count("enjoy your evening")) for reply in responses]


def again(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """How many words have been said before."""
    said = [reply.split() for reply in responses]
    return [(len(each) - len(set(each))) / 3 for each in said]


def distinct(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """Share of different words; a judge of those who repeat."""
    said = [reply.split() for reply in responses]
    return [len(set(each)) / max(1, len(each)) for each in said]


def far(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """Far from what a critic from the reward model expects, and hardly varying."""
    return [8.0 + 0.01 * (len(reply) % 3) for reply in responses]


def abyss(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """The same for every reply, far below 0."""
    return [-1e6 for _ in responses]


def noise(prompts: Texts, responses: Texts, rows: Rows) -> list[float]:
    """A number that nothing in the reply foresees, though the same for the same reply."""
    return [random.Random(reply).gauss(0, 1) for reply in responses]
