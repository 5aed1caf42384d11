"""The one model of memory: bytes that each role of a stage holds on a GPU, by phase, counted from
the configuration and the numbers of config.json (docs/scaling.md). Pure functions; no torch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cores.config import Config, LoraSection
from cores.config.ppo import WITH_CRITIC
from cores.shapes import Shape, Texts, kept, passing, trained, weights

CHUNK = 2**26
"""Logits that exist at a time (cores/models/actor.py)."""
CAPTURED, WORK = 500_000_000, 3e12
"""Parameters, and those times tokens, of passes captured unasked (cores/ppo/passes.py)."""
FORWARD = 4
"""Rows of a pass that keeps nothing, to one of an update (cores/ppo/score.py)."""
PREFILL, KEPT = 32768, 0.05
"""Prompt tokens in a pass; share of a GPU's memory up to which a rollout's buffers stay
(cores/rollout/graph/engine.py)."""
POOL = 1.15
"""Measured (W1, W2 captured): bytes of a pool of captured passes for each that they hold."""
SUMMED = 2**25
"""Gradients that ranks add up at a time (cores/sharding/whole.py)."""
BUCKET = 5e8
"""Numbers in a bucket of DeepSpeed's; two are in use."""
MOMENTS = {"adamw": 8.0, "lion": 4.0, "adafactor": 0.02, "paged_adamw_8bit": 2.0}
"""Bytes of an optimizer's state a trained weight."""


class Held(NamedTuple):
    """Something that lies in memory."""

    role: str
    what: str
    bytes: float


Phases = dict[str, list[Held]]
"""What lies there in each phase of a step."""


@dataclass(frozen=True)
class Layout:
    """How a run lies on its GPUs."""

    world: int = 1
    """Processes, a GPU each."""
    shards: str = "none"
    """none (one process, DDP), zero1, zero2, zero3, fsdp2."""
    offload: bool = False
    """Whether sharded weights and optimizer wait in the machine's memory."""
    card: float = 80e9
    """Bytes of a GPU."""

    def share(self, *kinds: str) -> float:
        """Of what is sharded under these kinds, the part that a GPU holds."""
        return 1 / self.world if self.shards in kinds else 1.0

    @property
    def weights(self) -> float:
        """Share of the weights on a GPU; below, of gradients and of the optimizer's states."""
        return 0.0 if self.offload else self.share("zero3", "fsdp2")

    @property
    def gradients(self) -> float:
        return self.share("zero2", "zero3", "fsdp2")

    @property
    def states(self) -> float:
        return 0.0 if self.offload else self.share("zero1", "zero2", "zero3", "fsdp2")


@dataclass(frozen=True)
class Case:
    """A stage's run: configuration, models, GPUs and rows."""

    config: Config
    policy: Shape
    """Of stage 1's model, actor and reference."""
    judge: Shape
    """Of reward model and critic."""
    layout: Layout
    texts: Texts

    @property
    def half(self) -> int:
        """Bytes of a number that is computed with."""
        return 4 if self.config.model.precision == "fp32" else 2

    @property
    def shares_base(self) -> bool:
        """Whether actor, critic, reward model and reference are adapters of one base."""
        config = self.config
        able = config.ppo.lora.rank and config.reward.lora.rank and self.layout.shards == "none"
        lone = config.reward.path is None and config.reward.base is None
        return bool(able and lone and config.ppo.lora.share_base != "false")

    def captures(self, shape: Shape, scalar: bool) -> bool:
        """Whether a role's passes are CUDA graphs."""
        ppo, model = self.config.ppo, self.config.model
        size = shape.parameters(scalar)
        small = size <= CAPTURED and size * ppo.pass_tokens <= WORK
        small &= ppo.passes in ("auto", "compiled")
        able = self.layout.shards == "none"
        able &= not model.gradient_checkpointing and model.quantization not in ("8bit", "4bit")
        return able and (small or ppo.passes == "captured") and (scalar or not ppo.ptx_coef)


def logits(shape: Shape, tokens: float, half: int) -> float:
    """Bytes of what is made of logits at a time, with their gradient."""
    return 3.0 * half * min(tokens * shape.vocabulary, CHUNK)


def activations(case: Case, shape: Shape, tokens: float, lora: bool) -> tuple[float, float]:
    """Bytes kept for the backward pass of so many tokens, and those of one layer."""
    layer = tokens * kept(shape, case.half, lora)
    ends = 12.0 * tokens * shape.width  # embeddings, the last norm and what it says
    if case.config.model.gradient_checkpointing:
        return ends + tokens * 4.0 * shape.width * shape.layers, layer
    return ends + layer * shape.layers, layer


