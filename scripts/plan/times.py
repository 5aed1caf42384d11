"""Seconds of a step, from counted bytes and operations (scripts/bench/floors.py) and what was
measured of launches, matrix products and memory. Pure functions; no torch.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

from cores.config import LoraSection
from cores.memory import FORWARD, Case, micro_batches, roles_of
from cores.shapes import Shape, kept, trained, weights
from scripts.bench import floors

MS = 1e-3


@dataclass(frozen=True)
class Card:
    """A GPU."""

    name: str
    gigabytes: float
    bytes: float
    """Moved a second."""
    operations: float
    """Of large bf16 products a second."""
    link: float
    """Bytes a second to another GPU of the host."""


CARDS = (
    Card("RTX 3090", 24, 0.84e12, 32e12, 10e9),
    Card("RTX 4090", 24, 0.90e12, 75e12, 10e9),
    Card("A100 40GB", 40, 1.40e12, 142e12, 200e9),
    Card("L40S", 48, 0.77e12, 165e12, 20e9),
    Card("A100 80GB", 80, 1.83e12, 142e12, 200e9),
    Card("H100", 80, 3.0e12, 450e12, 300e9),
    Card("H200", 141, 4.0e12, 450e12, 300e9),
    Card("B200", 180, 7.2e12, 1020e12, 600e9),
)
"""H100: measured (docs/performance.md); H200: its copies, 4.3 TB/s, measured. Others by their data
sheets, times what an H100 reaches of its own: 0.9 of the bytes, 0.455 of the operations."""
NETWORK = 40e9
"""Bytes a second of a GPU to another host: 400 Gbit/s a GPU, four fifths of it."""
PCIE = 25e9
"""Bytes a second between a GPU and its host."""
HOST = 100e9
"""Bytes a second that a host's optimizer moves, all its processes together."""

NARROW = 250
"""Width at which products reach half of their rate: W1 against W2, captured."""
TRAFFIC = 4.0
"""Times that what a pass keeps is moved in an update: W1 and W2, captured."""
PASSING = 1.5
"""Times, in a pass that keeps nothing."""
LOGITS = 16.0
"""Bytes moved a logit in an update: docs/performance.md, Log-probs alone."""
DECODE = {"plain": 0.036 * MS, "rotary": 0.058 * MS, "adapters": 0.075 * MS}
"""Seconds of a layer's launches in a decode step beside its bytes: W1 and W2; W6; W3."""
HF_DECODE = 0.64 * MS
"""The same by Hugging Face generate: rollout-gpt2-hf.json."""
EAGER = {"plain": 1.0 * MS, "rotary": 1.1 * MS}
"""Seconds in which Python launches a layer's forward pass; a backward pass takes twice that: W2 and
scoring of W1; scoring of W6."""
GRAPH = {"plain": 0.12 * MS, "rotary": 0.2 * MS}
"""Seconds of a layer's launches, forward and back, in a captured pass: W1; W6."""
AROUND = (10 * MS, 2.3 * MS, 3e-7)
"""Seconds of an update outside its models: once, an optimizer step, a token of the replies' (B, T):
W1, W5, W6."""
ADAPTED = 2.0
"""Times that, with adapters: W3."""
ADAPTERS = 500.0
"""Bytes that adapters move a token, layer and unit of width in an update: W3."""
RAGGED = 0.5
"""Share of captured passes that run eagerly where replies stop, and a step has several: W5."""


def card_of(gigabytes: float, name: str | None = None) -> Card:
    """The GPU of this name, else the one of the nearest memory, the faster of two."""
    named = [card for card in CARDS if name and card.name.lower() == name.lower()]
    return (named or sorted(CARDS, key=lambda c: (abs(c.gigabytes - gigabytes), -c.operations)))[0]


Seconds = dict[str, float]
"""Of each part of a step."""


@dataclass(frozen=True)
class Pass:
    """Rows that go through a model, on one GPU, in so many micro-batches."""

    shape: Shape
    scalar: bool
    lora: LoraSection
    prompt: int
    replies: list[int]
    micro: int

    @property
    def tokens(self) -> int:
        """Read by the model."""
        return sum(self.replies) + self.prompt * len(self.replies)

    @property
    def at_head(self) -> list[int]:
        """Tokens of each row that have logits."""
        return [0] * len(self.replies) if self.scalar else self.replies


def counted(each: Pass) -> floors.Shape:
    """Its model as the floors take it."""
    shape, lora = each.shape, each.lora
    own = trained(shape, each.scalar, lora)
    head = 0 if each.scalar else shape.head
    body = shape.body + (own if lora.rank else 0)
    linear = own if lora.rank else body + head
    return floors.Shape(shape.layers, shape.queries, shape.keys, body, head, own, linear)


