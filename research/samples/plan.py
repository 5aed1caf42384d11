"""What is tried to find out what stage 3 learns fastest with, and in which order.

A setting is a set of options that differ from the configuration of its task; a run is a setting, a
seed and a side (ours, or TRL 1.12's PPO). Successive halving in place of a grid:

1. alone: the task's `start`, and each value of its knobs on top of it, on the `first` seeds.
2. again: the best ALONE of them on the `middle` seeds.
3. together: the best values joined one after the other, the best first, on these.
4. around: the best so far with its rates and its price of KL moved both ways, on these.
5. final: the best of all and the configuration as it is, on all seeds.

Stages 1 and 2 are made once a seed, under <out>/<task>/seed<n>/, and shared by all runs.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cores.config import parse_config
from research.jobs import ROOT, Job

Setting = tuple[tuple[str, str], ...]
"""Options and their values, in words of the command line."""
ALONE = 6
"""Settings of the first round that go on to the second."""


@dataclass(frozen=True)
class Task:
    """A set of data with a configuration, and who judges what is learned on it."""

    name: str
    seeds: tuple[int, ...]
    first: int
    """Seeds of the first round."""
    middle: int
    """Seeds of the second to fourth."""
    judge: str
    """Key of the judge's score in an evaluation."""
    sources: str
    """`ppo.rewards`: the judge beside the model, with weight 0."""
    eval_every: int
    eval_prompts: int
    knobs: dict[str, tuple[str, ...]]
    """Values of ours beside the configuration's own; `a+b` sets both keys."""
    theirs: dict[str, tuple[str, ...]]
    """Values of TRL's beside what research/experiments/peer_trl.py gives it."""
    levels: tuple[float, ...]
    """KLs at which settings are compared."""
    variables: tuple[tuple[str, str], ...] = ()
    start: Setting = ()
    """What ours begins with: the configuration as it is, or what an earlier pass found."""
    around: bool = True


BETA2 = "ppo.actor_adam.beta2+ppo.critic_adam.beta2"
RATE, CRITIC_RATE = "ppo.actor_learning_rate", "ppo.critic_learning_rate"
DEMO = Task(
    name="demo",
    seeds=(0, 1, 2, 3, 4),
    first=5,
    middle=5,
    judge="score_gold",
    sources='{"model": 1, "research/experiments/rewards.py:gold": 0}',
    eval_every=2,
    eval_prompts=200,
    knobs={
        "ppo.kl_coef": ("0.2",),
        "ppo.lam": ("1",),
        BETA2: ("0.99",),
        "ppo.clip": ("0.3",),
        "ppo.kl_target": ("4",),
        "ppo.samples_per_prompt": ("4",),
        "ppo.max_grad_norm": ("1000",),
        "ppo.lr_schedule": ("linear",),
        "ppo.minibatch_size": ("64",),
    },
    theirs={},
    levels=(1.0, 2.0, 3.0),
    variables=(("CUDA_VISIBLE_DEVICES", ""), ("DS_ACCELERATOR", "cpu")),
)
"""Its knobs are those that were not slower on two seeds, of 25: see docs/defaults.md."""
BOTH_RATES = f"{RATE}+{CRITIC_RATE}"
REAL: dict[str, tuple[str, ...]] = {
    "ppo.lam": ("1",),
    BOTH_RATES: ("3e-5+6e-5", "4e-5+8e-5"),
    "ppo.warmup": ("0",),
    "ppo.critic_warmup": ("3",),
    f"ppo.warmup+{BETA2}": ("0+0.999+0.999",),
    "ppo.minibatch_size": ("16",),
    "ppo.epochs": ("4",),
    CRITIC_RATE: ("8e-5",),
    "ppo.lr_schedule": ("constant",),
    "ppo.loss_mean": ("sequences",),
    "ppo.kl_kind+ppo.kl_in": ("k2+loss",),
}
"""What could need fewer updates without more KL."""
TRL: dict[str, tuple[str, ...]] = {
    "learning_rate+adam_epsilon": tuple(
        f"{rate}+{eps}" for eps in ("1e-8", "1e-5") for rate in ("2e-5", "4e-5", "1e-5", "8e-5")
    ),
}
FEWER: dict[str, tuple[str, ...]] = {
    "ppo.minibatch_size": ("16",),
    "ppo.lam": ("1",),
    BOTH_RATES: ("4e-5+8e-5",),
}
FEWER_TRL: dict[str, tuple[str, ...]] = {
    "learning_rate+adam_epsilon": ("2e-5+1e-8", "4e-5+1e-8"),
}
JUDGED = '{"model": 1, "research/samples/judges.py:judge": 0}'
REAL_SETS = (
    ("polite", 5, (2.0, 4.0, 6.0), REAL, TRL),
    ("hh_harmless", 4, (1.0, 2.0, 4.0), FEWER, FEWER_TRL),
)
"""Updates between looks, KLs to compare at, what is tried of ours and of TRL's."""
TASKS = {DEMO.name: DEMO} | {
    name: Task(
        name=name,
        seeds=(0, 1, 2),
        first=1,
        middle=3,
        judge="score_judge",
        sources=JUDGED,
        eval_every=every,
        eval_prompts=170,
        knobs=knobs,
        theirs=theirs,
        levels=levels,
        around=False,
    )
    for name, every, levels, knobs, theirs in REAL_SETS
}


