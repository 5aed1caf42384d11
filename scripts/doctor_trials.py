"""Runs made sick on purpose, and healthy ones, under the doctor: what it finds, and when.

    python scripts/doctor_trials.py RUN OUT [--only RULE ...] [--stages] [--read]
        [--healthy RUN ...]

RUN is a finished demo (scripts/demo.sh), whose stages 1 and 2 every trial starts from: ten updates
of 16 replies of stage 3 in OUT, made sick by configuration, by a reward function
(scripts/trials/rewards.py) or by a fault planted in the engine. `--stages`: data and stages 1 and
2 made sick instead (scripts/trials/stages.py). `--healthy`: runs in which nothing should be found.
Also counted: the recorded curves of docs/evidence/experiments.json. Writes
docs/evidence/doctor.json and the tables of docs/doctor.md. A minute a trial on two cores of a
shared server; not run by the tests.
"""

import argparse
import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.errors import UserError
from cores.report import RULES, Watch, examine, read_run
from cores.report.doctor import STAGES
from cores.runtime.cli import guarded
from research.pages import fill
from scripts.trials import stages

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "docs" / "evidence" / "doctor.json"
SHORT = (
    "--ppo.updates 10 --ppo.batch_size 16 --ppo.minibatch_size 8 --ppo.microbatch_size 16 "
    "--ppo.eval_prompts 0 --ppo.warmup 0 --overwrite --resume never"
)
REAL = ("polite", "hh_harmless")
HEALTHY = ("ours", "gold", "grpo", "rloo", "reinforce-pp", "ptx", "zero-critic", "no-whitening")
"""Recorded runs of docs/experiments.md that learn as they should; `no-kl` does not. REAL: sets of
docs/defaults.md that people wrote."""
FREE = "--ppo.kl_coef 0 --ppo.missing_eos_penalty 0"
RATE = "--ppo.actor_learning_rate"
ZERO = "--ppo.critic_init zero"
LONG = "--ppo.updates 20"
FAST = "--ppo.actor_learning_rate 1e-3 --ppo.epochs 4"


def paid(*names: str, **weights: float) -> str:
    """The option for these reward functions, weight 1 each, or as given."""
    found = {f"scripts/trials/rewards.py:{n}": 1.0 for n in names}
    found |= {f"scripts/trials/rewards.py:{n}": w for n, w in weights.items()}
    return f"{ZERO} --ppo.rewards {json.dumps(found, separators=(',', ':'))}"


SICK: dict[str, list[str]] = {
    "equal_rewards": [paid("constant"), paid("polite"), paid("correct"), paid("abyss")],
    "kl_zero": [f"{RATE} 1e-9", f"{RATE} 1e-10 {FREE}", f"{RATE} 3e-8 --ppo.epochs 1"],
    "rate_low": [f"{RATE} 1e-5", f"{RATE} 7e-6 --ppo.epochs 1", f"{RATE} 1e-5 {FREE}"],
    "clip_zero": [f"{RATE} 1e-9", f"{RATE} 1e-5", f"{RATE} 7e-6 --ppo.epochs 1"],
    "rate_high": [f"{RATE} 3e-2", f"{RATE} 1e-2", f"{RATE} 6e-3 --ppo.epochs 6",
                  f"{RATE} 9e-3 {FREE}", f"{paid('noise')} {FREE} {FAST}"],
    "clip_high": [f"{RATE} 2e-3 --ppo.epochs 6", f"{RATE} 3e-3 --ppo.epochs 8", "--ppo.clip 0.001",
                  "--ppo.clip 1e-6"],
    "kl_runaway": [f"{RATE} 3e-3 {FREE}", f"{RATE} 2e-3 {FREE} {paid('lovely')}",
                   f"{RATE} 1e-2", "--ppo.entropy_coef 5"],
    "entropy_collapse": [f"{RATE} 3e-2", f"{RATE} 1e-2", f"{RATE} 6e-3 --ppo.epochs 6",
                         "--ppo.temperature 0.05"],
    "score_drowned": ["--ppo.kl_coef 1000", "--ppo.kl_coef 200",
                      "--ppo.max_new_tokens 16 --ppo.missing_eos_penalty 1000"],
    "explained_variance": ["--ppo.critic_learning_rate 0.3", "--ppo.critic_learning_rate 0.1",
                           "--ppo.rewards {\"scripts/trials/rewards.py:far\":1.0,\"model\":0.0} "
                           "--ppo.critic_learning_rate 1e-7",
                           f"{ZERO} --ppo.critic_learning_rate 1e-12", paid("noise")],
    "length_exploit": [f"{paid(n)} {FREE} {FAST} {LONG}" for n in ("words", "sentences",
                       "characters")],
    "repetition_exploit": [f"{RATE} 3e-2", f"{RATE} 1e-2", f"{paid('enjoy')} {FREE} {FAST} {LONG}"],
    "judge_disagrees": [f"{paid('words', few=0.0)} {FREE} {FAST}",
                        f"{paid('brief', words=0.0)} {FREE} {FAST}",
                        f"{paid('enjoy', distinct=0.0)} {FREE} {FAST}"],
    "eos_never": ["--ppo.max_new_tokens 4", "--ppo.max_new_tokens 5", "--ppo.max_new_tokens 6 "
                  "--ppo.missing_eos_penalty 0", "--ppo.temperature 4"],
    "eos_at_once": [f"{paid(n)} {FREE} {RATE} 2e-3 --ppo.epochs 6" for n in ("brief", "few",
                    "silent")],
    "rollout_mismatch": ["planted:warm", "planted:noisy", "planted:stale"],
    "first_minibatch": ["planted:old", "planted:shifted", "planted:scaled"],
}  # fmt: skip
"""What makes each sick: options of stage 3, or a fault in the code."""


