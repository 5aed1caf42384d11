"""What the experiments train: five seeds of the demo, and PPO from each seed's stages in many ways.

    <out>/seed<n>/sft, reward                        stages 1 and 2
    <out>/seed<n>/<variant>/ppo                      stage 3, from these two; judged.json beside it
    <out>/seed0/<setting>, trl-<setting>             ours and the peer's PPO while tuning
    <out>/seed<n>/frontier-<setting>-<kl_coef>/ppo   ours at a price of KL
    <out>/seed<n>/trl-<setting>-<kl_coef>            the peer's, from the same two
    <out>/seed<n>/best-of-<n>.json                   the best of n replies of stage 1

A setting is a learning rate and its schedule, such as rate-0.001-linear.

All see as many sampled replies unless the variant says so.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cores.config import PPOSection
from research.jobs import ROOT, Job

SEEDS = (0, 1, 2, 3, 4)
FEW = (0, 1, 2)
"""Seeds of the ablations."""
CONFIG = "configs/demo.yaml"
DATA = ROOT / "runs" / "demo" / "base" / "model.safetensors"
"""What research/demo/make.py writes last."""
LOGGED = '{"model": 1, "research/experiments/rewards.py:gold": 0}'
"""The true reward is logged, not learned from."""
KL_COEF = 0.1
"""The demo's, at which both sides are tuned."""
KL_COEFS = (0.02, 0.05, 0.1, 0.2, 0.4)
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""Learning rates of the actor tried on seed 0, for us and for the peer."""
SCHEDULES = ("constant", "linear")
"""And schedules of it: our default and the peer's."""
BEST_OF = (2, 4, 16)
CPU = (("CUDA_VISIBLE_DEVICES", ""), ("DS_ACCELERATOR", "cpu"))
"""Environment of a job that stays on the CPU."""


@dataclass(frozen=True)
class Variant:
    """One way to run stage 3."""

    name: str
    group: str
    """Which experiment it belongs to."""
    words: tuple[str, ...]
    seeds: tuple[int, ...] = FEW


def ppo(**settings: object) -> tuple[str, ...]:
    """Words of the command line for keys of the ppo section; `__` stands for a dot."""
    return tuple(
        word
        for key, value in settings.items()
        for word in (f"--ppo.{key.replace('__', '.')}", str(value).lower())
    )


def coati() -> list[Variant]:
    """The original's estimator with all four defects, with none, and with each alone.

    It pays for the mean KL a token, the rest of the demo for the sum over a reply. So all are run
    twice: at the demo's kl_coef, which is also the original's, and (`-priced`) at one that makes
    the price of a reply of 20 tokens ours.
    """
    names = ("reversed_kl", "mean_over_positions", "r_minus_v", "same_prompts")
    sets = {"coati": names, "coati-none": (), **{n.replace("_", "-"): (n,) for n in names}}
    found = []
    for group, ending, kl_coef in (("coati", "", 0.1), ("coati-priced", "-priced", 2.0)):
        for name, on in sets.items():
            # A critic that starts as the reward model foretells the score exactly, where both are
            # read the same way: R - V is then 0 and nothing starts to learn. So it starts from 0.
            switches = {f"coati__{n}": n in on for n in names}
            words = ppo(estimator="coati", critic_init="zero", kl_coef=kl_coef, **switches)
            found.append(Variant(name + ending, group, words))
    return found


def variants() -> list[Variant]:
    """All of them; the first is the demo itself."""
    grouped = ppo(samples_per_prompt=4)
    only_gold = '{"research/experiments/rewards.py:gold": 1}'
    only_shuffled = (
        '{"research/experiments/rewards.py:shuffled": 1, "research/experiments/rewards.py:gold": 0}'
    )
    zero = ppo(critic_init="zero")
    # The demo's rate of a critic would be refused as an option without effect; this is the default.
    no_critic = {"critic_learning_rate": PPOSection().critic_learning_rate}
    return [
        Variant("ours", "demo", (), SEEDS),
        Variant("huge-kl", "checks", ppo(kl_coef=20), SEEDS),
        Variant("no-kl", "checks", ppo(kl_coef=0, updates=75), SEEDS),
        Variant("gold", "checks", ("--ppo.rewards", only_gold, *zero), SEEDS),
        Variant("shuffled", "checks", ("--ppo.rewards", only_shuffled, *zero), SEEDS),
        *coati(),
        Variant("grpo", "estimators", (*ppo(estimator="grpo", **no_critic), *grouped)),
        Variant("rloo", "estimators", (*ppo(estimator="rloo", **no_critic), *grouped)),
        Variant("reinforce-pp", "estimators", ppo(estimator="reinforce_pp", **no_critic)),
        Variant("gae-4-samples", "estimators", grouped),
        Variant("ptx", "parts", ppo(ptx_coef=0.5)),
        Variant("zero-critic", "parts", zero),
        Variant("zero-critic-warm-up", "parts", (*zero, *ppo(critic_warmup=5))),
        Variant("no-whitening", "parts", ppo(whiten_advantages=False)),
        Variant("dual-clip", "parts", ppo(dual_clip=3)),
        Variant("adam-eps-1e-5", "parts", ppo(actor_adam__eps=1e-5, critic_adam__eps=1e-5)),
    ]


