"""A hotel front desk: a made world whose true ("gold") reward is known.

A guest asks for one thing; the desk answers. `make_prompt` and `make_reply` draw text from the
grammar below; `gold` judges any text at all, by the table WEIGHTS, without knowing how it came
about. Training never sees the gold reward: it labels the preference pairs (pairs.py, with noise)
and judges the policies at the end.
"""

import random
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from typing import NamedTuple

WEIGHTS = {
    "helps": 2.0,  # one sentence names the asked thing and does with it what was asked
    "names": 0.5,  # the asked thing is named, but that is not done
    "wrong": -1.0,  # another thing is named
    "courtesy": 0.5,  # each kind of courtesy, once
    "rude": -1.0,  # each rude sentence, three at most
    "repeat": -0.5,  # each sentence said before
    "word": -0.05,  # each word over WORDS
    "unknown": -5.0,  # times the share of word pairs that are not the grammar's
    "empty": -4.0,  # nothing is said at all
}
WORDS = 24
"""Length in words that a reply may have for free; an ideal one takes about 16."""


@dataclass(frozen=True)
class Kind:
    """Requests of one kind: what can be asked for, how guests ask, what the desk does about it."""

    things: tuple[str, ...]
    asks: tuple[str, ...]
    answers: tuple[str, ...]
    verbs: tuple[str, ...]


KINDS = (
    Kind(
        things=("towels", "pillows", "blankets"),
        asks=(
            "Could I have more {thing}?",
            "Please send up some {thing}.",
            "There are no {thing} in the room.",
            "We need extra {thing} for the children.",
        ),
        answers=(
            "I will send the {thing} to your room right away.",
            "Housekeeping will bring the {thing} in ten minutes.",
            "I am sending more {thing} up now.",
        ),
        verbs=("send", "bring", "sending"),
    ),
    Kind(
        things=("heater", "shower", "television"),
        asks=(
            "The {thing} is broken.",
            "The {thing} in our room does not work.",
            "The {thing} makes a strange sound.",
        ),
        answers=(
            "Our engineer will repair the {thing} within the hour.",
            "I will have the {thing} fixed today.",
            "Someone is coming up to fix the {thing} now.",
        ),
        verbs=("repair", "fixed", "fix"),
    ),
    Kind(
        things=("taxi", "table", "massage"),
        asks=(
            "Could you book a {thing} for {time}?",
            "I would like a {thing} at {time}.",
            "Please arrange a {thing} for {time}.",
        ),
        answers=(
            "I will book the {thing} for you now.",
            "Your {thing} is arranged.",
            "I have booked the {thing} already.",
        ),
        verbs=("book", "arranged", "booked"),
    ),
    Kind(
        things=("suitcases", "laundry", "parcel"),
        asks=(
            "Could someone pick up my {thing}?",
            "Please collect the {thing} from my room.",
            "Who can take the {thing} down for us?",
        ),
        answers=(
            "A porter will collect the {thing} in a moment.",
            "I will carry the {thing} down myself.",
            "Someone is coming up to collect the {thing} now.",
        ),
        verbs=("collect", "carry"),
    ),
)

HELLOS = (
    "Hello, this is room {room}.",
    "Good evening, room {room} here.",
    "Hi, I am in room {room}.",
    "Room {room} speaking.",
    "I am calling from room {room}.",
)
REASONS = (
    "We had a long journey.",
    "We leave early tomorrow.",
    "It is quite urgent.",
    "Thank you.",
)
COURTESIES = {
    "greeting": ("Good evening.", "Hello and welcome.", "Good to hear from you."),
    "thanks": ("Thank you for calling.", "Thank you for telling us.", "Thanks for your patience."),
    "willing": ("Of course.", "Certainly.", "With pleasure.", "I am glad to help."),
    "wish": ("Have a lovely stay.", "Enjoy your evening.", "Please call again any time."),
}
OPENINGS = ("greeting", "thanks", "willing")
RUDE = (
    "What is it now?",
    "That is not my problem.",
    "Stop bothering me.",
    "You guests never stop complaining.",
    "I have better things to do.",
    "Do it yourself.",
)
MENTIONS = (
    "The {thing} must wait until tomorrow.",
    "Nobody has time for the {thing}.",
    "Everyone is asking about the {thing} today.",
)
VAGUE = (
    "We will look into it.",
    "Someone may come at some point.",
    "I cannot say.",
)
CHATTER = (
    "The weather has been fine this week.",
    "Our lobby was painted last spring.",
    "The hotel has stood here for ninety years.",
    "My cousin works on the third floor.",
    "The lift is next to the stairs.",
)
THINGS = {thing: kind for kind in KINDS for thing in kind.things}
_THING = re.compile(rf"\b({'|'.join(THINGS)})\b")


def make_prompt(rng: random.Random) -> str:
    """One guest's request: who calls, what is asked, and at times why."""
    thing = rng.choice(list(THINGS))
    parts = [rng.choice(HELLOS), rng.choice(THINGS[thing].asks)]
    if rng.random() < 0.5:
        parts.append(rng.choice(REASONS))
    room = 100 * rng.randint(1, 6) + rng.randint(1, 40)
    time = f"{rng.randint(6, 10)}:{rng.choice((0, 15, 30, 45)):02d}"
    return " ".join(parts).format(thing=thing, time=time, room=room)


