"""Ways to run a stage on so many GPUs: which of them fit, what each takes, and the best one."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cores.config import Config, RolloutSection
from cores.memory import Case, Layout, Phases, needed, peak
from scripts.plan.times import Card, Seconds, seconds

ROOM = 0.9
"""Share of a GPU's memory that a plan may take: the rest is the driver's, the allocator's gaps, and
as far as the sums were from what was measured."""
FILES = Path(__file__).resolve().parents[2] / "configs" / "accelerate"
LAUNCHES = {
    "none": "ddp.yaml", "zero1": "zero1.yaml", "zero2": "zero2.yaml", "zero3": "zero3.yaml",
    "fsdp2": "fsdp2.yaml",
}  # fmt: skip
OFFLOAD = "zero3_offload.yaml"
NAMES = {
    "none": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "fsdp2": "FSDP2",
}  # fmt: skip
RANK = 16
"""Of adapters where the configuration has none: docs/fits.md."""


@dataclass(frozen=True)
class Plan:
    """A stage in one way."""

    stage: str
    case: Case
    options: dict[str, Any]
    """Keys that differ from the configuration."""
    phases: Phases
    seconds: Seconds

    @property
    def peak(self) -> tuple[str, float]:
        """Phase and bytes."""
        return peak(self.phases)

    @property
    def fits(self) -> bool:
        """Whether the GPU has the memory, with room."""
        return self.peak[1] <= ROOM * self.case.layout.card

    @property
    def total(self) -> float:
        """Seconds of a step."""
        return sum(self.seconds.values())

    @property
    def name(self) -> str:
        """Of the launch."""
        layout = self.case.layout
        if layout.offload:
            return "ZeRO-3 with offload"
        return "one process" if layout.world == 1 else NAMES[layout.shards]

    @property
    def file(self) -> str:
        """Its file of configs/accelerate."""
        layout = self.case.layout
        if layout.offload:
            return OFFLOAD
        return "gpu.yaml" if layout.world == 1 else LAUNCHES[layout.shards]

    def as_options(self) -> str:
        """For the command line."""
        return " ".join(f"--{key} {str(value).lower()}" for key, value in self.options.items())


def plan(stage: str, case: Case, card: Card, nodes: int, options: dict[str, Any]) -> Plan:
    """`case` with the keys of `options` changed, counted."""
    config = case.config
    options = {key: value for key, value in options.items() if value != value_of(config, key)}
    for key, value in options.items():
        config = changed(config, key.split("."), value)
    case = replace(case, config=config)
    return Plan(stage, case, options, needed(case, stage), seconds(case, stage, card, nodes))


def changed(section: Any, keys: list[str], value: Any) -> Any:
    """A section with one key, below it, changed."""
    name, *below = keys
    inner = changed(getattr(section, name), below, value) if below else value
    return replace(section, **{name: inner})


def layouts(case: Case) -> Iterator[Layout]:
    """Ways to lie on these GPUs, those that are launched by a file that is there."""
    world = case.layout.world
    shards = LAUNCHES if world > 1 else {"none": "gpu.yaml"}
    for name, file in shards.items():
        if (FILES / file).is_file():
            yield replace(case.layout, shards=name)
    yield replace(case.layout, shards="zero3", offload=True)


def savings(stage: str, config: Config, world: int) -> Iterator[dict[str, Any]]:
    """Options that change memory and time and not the result, from none to all."""
    section = getattr(config, stage)
    share = max(1, getattr(section, "minibatch_size", section.batch_size) // world)
    given = section.microbatch_size
    sizes = [given, *(n for n in (1, 2, 4, 8, 16, 32) if n != given and share % n == 0)]
    slower: list[dict[str, Any]] = [{}]
    if stage == "ppo":
        slower += [{"ppo.passes": "eager"}, {"ppo.passes": "eager", "rollout.engine": "hf"}]
        if "vllm" in get_args(get_type_hints(RolloutSection)["engine"]):
            slower.append({"ppo.passes": "eager", "rollout.engine": "vllm"})
    for again in dict.fromkeys((config.model.gradient_checkpointing, True)):
        for size in sizes:
            for more in slower:
                found = {f"{stage}.microbatch_size": size, **more}
                if stage == "ppo" and section.microbatch_tokens:
                    least = section.max_prompt_length + section.max_new_tokens
                    tokens = section.microbatch_tokens * size // sizes[0]
                    found["ppo.microbatch_tokens"] = max(least, tokens)
                yield {**found, "model.gradient_checkpointing": again}


def value_of(config: Config, key: str) -> Any:
    """Of a dotted key."""
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found


def smaller(stage: str, case: Case) -> Iterator[dict[str, Any]]:
    """Options that change what is trained or how weights are held: adapters on frozen weights."""
    config = case.config
    rank = f"{stage}.lora.rank"
    lora = {} if value_of(config, rank) else {rank: RANK}
    ways = ["bf16"] if config.model.precision == "bf16" else []
    one = {"reward.lora.rank": config.reward.lora.rank or RANK, "ppo.lora.share_base": "auto"}
    for how in (*ways, "8bit", "4bit"):
        held = {**lora, "model.quantization": how}
        yield held
        if stage == "ppo" and hasattr(config.ppo.lora, "share_base"):
            yield held | one


def ways(stage: str, case: Case, card: Card, nodes: int, others: bool = True) -> list[Plan]:
    """Each kind of training on each layout, in its fastest form that fits, or if none does in that
    of the least memory; the configuration as it is comes first. `others`: kinds that change what is
    trained are among them."""
    found = [plan(stage, case, card, nodes, {})]
    for base in ({}, *(smaller(stage, case) if others else ())):
        for layout in layouts(case):
            few = base.get("model.quantization", case.config.model.quantization)
            if layout.shards in ("zero3", "fsdp2") and few != "none":
                continue  # refused by the stages: shards of such weights there are none
            where = replace(case, layout=layout)
            forms = [
                plan(stage, where, card, nodes, {**base, **more})
                for more in savings(stage, case.config, layout.world)
            ]
            fit = [form for form in forms if form.fits]
            best = min(fit, key=_total) if fit else min(forms, key=_peak)
            if best.case not in [form.case for form in found]:
                found.append(best)
    return found


def _total(form: Plan) -> float:
    return form.total


def _peak(form: Plan) -> float:
    return form.peak[1]


def best_of(found: list[Plan]) -> Plan | None:
    """The configuration as it is where that fits; else the fastest way that fits, one that trains
    the same before others. None where none does."""
    if found[0].fits:
        return found[0]
    fit = [form for form in found if form.fits]
    same = [form for form in fit if not any(".lora" in k or "quant" in k for k in form.options)]
    return min(same or fit, key=_total, default=None)


def largest(chosen: Plan, card: Card, nodes: int) -> int:
    """The largest micro-batch of the stage, in rows, that the chosen way has room for."""
    stage, case = chosen.stage, chosen.case
    section = getattr(case.config, stage)
    rows = getattr(section, "minibatch_size", section.batch_size) // case.layout.world
    size = 1
    for wanted in range(1, rows + 1):
        if rows % wanted == 0:
            options = {f"{stage}.microbatch_size": wanted}
            if stage == "ppo":
                options["ppo.microbatch_tokens"] = None  # type: ignore[assignment]
            if plan(stage, case, card, nodes, options).fits:
                size = wanted
    return size