def copies(case: Case, shape: Shape, scalar: bool, lora: LoraSection, how: str) -> float:
    """Bytes of weights that autocast has rounded, and keeps for the backward pass."""
    if case.half == 4:
        return 0.0
    rounded = 0 if lora.rank and how != "none" else shape.body + (0 if scalar else shape.head)
    return 2.0 * (rounded + (trained(shape, scalar, lora) if lora.rank else 0))


def owned(
    case: Case, role: str, shape: Shape, scalar: bool, lora: LoraSection, optimizer: str = "adamw"
) -> list[Held]:
    """What a trained role holds all the time."""
    layout = case.layout
    own = trained(shape, scalar, lora)
    held = weights(shape, scalar, case.config.model.quantization if lora.rank else "none")
    base = 0.0 if role == "critic" and case.shares_base else held
    found = [Held(role, "weights", (base + (4.0 * own if lora.rank else 0)) * layout.weights)]
    found.append(Held(role, "optimizer", MOMENTS[optimizer] * own * layout.states))
    if layout.shards.startswith("zero"):  # DeepSpeed's own fp32 copy of what it steps
        found.append(Held(role, "optimizer", 4.0 * own * layout.states))
        found.append(Held(role, "buckets", 8.0 * min(BUCKET, own)))
    elif layout.shards == "none" and layout.world > 1:  # DDP's; stage 3's are made a few at a time
        found.append(Held(role, "buckets", 4.0 * (own if role == "model" else min(SUMMED, own))))
    return found


def update(
    case: Case, role: str, shape: Shape, scalar: bool, lora: LoraSection, tokens: float,
    read: float, passes: int,
) -> list[Held]:  # fmt: skip
    """What a micro-batch of so many tokens holds beside, at its larger end: where the backward pass
    begins, or where it ends. `read`: bytes of what is made of logits."""
    layout, own = case.layout, trained(shape, scalar, lora)
    how = case.config.model.quantization if lora.rank else "none"
    acts, layer = activations(case, shape, tokens, bool(lora.rank))
    rounded = copies(case, shape, scalar, lora, how)
    whole = 4.0 * own * layout.gradients
    first = 0.0 if scalar or lora.rank else 6.0 * shape.head  # the head's, in both types
    again = case.config.model.gradient_checkpointing
    begins = [
        Held(role, "activations", acts),
        Held(role, "rounded weights", rounded),
        Held(role, "logits", read),
        Held(role, "gradients", whole if passes > 1 else min(whole + first / 3, first)),
    ]
    ends = [
        Held(role, "activations", layer),
        Held(role, "rounded weights", 0.0 if again else rounded),
        Held(role, "gradients", whole),
    ]
    found = max(begins, ends, key=total)
    if layout.weights < 1:  # two layers, or the head, are whole at a time
        found.append(Held(role, "gathered", 4.0 * max(2 * shape.layer, shape.head)))
    return found


def total(held: list[Held]) -> float:
    """Bytes of all."""
    return sum(each.bytes for each in held)


def peak(phases: Phases) -> tuple[str, float]:
    """The phase that needs most, and its bytes."""
    return max(((name, total(held)) for name, held in phases.items()), key=lambda x: x[1])