def chain(out: Path, seeds: Sequence[int] = SEEDS) -> list[Job]:
    """The data, and stages 1 and 2 of every seed."""
    python = sys.executable
    jobs = [Job("make", (python, "research/demo/make.py", "--out", "runs/demo"), (), DATA)]
    for seed in seeds:
        folder = out / f"seed{seed}"
        words = ("--config", CONFIG, "--seed", str(seed), "--output_dir", str(folder))
        sft, reward = (folder / stage / "stage.json" for stage in ("sft", "reward"))
        two = (*CPU, ("OMP_NUM_THREADS", "2"))
        jobs += [
            Job(f"seed{seed}.sft", (python, "stage1_sft.py", *words), (DATA,), sft, two),
            Job(f"seed{seed}.reward", (python, "stage2_rm.py", *words), (sft,), reward, two),
        ]
    return jobs


def ours(out: Path, seed: int, variant: Variant, more: Sequence[str] = ()) -> list[Job]:
    """Stage 3 of one variant from one seed, and its judgement; links it to the seed's stages."""
    parent = out / f"seed{seed}"
    folder = parent / variant.name
    folder.mkdir(parents=True, exist_ok=True)
    for stage in ("sft", "reward"):
        if not (folder / stage).is_symlink():
            (folder / stage).symlink_to(Path("..") / stage)
    words = ["--config", CONFIG, "--seed", str(seed), "--output_dir", str(folder), *more]
    if "--ppo.rewards" not in variant.words:
        words += ["--ppo.rewards", LOGGED]
    command = (sys.executable, "stage3_ppo.py", *words, *variant.words)
    needs = tuple(parent / stage / "stage.json" for stage in ("sft", "reward"))
    name, made = f"seed{seed}.{variant.name}", folder / "ppo" / "stage.json"
    judged = judge(parent, folder / "ppo", folder / "judged.json", made, f"{name}.judged")
    return [Job(name, command, needs, made), judged]


def peer(
    out: Path, seed: int, name: str, words: Sequence[str], variables: dict[str, str], python: str
) -> list[Job]:
    """The peer's PPO from the same stages, and its judgement."""
    parent = out / f"seed{seed}"
    folder = parent / name
    command = (
        *(python, "research/experiments/peer_trl.py"),
        *("--sft", str(parent / "sft"), "--reward", str(parent / "reward")),
        *("--config", CONFIG, "--out", str(folder), "--seed", str(seed), *words),
    )
    needs = tuple(parent / stage / "stage.json" for stage in ("sft", "reward"))
    made = folder / "peer.json"
    own = tuple(variables.items())
    judged = judge(parent, folder, folder / "judged.json", made, f"seed{seed}.{name}.judged")
    return [Job(f"seed{seed}.{name}", command, needs, made, own), judged]


def judge(parent: Path, policy: Path, made: Path, needs: Path, name: str) -> Job:
    """Held-out replies of a policy, judged."""
    return Job(name, _judge_command(parent, made, "--policy", str(policy)), (needs,), made, CPU)


def best_of(out: Path, seed: int, n: int) -> Job:
    """The best of n replies of stage 1; n = 1 judges stage 1 itself."""
    parent, made = out / f"seed{seed}", out / f"seed{seed}" / f"best-of-{n}.json"
    command = _judge_command(parent, made, "--best-of", str(n))
    return Job(f"seed{seed}.best-of-{n}", command, (parent / "reward" / "stage.json",), made, CPU)


def _judge_command(parent: Path, made: Path, *what: str) -> tuple[str, ...]:
    own = ("--reference", str(parent / "sft"), "--reward", str(parent / "reward"))
    words = (*what, *own, "--config", CONFIG, "--out", str(made))
    return (sys.executable, "research/experiments/judge.py", *words)