@contextmanager
def planted(fault: str) -> Iterator[None]:
    """A fault between the engine, the trainer and the update."""
    import torch

    from cores.ppo import score
    from cores.ppo.experience import Scored
    from cores.ppo.trainer import PPOTrainer

    engine = ("warm", "noisy", "stale")
    changes: dict[str, Any] = {
        "warm": lambda x: 0.7 * x, "noisy": lambda x: x + 0.3 * torch.randn_like(x),
        "stale": lambda x: x.roll(1, dims=0), "old": lambda x: x + 0.2 * torch.randn_like(x),
        "shifted": lambda x: x - 0.2, "scaled": lambda x: 0.9 * x,
    }  # fmt: skip
    asked, change = PPOTrainer.estimate, changes[fault]

    def estimate(self: PPOTrainer, scored: Scored) -> Any:
        from dataclasses import replace

        if fault in engine:
            return asked(self, replace(scored, rollout_logprobs=change(scored.rollout_logprobs)))
        return asked(self, replace(scored, logprobs=change(scored.logprobs)))

    with (
        patch.object(PPOTrainer, "estimate", estimate),
        patch.object(score, "looks", lambda *_: False),
    ):
        yield


def stage3(run: Path, out: Path, words: str) -> None:
    """One trial, in this process."""
    import stage3_ppo

    for name in ("sft", "reward"):
        if not (out / name).exists():
            shutil.copytree(run / name, out / name)
    data = run / "data"
    files = [f"--data.prompts.path {data}/prompts.jsonl"]
    files += [f"--data.prompts.test_path {data}/prompts_test.jsonl"]
    files += [f"--data.preference.path {data}/preference_test.jsonl"]
    fault = words.removeprefix("planted:") if words.startswith("planted:") else None
    options = "" if fault else words
    line = f"--config {ROOT}/configs/demo.yaml --output_dir {out} {SHORT} {' '.join(files)}"
    with (
        planted(fault) if fault else contextlib.nullcontext(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        stage3_ppo.main([*line.split(), *options.split()])


def told(run: Path, stages: tuple[str, ...] = ("ppo",)) -> dict[str, int | None]:
    """What is found in a run's stages, and at which step."""
    records = [record for record in read_run(run) if record.name in stages]
    return {finding.rule: finding.step for finding in examine(RULES, records)}


def sick_stages(run: Path, out: Path, read: bool) -> dict[str, Any]:
    """What is found in each of scripts/trials/stages.py, by name."""
    found = {}
    for number, (name, (rule, own, *_)) in enumerate(stages.SICK.items()):
        place = out / f"stages-{number}"
        if not place.exists():
            if read:
                continue
            short = SHORT.replace("--overwrite --resume never", "")
            with contextlib.redirect_stdout(io.StringIO()):
                stages.tried(name, run, place, f"--config {ROOT}/configs/demo.yaml {short}")
        found[name] = {"rule": rule, "found": told(place, own)}
        print(f"{name}: {found[name]}", flush=True)
    return found


def watched(columns: dict[str, list[float]]) -> dict[str, int | None]:
    """What is found in recorded curves of stage 3, by rule, and at which update."""
    watch = Watch(RULES, "ppo", {"config": {"ppo": {}}, "data": {}, "metrics": {}})
    rows = [dict(zip(columns, at, strict=True)) for at in zip(*columns.values(), strict=True)]
    found = [f for i, row in enumerate(rows) for f in watch.add({"step": i + 1, **row})]
    return {f.rule: f.step for f in found}


def recorded() -> dict[str, list[dict[str, Any]]]:
    """Findings in each recorded run of docs/experiments.md, one a seed, by name; and in ours of
    docs/defaults.md on real sets, whose rows are score and KL alone."""
    runs = json.loads((ROOT / "docs" / "evidence" / "experiments.json").read_text("utf-8"))["runs"]
    result: dict[str, list[dict[str, Any]]] = {}
    for name in (*HEALTHY, "no-kl"):
        for curves in runs[name]["curves"].values():
            columns = {k: v for k, v in curves.items() if k != "score_gold"}
            result.setdefault(name, []).append(watched(columns))
    for part in json.loads((ROOT / "docs/evidence/samples.json").read_text("utf-8")).values():
        for task in REAL:
            for own in part.get(task, {}).get("ours", {}).values():
                result.setdefault(task, []).extend(watched(run["training"]) for run in own)
    return result


def tables(kept: dict[str, Any]) -> dict[str, str]:
    """The page's places."""
    sick = ["| rule | made sick by | found at update | found besides |", "|---" * 4 + "|"]
    for rule, ways in kept["sick"].items():
        for words, found in ways.items():
            own = rule.partition(",")[0]
            others = ", ".join(f"{k} ({v})" for k, v in found.items() if k != own)
            at = found.get(own)
            shown = words.replace("scripts/trials/rewards.py:", "").replace("|", "/")
            sick.append(f"| {rule} | `{shown}` | {'not found' if at is None else at} | {others} |")
    well = ["| healthy runs | runs | with a finding | what |", "|---" * 4 + "|"]
    for name, runs in kept["healthy"].items():
        hit = [f"{k} ({v})" for found in runs for k, v in found.items()]
        well.append(f"| {name} | {len(runs)} | {sum(map(bool, runs))} | {', '.join(hit)} |")
    early = ["| made sick | rule | found at step | found besides |", "|---" * 4 + "|"]
    for name, one in kept["stages"].items():
        rule, found = one["rule"], dict(one["found"])
        at = "not found" if rule not in found else found.pop(rule) or "before or behind the steps"
        others = ", ".join(k if v is None else f"{k} ({v})" for k, v in found.items())
        early.append(f"| {name} | {rule} | {at} | {others} |")
    parts = {"sick": sick, "healthy": well, "stages": early}
    return {name: "\n".join(lines) for name, lines in parts.items()}


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Runs made sick on purpose, under the doctor.")
    parser.add_argument("run", type=Path, help="a finished demo")
    parser.add_argument("out", type=Path, help="folder of the trials")
    parser.add_argument("--only", nargs="*", default=list(SICK), help="rules to try")
    parser.add_argument("--stages", action="store_true", help="data and stages 1 and 2 instead")
    parser.add_argument("--read", action="store_true", help="run none, read those that are there")
    parser.add_argument("--healthy", nargs="*", type=Path, default=[], help="runs that are well")
    arguments = parser.parse_args(argv)
    if unknown := set(arguments.only) - set(SICK):
        raise UserError(f"--only {' '.join(unknown)}: rules are {', '.join(SICK)}.")
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    kept = {"sick": {}, "healthy": {}, "stages": {}} | kept
    if arguments.stages:
        kept["stages"] = sick_stages(arguments.run, arguments.out, arguments.read)
    for rule in () if arguments.stages else arguments.only:
        kept["sick"][rule] = {}
        for number, words in enumerate(SICK[rule]):
            out = arguments.out / f"{rule}-{number}"
            if not (out / "ppo").exists():
                if arguments.read:
                    continue
                stage3(arguments.run, out, words)
            kept["sick"][rule][words] = found = told(out)
            print(f"{rule}: {words}: {found}", flush=True)
    kept["healthy"] |= {f"{k}, recorded": runs for k, runs in recorded().items() if k != "no-kl"}
    if arguments.healthy:
        whole = [told(run, STAGES) for run in arguments.healthy]
        kept["healthy"]["demo, all stages of other seeds"] = whole
    kept["sick"]["kl_runaway, recorded"] = {
        f"no price of KL, seed {seed}": found for seed, found in enumerate(recorded()["no-kl"])
    }
    KEPT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    page = ROOT / "docs" / "doctor.md"
    if page.is_file():
        page.write_text(fill(page.read_text("utf-8"), tables(kept), page.name), encoding="utf-8")


if __name__ == "__main__":
    guarded(main)