def learning(case: Case, stage: str) -> Phases:
    """Stages 1 and 2: what is held throughout, and a micro-batch of rows of `max_length`."""
    section: Any = getattr(case.config, stage)
    scalar = stage == "reward"
    shape, lora = (case.judge if scalar else case.policy), section.lora
    share = max(1, section.batch_size // case.layout.world)
    rows = min(section.microbatch_size, share)
    pairs = 2 if scalar and section.kind == "pairwise" else 1
    tokens = float(rows * pairs * section.max_length)
    # transformers hands logits on in fp32 and the loss makes three more tensors of them.
    read = 0.0 if scalar else (case.half + 12.0) * tokens * shape.vocabulary
    if scalar and section.freeze_base:  # its head alone is trained
        base = Held("model", "weights", 4.0 * shape.parameters(True) * case.layout.weights)
        return {"update": [base, Held("model", "activations", tokens * passing(shape, case.half))]}
    held = owned(case, "model", shape, scalar, lora, section.optimizer)
    more = update(case, "model", shape, scalar, lora, tokens, read, math.ceil(share / rows))
    return {"update": held + more}


def roles_of(case: Case) -> list[tuple[str, Shape, bool]]:
    """Name, shape and kind of head of the trained roles of stage 3."""
    both = [("actor", case.policy, False), ("critic", case.judge, True)]
    return both if case.config.ppo.estimator in WITH_CRITIC else both[:1]


def frozen(case: Case) -> Iterator[Held]:
    """Reference and reward model. With adapters the reference is the actor without its own, and the
    reward model may be the critic without its own."""
    config, layout = case.config, case.layout
    lora, how = config.ppo.lora.rank, config.model.quantization
    held = "bf16" if case.half == 2 and layout.shards not in ("zero3", "fsdp2") else "none"
    if not lora:
        yield Held("reference", "weights", weights(case.policy, False, held) * layout.weights)
    shared = config.ppo.critic_init != "zero" and config.ppo.estimator in WITH_CRITIC
    shared &= config.reward.path is None and how in ("none", "bf16")
    shared &= config.ppo.lora.share_base != "false"
    if case.shares_base:
        yield Held("reward", "weights", 4.0 * trained(case.judge, True, config.reward.lora))
    elif "model" in config.ppo.rewards and not (lora and shared):
        yield Held("reward", "weights", weights(case.judge, True, held) * layout.weights)


def engine(case: Case, rows: int) -> list[Held]:
    """What samples so many rows: a cache, and weights as it computes with them."""
    config, shape, half = case.config, case.policy, case.half
    places = -(-(case.texts.prompt + case.texts.longest) // 64) * 64
    found = [Held("engine", "cache", 2.0 * shape.layers * rows * places * shape.keys * half)]
    how = config.model.quantization if config.ppo.lora.rank else "none"
    if config.rollout.engine == "vllm":
        cache = getattr(config.rollout, "cache_gb", 4.0) * 2**30
        found = [
            Held("engine", "cache", cache),
            Held("engine", "weights", half * shape.parameters()),
        ]
    elif config.rollout.engine != "hf" and case.layout.weights == 1:
        found.append(Held("engine", "weights", copies(case, shape, False, config.ppo.lora, how)))
    if case.layout.weights < 1:  # whole weights of the actor, as long as it samples
        found.append(Held("engine", "gathered", weights(shape, False, how)))
    return found


def micro_batches(case: Case, rows: int, factor: int = 1) -> tuple[int, int, int]:
    """Tokens and reply tokens of the largest micro-batch that `rows` are dealt out to, and how many
    there are; as `cores.ppo.passes.shared` does where rows have no padding."""
    replies = case.texts.lengths(rows)
    read = [case.texts.prompt + reply for reply in replies]
    most = factor * case.config.ppo.pass_tokens
    count = min(rows, -(-sum(read) // most))
    while count < rows and sum(read[::count]) > most:
        count += 1
    return sum(read[::count]), sum(replies[::count]), count


def alternating(case: Case) -> Phases:
    """Stage 3: rollout, scoring, and the update of each trained role."""
    config, layout, ppo, half = case.config, case.layout, case.config.ppo, case.half
    rows = max(1, ppo.batch_size // layout.world)
    roles = roles_of(case)
    always = [held for role in roles for held in owned(case, *role, ppo.lora)] + [*frozen(case)]
    sampler = engine(case, rows)
    prefill = min(rows * case.texts.prompt, PREFILL) * passing(case.policy, half)
    sampler.append(Held("engine", "prompts", prefill))
    lends = ppo.passes != "captured" and total(sampler[:2]) > KEPT * layout.card
    if not lends and layout.weights == 1 and config.rollout.engine not in ("hf", "vllm"):
        always, sampler = always + sampler, []
    tokens, replies, passes = micro_batches(case, max(1, ppo.minibatch_size // layout.world))
    updates: Phases = {}
    graphs = 0.0
    for name, shape, scalar in roles:
        read = 0.0 if scalar else logits(shape, replies, half)
        held = update(case, name, shape, scalar, ppo.lora, tokens, read, passes)
        if case.captures(shape, scalar):
            if passes > 1 or layout.world > 1:  # they lie where graphs know them to be
                always += [each for each in held if each.what == "gradients"]
                held = [each for each in held if each.what != "gradients"]
            graphs = max(graphs, POOL * total(held))
            # Shapes that have not come often enough run beside the graphs; one shape does not.
            held = held if case.texts.stops else []
        updates[f"{name} update"] = held
    if graphs:
        always.append(Held("graphs", "captured passes", graphs))
    several, said, _ = micro_batches(case, rows, FORWARD)
    wide = several * max(passing(shape, half) for _, shape, _ in roles)
    read = logits(case.policy, said, half)
    scoring = [Held("all", "activations", wide), Held("all", "logits", read)]
    phases = {"rollout": sampler, "scoring": scoring, **updates}
    return {name: always + held for name, held in phases.items()}


def needed(case: Case, stage: str) -> Phases:
    """What lies in a GPU's memory in each phase of a step of a stage."""
    return alternating(case) if stage == "ppo" else learning(case, stage)