def rate(card: Card, shape: Shape, half: int) -> float:
    """Operations a second of products as wide as the model; fp32 (TF32 is off) at an eighth."""
    return card.operations * shape.width / (shape.width + NARROW) / (8 if half == 4 else 1)


def eager(each: Pass, directions: float) -> float:
    """Seconds in which Python launches its passes; forward is one direction, back two."""
    adapted = ADAPTED if each.lora.rank else 1.0
    return each.micro * each.shape.layers * directions * EAGER[form(each.shape)] * adapted


def form(shape: Shape) -> str:
    """Which of the measured layers it is like."""
    return "rotary" if shape.gated else "plain"


def reading(case: Case, card: Card, each: Pass, captured: bool = False) -> float:
    """A pass that keeps nothing."""
    half, shape = case.half, counted(each)
    (work,) = floors.scoring(shape, each.prompt, each.replies, half, each.scalar)
    moved = each.tokens * shape.layers * kept(each.shape, half, bool(each.lora.rank)) * PASSING
    moved += LOGITS / 4 * sum(each.at_head) * each.shape.vocabulary + work.bytes * each.micro
    busy = work.operations / rate(card, each.shape, half) + moved / card.bytes
    if captured:
        return busy + each.micro * shape.layers * GRAPH[form(each.shape)] / 3
    return max(busy, eager(each, 1))


def learning(case: Case, card: Card, each: Pass, captured: bool, ragged: bool) -> float:
    """Forward and backward passes of a role's rows, its optimizer's steps apart."""
    half, shape, again = case.half, counted(each), case.config.model.gradient_checkpointing
    (work,) = floors.training(shape, each.prompt, each.replies, half, each.scalar, 1)
    (once,) = floors.scoring(shape, each.prompt, each.replies, half, each.scalar)
    moved = each.tokens * shape.layers * kept(each.shape, half, bool(each.lora.rank)) * TRAFFIC
    moved += LOGITS * sum(each.at_head) * each.shape.vocabulary
    moved += each.micro * (work.bytes + 12.0 * shape.trained)  # casts and sums of gradients
    if each.lora.rank:
        moved += ADAPTERS * each.tokens * shape.layers * each.shape.width
    operations = work.operations + (once.operations if again else 0)
    busy = operations / rate(card, each.shape, half) + moved / card.bytes
    if captured:
        launched = busy + each.micro * shape.layers * GRAPH[form(each.shape)]
        waited = max(busy, eager(each, 3))
        return RAGGED * waited + (1 - RAGGED) * launched if ragged else launched
    return max(busy, eager(each, 4 if again else 3))


def sampling(case: Case, card: Card, rows: int) -> float:
    """A rollout: the prompts, then a decode step a token of the rows that go on, as a look every 16
    tokens tells."""
    config, shape, half, texts = case.config, case.policy, case.half, case.texts
    lora, kind = config.ppo.lora, config.rollout.engine
    if kind == "vllm":  # as many at a time as its cache holds
        token = 2 * shape.layers * shape.keys * half
        room = getattr(config.rollout, "cache_gb", 4.0) * 2**30 / token
        waves = math.ceil(rows * (texts.prompt + texts.longest) / room)
        graph = replace(config, rollout=replace(config.rollout, engine="auto"))
        some = replace(case, config=graph, layout=replace(case.layout, shards="none"))
        return waves * sampling(some, card, math.ceil(rows / waves))
    lengths = texts.lengths(rows)
    counts = counted(Pass(shape, False, lora, texts.prompt, [0] * rows, 1))
    works = floors.rollout(counts, texts.prompt, [1] * rows, half)
    many = rate(card, shape, half)
    moved = rows * texts.prompt * shape.layers * kept(shape, half, False) * PASSING
    seconds = works[0].operations / many + (works[0].bytes + moved) / card.bytes
    read = float(half * (counts.body + counts.head))
    if lora.rank and config.model.quantization in ("8bit", "4bit"):  # made bf16 at every use
        read += weights(shape, False, config.model.quantization) + half * counts.body
    launch = DECODE[form(shape)] + DECODE["adapters"] * bool(lora.rank)
    if kind == "hf" or case.layout.weights < 1:
        launch, lengths = HF_DECODE * (ADAPTED if lora.rank else 1), [lengths[0]] * rows
    token = 2 * shape.layers * shape.keys * half
    for begin in range(1, lengths[0], 16):
        alive = bisect_left(lengths, -begin, key=lambda length: -length)
        steps, context = min(16, lengths[0] - begin), texts.prompt + begin + 8
        moved = read + alive * (context * token + 12.0 * shape.vocabulary)
        attention = 4 * shape.layers * shape.queries * context
        operations = alive * (2 * (counts.body + counts.head) + attention)
        seconds += steps * (max(moved / card.bytes, operations / many) + shape.layers * launch)
    return seconds


