"""Pairs of replies to one prompt for the reward model, labelled by the gold reward with noise.

Half of what a policy can say is not in the grammar, and an optimiser looks for just that. So some
replies in the pairs are spoiled in the ways in which policies go wrong: courtesies strung together,
sentences spliced, an end cut off. A reward model that never saw such text likes it.
"""

import math
import random

from world import COURTESIES, gold, make_core, make_frame

SPOILED = 0.2
"""Share of pairs that have a spoiled side."""


def make_pair(rng: random.Random, prompt: str) -> tuple[str, str]:
    """Two replies of different worth that differ in manner, in what they do, or in both."""
    frame, core = make_frame(rng), make_core(rng, prompt)
    first = frame.format(core=core)
    while True:
        differ = rng.choices(("manner", "content", "both"), (0.25, 0.5, 0.25))[0]
        other_frame = frame if differ == "content" else make_frame(rng)
        other_core = core if differ == "manner" else make_core(rng, prompt)
        second = other_frame.format(core=other_core)
        if rng.random() < SPOILED:
            second = spoil(rng, rng.choice((first, second)))
        if gold(prompt, first) != gold(prompt, second):
            return first, second


def spoil(rng: random.Random, reply: str) -> str:
    """`reply` gone wrong in one of three ways."""
    words = reply.split()
    way = rng.choice(("gush", "splice", "cut"))
    if way == "gush":
        lines = [line for group in COURTESIES.values() for line in group]
        gush = rng.choices(lines, k=rng.randint(2, 8))
        return " ".join(rng.choice((gush, [*gush, reply], [reply, *gush])))
    if way == "splice":
        start, length = rng.randrange(len(words)), rng.randint(1, 4)
        moved = words[start : start + length]
        place = rng.randrange(len(words))
        rest = words[:start] + words[start + length :]
        return " ".join([*rest[:place], *moved, *rest[place:]])
    return " ".join(words[: rng.randint(1, len(words))])


def prefers(rng: random.Random, prompt: str, first: str, second: str) -> bool:
    """Whether a noisy judge prefers `first`: Bradley-Terry on twice the gold difference."""
    difference = 2 * (gold(prompt, first) - gold(prompt, second))
    return rng.random() < 1 / (1 + math.exp(-difference))
