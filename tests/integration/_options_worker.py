"""Stage 3 with options of every kind, in any launch.

    _options_worker.py FOLDER OUT

FOLDER is what `_modes_worker.py make` left. OUT/<case>/ppo is what a user gets.
"""

import sys
from contextlib import suppress
from pathlib import Path

for folder in ("integration", "unit"):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / folder))

from _helpers import ROOT  # noqa: E402
from _modes_worker import one_stage, shard_everything, small_chunks, words  # noqa: E402

COMMON = """--ppo.actor_learning_rate 1e-3 --ppo.warmup 0
--ppo.epochs 2 --ppo.microbatch_size 2 --ppo.eval_prompts 0 --ppo.sample_every 0
--ppo.max_grad_norm 0.3 --ppo.actor_adam.eps 1e-5
--ppo.kl_target 0.04 --ppo.kl_horizon 64""".split()
ESTIMATORS = ("coati", "grpo", "rloo", "reinforce_pp")
"""The first has a critic."""
CASES = {
    "ptx": "--ppo.ptx_coef 0.5",
    "grpo": "--ppo.samples_per_prompt 2 --ppo.kl_in loss --ppo.kl_kind k3",
    "rloo": "--ppo.samples_per_prompt 2 --ppo.entropy_coef 0.01 --ppo.loss_mean sequences",
    "reinforce_pp": "--ppo.rollout_correction truncate",
    "coati": "--ppo.coati.same_prompts false --ppo.clip_high 0.3",
    "functions": "--ppo.updates 3 --ppo.critic_init zero --ppo.old_logprobs recompute",
    "warmup": "--ppo.critic_warmup 1 --ppo.lr_schedule cosine",
    "early": "--ppo.early_stop_kl 1e-6 --ppo.dual_clip 3",
    "checkpointed": "--model.gradient_checkpointing true",
    "lora-ptx": "--ppo.lora.rank 4 --ppo.ptx_coef 0.5 --ppo.ptx_mix convex",
    "lora-bf16": "--ppo.lora.rank 4 --model.precision bf16",
    "bf16": "--model.precision bf16",
}
"""Options beside COMMON; a case that is an estimator's name has it. Three updates show a price of
KL that was steered by a KL within its bounds."""


def arguments(case: str, folder: Path, out: Path) -> list[str]:
    """Of stage 3."""
    given = [*words(folder), *COMMON, *CASES[case].split(), "--output_dir", str(out / case)]
    if case in ESTIMATORS:
        given += ["--ppo.estimator", case]
    if case not in ESTIMATORS[1:]:
        given += "--ppo.critic_learning_rate 1e-3 --ppo.critic_adam.eps 1e-5".split()
    if case == "functions":
        given += ["--ppo.rewards", f'{{"model": 1.0, "{__file__}:spread": 0.5}}']
    return given


def spread(responses: list[str]) -> list[float]:
    """A reward function: how many different letters a reply has."""
    return [len(set(reply)) / 8 for reply in responses]


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import stage3_ppo

    shard_everything()
    small_chunks()
    parents, target = map(Path, sys.argv[1:])
    for name in CASES:
        (target / name).mkdir(parents=True, exist_ok=True)
        for parent in ("sft", "reward"):
            with suppress(FileExistsError):  # another rank was first
                (target / name / parent).symlink_to(parents / "parents" / parent)
        one_stage(stage3_ppo.main, arguments(name, parents, target))
