"""Measure the PPO step of a fixed workload: seconds and memory by phase, beside their floors.

    python scripts/bench/ppo_step.py --workload W1 [--engine hf] [--updates 6] [--json out.json]
        [--micro-tokens 16384] [--batch 512] [--epochs 1] [--response 256]
        [--lengths geometric --mean 64] [--profile profile.txt] [--section.key value ...]
        [--quantization 4bit] [--memory 24]

Runs on the GPU where there is one. Two passes of --updates steps each, after --warm-up steps: the
first as in training, which gives samples/s, the second with the device waited for around every
phase and part, which gives their seconds and peaks. All figures are medians over steps.
Utilisation is the step's counted operations (scripts/bench/floors.py) a second over the bf16 peak
of an H100, 989e12; on a CPU over the fp32 rate that it reaches in this run. Other options are
stage 3's own (--model.gradient_checkpointing true, --ppo.lora.share_base false); --micro-tokens is
--ppo.microbatch_tokens. --memory: gigabytes (1e9 bytes) of a GPU that torch may take, the making of
the models included.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.runtime.cli import guarded

ENGINES = ("auto", "graph", "hf")


def at_least(least: int) -> Callable[[str], int]:
    """A whole number on the command line, not below `least`."""

    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is no whole number from {least} on")
        return int(text)

    return number


def json_file(text: str) -> Path:
    """A file to write, whose folder is made before anything is measured."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder")
    return path


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose and change a workload."""
    parser.add_argument("--workload", required=True, choices=tuple(f"W{n}" for n in range(1, 9)))
    count = at_least(1)
    parser.add_argument("--batch", type=count, help="replies a rollout")
    parser.add_argument("--minibatch", type=count, help="replies an optimizer step")
    parser.add_argument("--micro", type=count, help="replies a forward pass")
    parser.add_argument("--epochs", type=count, help="passes over a rollout")
    parser.add_argument(
        "--response", type=count, help="new tokens, with --lengths geometric at most"
    )
    parser.add_argument(
        "--quantization", choices=("none", "bf16", "8bit", "4bit"), help="bases under adapters"
    )
    parser.add_argument("--lengths", choices=("fixed", "geometric"), default="fixed")
    parser.add_argument("--mean", type=float, help="of geometric lengths; a quarter of --response")


def workload_from(args: argparse.Namespace) -> Any:
    """The workload that these options ask for; UserError if they do not fit together."""
    from scripts.bench.workloads import WORKLOADS, variant

    base = WORKLOADS[args.workload]
    mean = None
    if args.lengths == "geometric":
        mean = args.mean or (args.response or base.response) / 4
    return variant(
        base,
        batch=args.batch,
        minibatch=args.minibatch,
        micro=args.micro,
        epochs=args.epochs,
        response=args.response,
        quantization=args.quantization,
        mean_length=mean,
    )


def timed_pass(trainer: Any, batches: list[Any], device: Any) -> tuple[list[float], list[Any]]:
    """Seconds of each step, and the lengths of its replies."""
    from scripts.bench.machine import synchronize

    seconds, lengths = [], []
    for prompts in batches:
        synchronize(device)
        start = time.perf_counter()
        experience, _ = trainer.step(prompts)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        lengths.append(experience.response_mask.sum(dim=1).tolist())
    return seconds, lengths


def phase_pass(trainer: Any, batches: list[Any], device: Any) -> dict[str, Any]:
    """Median seconds of each phase and part, and the largest peak of each phase."""
    from scripts.bench.clock import Clock, instrumented

    clocks = [Clock(device) for _ in batches]
    for clock, prompts in zip(clocks, batches, strict=True):
        with instrumented(trainer, clock):
            trainer.step(prompts)
    names = dict.fromkeys(name for clock in clocks for name in clock.seconds)
    return {
        "seconds": {
            name: statistics.median(c.seconds.get(name, 0.0) for c in clocks) for name in names
        },
        "peak_bytes": {name: max(c.peaks[name] for c in clocks) for name in clocks[0].peaks},
    }


def floors_of(trainer: Any, workload: Any, lengths: list[int], phases: dict[str, float]) -> Any:
    """Works of each phase for the models that the trainer has."""
    from cores.models.actor import plain_model
    from scripts.bench import floors

    roles = trainer.roles
    policy, critic = (
        floors.shape_of(plain_model(role.unwrapped.model)) for role in (roles.actor, roles.critic)
    )
    own = getattr(roles.reward, "model", None)  # none where it is the critic as it began
    reward = critic if own is None else floors.shape_of(own)
    scores_itself = phases.get("score/actor", 0.0) > 0 or not trainer.state.reused
    whole = trainer.passes.kept
    works = floors.step(policy, critic, reward, workload, lengths, scores_itself, whole)
    if trainer.captured is not None:  # one launch, whose models no hook sees
        parts = [name for name in works if name.startswith("score/")]
        works["score"] = [work for name in parts for work in works.pop(name)]
    return works


def measure(args: argparse.Namespace, options: list[str]) -> dict[str, Any]:
    """Everything that the JSON holds."""
    from cores.runtime.launch import launch
    from scripts.bench import floors, machine
    from scripts.bench.made import trainer_of
    from scripts.bench.profiling import write_profile
    from scripts.bench.workloads import WORKLOADS, prompts_of, settings

    workload = workload_from(args)
    config = settings(workload, args.engine, options)
    run = launch(config)
    machine.cap(run.device, args.memory)
    trainer = trainer_of(workload, config, run)
    batches = [prompts_of(workload, workload.batch, seed) for seed in range(args.updates)]
    warm, _ = timed_pass(trainer, batches[:1], run.device)
    first = machine.since_start()
    warm += timed_pass(trainer, batches[: args.warm_up - 1], run.device)[0]
    machine.reset_peak(run.device)
    seconds, lengths = timed_pass(trainer, batches, run.device)
    whole_peak = machine.peak_bytes(run.device)
    check_lengths(workload, lengths)
    phases = phase_pass(trainer, batches, run.device)
    rates, peak = machine.rates_of(run.device)  # measured on a CPU, with memory of its own
    step = statistics.median(seconds)
    tokens = statistics.mean(sum(row) for row in lengths)
    works = floors_of(trainer, workload, lengths[-1], phases["seconds"])
    if args.profile:
        write_profile(trainer, batches[0], args.profile)
    operations = sum(work.operations for series in works.values() for work in series)
    return {
        "kind": "ppo_step",
        "workload": asdict(workload),
        "standard": replace(workload, micro=0) == replace(WORKLOADS[workload.name], micro=0),
        "engine": type(trainer.engine).__name__,
        "asked_engine": args.engine,
        "options": options,
        "memory": args.memory,
        "machine": machine.describe(run.device),
        "warm_up_seconds": warm,
        "step_seconds": seconds,
        "seconds": step,
        "samples_per_second": workload.batch / step,
        "tokens_per_second": tokens / step,
        "mean_length": tokens / workload.batch,
        "optimizer_steps": workload.steps,
        "operations": operations,
        "utilisation": operations / step / peak,
        "peak_rate": peak,
        "phases": phases["seconds"],
        "floors": {
            name: {
                "overlapped": floors.overlapped(series, rates),
                "in_turn": floors.in_turn(series, rates),
            }
            for name, series in works.items()
        },
        "rates": asdict(rates),
        "peak_bytes": {"step": whole_peak, **phases["peak_bytes"]},
        "first_update_seconds": first,
    }


def check_lengths(workload: Any, lengths: list[list[int]]) -> None:
    """RuntimeError if replies do not end as the workload says: it would be another workload."""
    rows = [length for row in lengths for length in row]
    found, wanted = statistics.mean(rows), workload.expected_length
    # A geometric length's deviation is about its mean; the policy drifts a little besides.
    slack = 0.0 if workload.mean_length is None else wanted * (0.2 + 4 / len(rows) ** 0.5)
    if abs(found - wanted) > slack:
        raise RuntimeError(f"replies have {found:.1f} tokens on average, not {wanted:.1f}.")


def report(found: dict[str, Any]) -> str:
    """The figures on the screen."""
    lines = [
        f"{found['workload']['name']} on {found['machine']['hardware']}: "
        f"{found['seconds']:.3f} s a step, {found['samples_per_second']:.2f} samples/s, "
        f"{found['tokens_per_second']:.0f} tokens/s, utilisation {found['utilisation']:.1%}, "
        f"first update after {found['first_update_seconds']:.1f} s",
        f"{'phase':<18}{'seconds':>10}{'floor':>10}{'ratio':>8}",
    ]
    for name, seconds in found["phases"].items():
        floor = found["floors"].get(name, {}).get("overlapped")
        beside = f"{floor:>10.4f}{seconds / floor:>8.1f}" if floor else ""
        lines.append(f"{name:<18}{seconds:>10.4f}{beside}")
    peaks = ", ".join(f"{k} {v / 1e9:.2f} GB" for k, v in found["peak_bytes"].items())
    return "\n".join([*lines, f"peaks: {peaks}"])


def write(found: dict[str, Any], path: Path | None) -> None:
    """The figures as JSON."""
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {path}")


def arguments(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The command line, and what of it is stage 3's own."""
    parser = argparse.ArgumentParser(description="Measure a PPO step.")
    add_workload_options(parser)
    parser.add_argument("--engine", choices=ENGINES, default="auto")
    count = at_least(1)
    parser.add_argument("--updates", type=count, default=6, help="steps of each pass")
    parser.add_argument("--warm-up", type=count, default=2, help="steps before them, 1 or more")
    parser.add_argument("--micro-tokens", type=count, help="tokens a forward pass at most")
    parser.add_argument("--memory", type=float, help="gigabytes of the GPU to take at most")
    parser.add_argument("--json", type=json_file, help="file to write")
    parser.add_argument("--profile", type=Path, help="file for the longest operations by phase")
    args, options = parser.parse_known_args(argv)
    if args.micro_tokens is not None:
        options += ["--ppo.microbatch_tokens", str(args.micro_tokens)]
    return args, options


def main(argv: list[str]) -> None:
    """Command line."""
    args, options = arguments(argv)
    found = measure(args, options)
    print(report(found))
    write(found, args.json)


if __name__ == "__main__":
    guarded(main)