def make_frame(rng: random.Random) -> str:
    """Manner and padding of a reply, drawn independently of each other, around a "{core}"."""
    tone = rng.choices(("polite", "plain", "rude"), (0.4, 0.25, 0.35))[0]
    parts = ["{core}"]
    if tone == "polite":
        openings = rng.sample(OPENINGS, rng.choices((0, 1, 2), (0.2, 0.6, 0.2))[0])
        parts = [rng.choice(COURTESIES[kind]) for kind in openings] + parts
        parts += [rng.choice(COURTESIES["wish"])] * (rng.random() < 0.6)
    elif tone == "rude":
        rude = rng.sample(RUDE, rng.choice((1, 2)))
        parts = [rude[0], *parts, *rude[1:]] if rng.random() < 0.7 else [*parts, *rude]
    for line in rng.sample(CHATTER, rng.choices((0, 1, 2), (0.5, 0.3, 0.2))[0]):
        parts.insert(rng.randint(1, len(parts)), line)
    if rng.random() < 0.12:
        parts += [rng.choice(parts)] * rng.randint(1, 2)
    return " ".join(parts)


def make_core(rng: random.Random, prompt: str) -> str:
    """The sentence that answers the request: rightly, wrongly or not at all."""
    ways = ("helps", "wrong_thing", "wrong_action", "mentions", "vague", "nothing")
    way = rng.choices(ways, (0.4, 0.2, 0.1, 0.1, 0.12, 0.08))[0]
    thing = asked_thing(prompt)
    kind = THINGS[thing]
    if way == "nothing":
        return rng.choice(CHATTER)
    if way == "vague":
        return rng.choice(VAGUE)
    if way == "wrong_thing":
        thing = rng.choice([other for other in THINGS if other != thing])
        kind = THINGS[thing]
    if way == "wrong_action":
        kind = rng.choice([other for other in KINDS if other is not kind])
    return rng.choice(MENTIONS if way == "mentions" else kind.answers).format(thing=thing)


def make_reply(rng: random.Random, prompt: str) -> str:
    """One reply to `prompt`, anything from ideal to hopeless."""
    return make_frame(rng).format(core=make_core(rng, prompt))


def asked_thing(prompt: str) -> str:
    """The thing that a prompt asks for. ValueError if it names none of THINGS."""
    found = _THING.search(prompt.lower())
    if found is None:
        raise ValueError(f"the prompt asks for none of {', '.join(THINGS)}: {prompt!r}")
    return found.group()


def gold(prompt: str, reply: str) -> float:
    """The true worth of a reply, from its text alone: ideal 3.5, rude about -2, garbage -5.

    Only sentences made wholly of the grammar's word pairs earn anything, so words thrown together
    do not; any that are not cost in proportion. See WEIGHTS for what counts how much.
    """
    thing = asked_thing(prompt)
    parts = [_read(part) for part in re.findall(r"[^.?!]*[.?!]|[^.?!]+$", reply.strip())]
    if not parts:
        return WEIGHTS["empty"]
    unknown = sum(part.unknown for part in parts) / sum(part.pairs for part in parts)
    repeats = len(parts) - len({part.text for part in parts})
    excess = max(0, len(reply.split()) - WORDS)
    good = [part.text for part in parts if not part.unknown]
    score = _content(thing, good) + _manner(good) + WEIGHTS["unknown"] * unknown
    return score + WEIGHTS["repeat"] * repeats + WEIGHTS["word"] * excess


def _content(asked: str, sentences: list[str]) -> float:
    """What a reply does about the thing asked for."""
    named = {thing for sentence in sentences for thing in _THING.findall(sentence)}
    helps = any(
        asked in _THING.findall(sentence) and set(THINGS[asked].verbs) & set(sentence.split())
        for sentence in sentences
    )
    score = WEIGHTS["helps"] if helps else WEIGHTS["names"] * (asked in named)
    return score + WEIGHTS["wrong"] * bool(named - {asked})


def _manner(sentences: list[str]) -> float:
    """Courtesies, each kind once, and rude sentences, three at most."""
    lines = [{_plain(line) for line in group} for group in COURTESIES.values()]
    kinds = sum(not group.isdisjoint(sentences) for group in lines)
    rude = sum(sentence in map(_plain, RUDE) for sentence in sentences)
    return WEIGHTS["courtesy"] * min(kinds, 3) + WEIGHTS["rude"] * min(rude, 3)


class _Sentence(NamedTuple):
    text: str
    pairs: int
    unknown: int


@lru_cache(maxsize=10_000)
def _read(sentence: str) -> _Sentence:
    """Plain text, number of word pairs, and how many of them are not the grammar's."""
    text = _plain(sentence)
    pairs = _pairs(text)
    return _Sentence(text, len(pairs), sum(pair not in _known_pairs() for pair in pairs))


@lru_cache(maxsize=10_000)
def _plain(sentence: str) -> str:
    """Lower-case words, numbers, and each other character by itself, one space between."""
    return " ".join(re.findall(r"[a-z]+|\d+|\S", sentence.lower()))


def _pairs(text: str) -> list[tuple[str, str]]:
    """Neighbours in a plain sentence, its start and end included; all things are alike."""
    return list(pairwise(["START", *_THING.sub("THING", text).split(), "END"]))


@cache
def _known_pairs() -> frozenset[tuple[str, str]]:
    """Every pair of neighbours that the desk's grammar can produce."""
    lines = [*RUDE, *MENTIONS, *VAGUE, *CHATTER]
    lines += [line for group in COURTESIES.values() for line in group]
    lines += [line for kind in KINDS for line in kind.answers]
    return frozenset(pair for line in lines for pair in _pairs(_plain(line.format(thing="taxi"))))