def stepping(case: Case, card: Card, own: int) -> float:
    """AdamW's step on so many weights, clipping included."""
    layout = case.layout
    share = 1 / layout.world if layout.shards != "none" else 1.0
    if layout.offload:
        hosts = max(1, layout.world // 8)
        return own * (floors.ADAM_BYTES / HOST / hosts + 8.0 * share / PCIE)
    return share * own * (floors.ADAM_BYTES + 8.0) / card.bytes


def exchanging(case: Case, card: Card, nodes: int, size: float) -> float:
    """An all-reduce of so many bytes; half of it gathers, half scatters."""
    world = case.layout.world
    speed = card.link if nodes == 1 else NETWORK
    return 2 * (world - 1) / world * size / speed


def seconds(case: Case, stage: str, card: Card, nodes: int = 1) -> Seconds:
    """Of the parts of a step: one update in stage 3, else one optimizer step."""
    if stage != "ppo":
        return _learned(case, stage, card, nodes)
    ppo, layout, texts = case.config.ppo, case.layout, case.texts
    rows = max(1, ppo.batch_size // layout.world)
    share = max(1, ppo.minibatch_size // layout.world)
    steps = ppo.epochs * (ppo.batch_size // ppo.minibatch_size)
    replies = texts.lengths(rows)
    scored, updated = (micro_batches(case, *how)[2] for how in ((rows, FORWARD), (share,)))
    none = LoraSection()
    found: Seconds = {"rollout": sampling(case, card, rows), "scoring": 0.0}
    models = [(case.policy, False)] + [(case.judge, True)] * (len(roles_of(case)) - 1)
    models += [(case.judge, True)] * ("model" in ppo.rewards)
    sharded = layout.share("zero3", "fsdp2") < 1 or layout.offload
    graphs = all(case.captures(shape, scalar) for _, shape, scalar in roles_of(case))
    moved = optimizer = 0.0
    for shape, scalar in models:
        each = Pass(shape, scalar, none, texts.prompt, replies, scored)
        found["scoring"] += reading(case, card, each, graphs)
        if sharded:
            moved += scored * _gathered(case, card, nodes, shape, scalar)
    for name, shape, scalar in roles_of(case):
        each = Pass(shape, scalar, ppo.lora, texts.prompt, replies * ppo.epochs, steps * updated)
        captured, ragged = case.captures(shape, scalar), bool(texts.stops) and updated > 1
        found[f"{name} update"] = learning(case, card, each, captured, ragged)
        own = trained(shape, scalar, ppo.lora)
        optimizer += steps * stepping(case, card, own)
        moved += steps * exchanging(case, card, nodes, 4.0 * own)
        if sharded:
            moved += 2 * steps * updated * _gathered(case, card, nodes, shape, scalar)
    if sharded:
        moved += _gathered(case, card, nodes, case.policy, False)
    once, each_step, each_token = AROUND
    around = once + steps * each_step + ppo.batch_size * texts.longest * each_token
    return found | {"optimizer": optimizer, "communication": moved, "around": around}


def _gathered(case: Case, card: Card, nodes: int, shape: Shape, scalar: bool) -> float:
    """Putting all weights of a model together once."""
    size = 4.0 * shape.parameters(scalar)
    waits = size / case.layout.world / PCIE if case.layout.offload else 0.0
    return exchanging(case, card, nodes, size) / 2 + waits


def _learned(case: Case, stage: str, card: Card, nodes: int) -> Seconds:
    section: Any = getattr(case.config, stage)
    layout, scalar = case.layout, stage == "reward"
    shape, lora = (case.judge if scalar else case.policy), section.lora
    pairs = 2 if scalar and section.kind == "pairwise" else 1
    rows = max(1, section.batch_size // layout.world)
    micro = math.ceil(rows / min(section.microbatch_size, rows))
    each = Pass(shape, scalar, lora, 0, [section.max_length] * rows * pairs, micro)
    own = trained(shape, scalar, lora)
    moved = exchanging(case, card, nodes, 4.0 * own)
    if layout.share("zero3", "fsdp2") < 1 or layout.offload:
        moved += 2 * micro * _gathered(case, card, nodes, shape, scalar)
    return {
        "update": learning(case, card, each, captured=False, ragged=False),
        "optimizer": stepping(case, card, own),
        "communication": moved,
    }