def setting(keys: str, values: str) -> Setting:
    """One value of one knob."""
    names = keys.split("+")
    each = values.split("+")
    return tuple(zip(names, each * (len(names) // len(each)), strict=True))


def join(*settings: Setting) -> Setting:
    """All of them together, the later ones winning."""
    return tuple(sorted({key: value for one in settings for key, value in one}.items()))


def name_of(chosen: Setting) -> str:
    """For folders and tables."""
    return ",".join(f"{key.removeprefix('ppo.')}={value}" for key, value in chosen) or "as it is"


def alone(knobs: dict[str, tuple[str, ...]]) -> list[Setting]:
    """Every value by itself."""
    return [setting(keys, value) for keys, values in knobs.items() for value in values]


def together(ranked: Sequence[Setting], start: Setting = ()) -> list[Setting]:
    """The best two, the best three, and so on, on top of `start`; of each knob its best value."""
    kept: list[Setting] = []
    for one in ranked:
        own = set(one) - set(start)
        if not {key for key, _ in own} & {key for other in kept for key, _ in other}:
            kept.append(tuple(own))
    return [join(start, *kept[: n + 1]) for n in range(1, len(kept))]


def around(task: Task, side: str, best: Setting) -> list[Setting]:
    """Neighbours of `best`: the rates times and by 1.5, the price of KL times and by 2."""
    given, ppo = dict(best), parse_config(["--config", f"configs/{task.name}.yaml"], "", "").ppo
    own: dict[str, float] = {"learning_rate": ppo.actor_learning_rate}
    price = "kl_coef"
    if side == "ours":
        own = {RATE: ppo.actor_learning_rate, CRITIC_RATE: ppo.critic_learning_rate}
        price = "ppo.kl_coef"
    rates = {key: float(given.get(key, value)) for key, value in own.items()}
    found = []
    for factor in (1 / 1.5, 1.5):
        moved = tuple((key, f"{value * factor:.3g}") for key, value in rates.items())
        found.append(join(best, moved))
    coef = float(given.get(price, ppo.kl_coef))
    return [*found, *(join(best, ((price, f"{coef * factor:g}"),)) for factor in (0.5, 2))]


def run_job(out: Path, task: Task, side: str, chosen: Setting, seed: int) -> Job:
    """One run: research/samples/one.py trains, keeps the curves and drops the weights."""
    made = out / "runs" / task.name / side / name_of(chosen) / f"seed{seed}.json"
    command = (sys.executable, str(ROOT / "research/samples/one.py"), "--out", str(out))
    words = ("--task", task.name, "--side", side, "--seed", str(seed))
    each = tuple(f"{key}={value}" for key, value in chosen)
    name = f"{task.name}.{side}.{name_of(chosen)}.seed{seed}".replace("/", "_")
    return Job(name, (*command, *words, *each), (), made, task.variables)
