"""Judge any policy on the demo's held-out prompts, whoever trained it.

    python research/experiments/judge.py --policy runs/demo/ppo --reference runs/demo/sft
        --reward runs/demo/reward --config configs/demo.yaml --out judged.json [--seed 1]
    ... --best-of 16 in place of --policy: the best of 16 replies of the reference

One reply to each held-out prompt (`data.prompts` of the configuration) is sampled by the pipeline's
own engine as stage 3 samples; further `--section.key value` go to the configuration. All of it runs
on the CPU, so that the same folder gives the same replies everywhere.

    gold:        true reward of research/demo/world.py
    score:       calibrated reward-model score, without clip or penalty
    kl:          nats a reply from the reference; with --best-of the known bound, not an estimate
    length:      tokens; ended: share that stopped by themselves
    repetition:  share that say some 4 words twice
    distinct_n:  different n-grams of words over all of them

Each with the half-width of its 95% interval; `rows` has the single replies' values in the order of
the prompts, to pair policies by.
"""

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.config import Config, parse_config, plain
from cores.errors import UserError
from cores.runtime.cli import guarded
from scripts.evaluation.stats import PLACES, average
from scripts.evaluation.texts import best_of, best_of_kl, distinct, repeats

BATCH = 128
SAMPLES = 12


@dataclass(frozen=True)
class Judged:
    """One reply to each of N prompts."""

    prompts: list[str]
    texts: list[str]
    gold: list[float]
    score: list[float]
    kl: list[float]
    length: list[float]
    ended: list[float]


def summary(judged: Judged) -> dict[str, Any]:
    """Means with half-widths, single values and some replies, ready for JSON."""
    rows = {name: getattr(judged, name) for name in ("gold", "score", "kl", "length", "ended")}
    rows["repetition"] = [float(repeats(text)) for text in judged.texts]
    figures = {name: average(values) for name, values in rows.items()}
    figures |= {f"distinct_{n}": distinct(judged.texts, n) for n in (1, 2)}
    return {
        "prompts": len(judged.prompts),
        **{
            name: {
                "mean": round(one.value, PLACES),
                "half": round(max(one.high - one.value, one.value - one.low), PLACES),
            }
            for name, one in figures.items()
        },
        "rows": {name: [round(x, PLACES) for x in values] for name, values in rows.items()},
        "samples": [
            {"prompt": prompt, "reply": text}
            for prompt, text in zip(judged.prompts[:SAMPLES], judged.texts, strict=False)
        ],
    }


def check_kinds(policy: Path, reference: Path, reward: Path) -> None:
    """UserError for a folder that holds the wrong kind of model; reads no weights."""
    from cores.models.loading import load_config

    for option, folder in (("--policy", policy), ("--reference", reference)):
        if _is_scalar(load_config(folder)):
            raise UserError(
                f"{option} {folder}: it holds a reward model, which samples no replies; give the "
                "folder of a policy, such as stage 1's or stage 3's."
            )
    found = load_config(reward)
    if not _is_scalar(found) or not hasattr(found, "reward_mean"):
        raise UserError(
            f"--reward {reward}: it holds no calibrated reward model (a classification model with "
            "reward_mean in its config.json); give the folder that stage 2 wrote."
        )


def _is_scalar(config: Any) -> bool:
    return any("SequenceClassification" in name for name in config.architectures or [])


def judge(config: Config, policy: Path, reference: Path, reward: Path, n: int) -> Judged:
    """Sample with `policy` and judge its replies; with n > 1, the best of n by the score that PPO
    maximises: the reward model's less the missing-EOS penalty."""
    import torch

    from cores.data import prompt_data
    from cores.draws import uniforms
    from cores.models import load_policy, load_scalar, load_tokenizer
    from cores.rl import adjust_scores
    from cores.runtime.launch import Launch, quiet
    from cores.training.calibration import policy_engine
    from research.demo import report
    from research.demo.world import gold

    quiet()
    check_kinds(policy, reference, reward)
    tokenizer = load_tokenizer(reference)
    rows = prompt_data(config, tokenizer).test
    if len(rows) < 2:
        raise UserError(f"data.prompts: {len(rows)} held-out prompts; an interval needs 2 or more.")
    model: Any = load_scalar(reward)
    ids = [row["input_ids"] for row in rows for _ in range(n)]
    tokens = replace(config.reward, calibration_tokens=config.ppo.max_new_tokens)
    launch = Launch(0, 1, torch.device("cpu"), "fp32")
    engine = policy_engine(replace(config, reward=tokens), policy, tokenizer, launch)
    numbers = uniforms(len(ids), config.ppo.max_new_tokens, config.seed, "judge")
    parts = [slice(i, i + BATCH) for i in range(0, len(ids), BATCH)]
    rollouts = [engine.generate(ids[part], numbers[part]) for part in parts]
    whole = [rollout.row(i) for rollout in rollouts for i in range(len(rollout.ended))]
    ended = torch.cat([rollout.ended for rollout in rollouts])
    lengths = torch.cat([rollout.lengths for rollout in rollouts]).tolist()
    task = report.Task(tokenizer, plain(config.template), config.ppo.max_new_tokens)
    scores = report.scores(model, task, whole)
    penalty = config.ppo.missing_eos_penalty
    wanted = adjust_scores(torch.tensor(scores), ended, torch.tensor(lengths), penalty, 0.0, 0.0)
    kept = best_of(wanted.tolist(), n)
    texts = [str(tokenizer.decode(whole[i][-lengths[i] :], skip_special_tokens=True)) for i in kept]
    if n > 1:
        kl = [best_of_kl(n)] * len(rows)
    else:
        replies = report.Replies(whole, lengths, texts)
        models = [load_policy(folder, dropout=False) for folder in (policy, reference)]
        kl = report.kl(models[0], models[1], task, replies)
    return Judged(
        prompts=[row["prompt"] for row in rows],
        texts=texts,
        gold=[gold(row["prompt"], text) for row, text in zip(rows, texts, strict=True)],
        score=[scores[i] for i in kept],
        kl=kl,
        length=[float(lengths[i]) for i in kept],
        ended=[float(ended[i]) for i in kept],
    )


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Judge a policy on held-out prompts.")
    parser.add_argument("--policy", type=Path, help="folder of the policy")
    parser.add_argument("--best-of", type=int, help="judge the best of so many of the reference")
    parser.add_argument("--reference", type=Path, required=True, help="folder of stage 1")
    parser.add_argument("--reward", type=Path, required=True, help="folder of stage 2")
    parser.add_argument("--config", default="configs/demo.yaml", help="configuration of the run")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--seed", type=int, default=1, help="of the sampling")
    args, more = parser.parse_known_args(argv)
    if (args.policy is None) == (args.best_of is None):
        raise UserError(
            "--policy, --best-of: give one of the two: a folder to judge, or how many replies of "
            "--reference to choose among."
        )
    if args.best_of is not None and args.best_of < 1:
        raise UserError(f"--best-of {args.best_of}: there must be 1 reply or more to choose among.")
    words = ["--config", args.config, *more, "--seed", str(args.seed)]
    config = parse_config(words, "research/experiments/judge.py", "")
    n = args.best_of or 1
    policy = args.policy or args.reference
    found = summary(judge(config, policy, args.reference, args.reward, n))
    result = {"policy": str(policy), "best_of": args.best_of, "seed": args.seed, **found}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    for name, figure in found.items():
        if isinstance(figure, dict) and "half" in figure:
            print(f"{name:12} {figure['mean']:8.3f} +- {figure['half']:.3f}")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    guarded(main)
