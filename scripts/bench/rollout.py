"""Measure rollouts alone: tokens a second by engine, batch size and reply length.

    python scripts/bench/rollout.py --model gpt2 --engine hf graph --batch 16 128 512
        --response 64 128 [--lengths fixed geometric] [--prompt 64] [--json out.json]

The engine is stage 3's own (`cores.rollout.build_engine`) on random weights: fp32 masters under
bf16 autocast on a GPU, fp32 on a CPU; llama-7b is a frozen bf16 base with adapters of rank 16. A
figure is the median of --repeats rollouts after --warm-up others, in which an engine prepares for
their shape; the seconds of the very first are kept apart. Geometric lengths have a mean of a
quarter of the response length, which is then the most. A cell that runs out of memory is written as
such. Other options are stage 3's own, as in ppo_step.py. vllm needs its environment
(scripts/test_vllm.sh); its seconds have the push of all weights in them, and the proofs.
"""

import argparse
import gc
import itertools
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from scripts.bench.ppo_step import at_least, check_lengths, json_file, write

MODELS = ("tiny", "gpt2", "opt-1.3b", "llama-7b")
ENGINES = ("auto", "graph", "hf", "vllm")


def cell(
    workload: Any, engine: str, warm_up: int, repeats: int, options: list[str]
) -> dict[str, Any]:
    """One engine, batch and length."""
    import torch

    from cores.draws import uniforms
    from cores.runtime.launch import launch
    from scripts.bench import floors, machine
    from scripts.bench.workloads import prompts_of, settings

    config = settings(workload, engine, options)
    at = launch(config)
    device = at.device
    sampler, model = engine_of(workload, config, at)
    prompts = prompts_of(workload, workload.batch, seed=0)
    machine.reset_peak(device)
    seconds, lengths = [], []
    for turn in range(warm_up + repeats):
        numbers = uniforms(len(prompts), workload.response, 0, "bench", turn)
        machine.synchronize(device)
        start = time.perf_counter()
        rollout = sampler.generate(prompts, numbers)
        machine.synchronize(device)
        seconds.append(time.perf_counter() - start)
        lengths.append(rollout.lengths.tolist())
    check_lengths(workload, lengths)
    size = torch.finfo(torch.bfloat16 if workload.precision == "bf16" else torch.float32).bits // 8
    known, (rates, _) = floors.shape_of(model), machine.rates_of(device)
    works = [floors.rollout(known, workload.prompt, row, size) for row in lengths[warm_up:]]
    floor = {
        "overlapped": statistics.median(floors.overlapped(series, rates) for series in works),
        "in_turn": statistics.median(floors.in_turn(series, rates) for series in works),
    }
    rate = [sum(row) / s for row, s in zip(lengths[warm_up:], seconds[warm_up:], strict=True)]
    return {
        "workload": asdict(workload),
        "engine": type(sampler).__name__.removesuffix("Engine").lower(),
        "first_call_seconds": seconds[0],
        "seconds": seconds[warm_up:],
        "tokens_per_second": statistics.median(rate),
        "mean_length": statistics.mean(sum(row) / len(row) for row in lengths),
        "floors": floor,
        "times_floor": statistics.median(seconds[warm_up:]) / floor["overlapped"],
        "peak_bytes": machine.peak_bytes(device),
    }


def engine_of(workload: Any, config: Any, at: Any) -> tuple[Any, Any]:
    """The engine and the plain model that it samples from."""

    from cores.models import add_lora
    from cores.models.actor import plain_model
    from cores.models.loading import exclude_from
    from cores.rollout import build_engine
    from scripts.bench import made, workloads

    tokenizer = workloads.tokenizer_of(workload)
    model = made.as_loaded(made.random_policy(workload, at.device), config.model)
    exclude_from(model, tokenizer)
    if workload.lora:
        model = plain_model(add_lora(model, config.ppo.lora, "CAUSAL_LM", "ppo.lora"))
    model.to(at.device)
    engine = build_engine(config, model, tokenizer, workload.response, at, trains=True)
    return engine, model


def grid(args: argparse.Namespace, device_type: str) -> list[tuple[Any, str]]:
    """All cells that were asked for, as workloads and engines."""
    from scripts.bench.workloads import Workload

    cells = []
    for length, response, batch, engine in itertools.product(
        args.lengths, args.response, args.batch, args.engine
    ):
        if length == "geometric" and response <= 4:
            raise UserError(f"--response {response}: geometric lengths need more than 4 tokens.")
        workload = Workload(
            name=f"{args.model} {args.prompt}->{response}",
            policy=args.model,
            scalar=args.model,
            batch=batch,
            prompt=args.prompt,
            response=response,
            epochs=1,
            minibatch=batch,
            micro=batch,
            lora=16 if args.model == "llama-7b" else 0,
            precision="bf16" if device_type == "cuda" else "fp32",
            mean_length=response / 4 if length == "geometric" else None,
        )
        cells.append((workload, engine))
    return cells


def measure(args: argparse.Namespace, options: list[str]) -> dict[str, Any]:
    """Everything that the JSON holds; a line on the screen a cell."""
    import torch

    from scripts.bench import machine

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cells = []
    for workload, engine in grid(args, device.type):
        kind = "fixed" if workload.mean_length is None else "geometric"
        label = f"{workload.name} {kind}, batch {workload.batch}, {engine}"
        try:
            found = cell(workload, engine, args.warm_up, args.repeats, options)
            print(
                f"{label}: {found['tokens_per_second']:.0f} tokens/s, "
                f"{found['times_floor']:.1f} times the floor, "
                f"first call {found['first_call_seconds']:.2f} s",
                flush=True,
            )
        except torch.cuda.OutOfMemoryError as error:
            found = {"workload": asdict(workload), "engine": engine, "failed": str(error)}
            print(f"{label}: out of memory", flush=True)
        cells.append(found | {"lengths": kind})
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return {
        "kind": "rollout",
        "model": args.model,
        "options": options,
        "machine": machine.describe(device),
        "cells": cells,
    }


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure rollouts.")
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--engine", nargs="+", choices=ENGINES, default=["auto"])
    count = at_least(1)
    parser.add_argument("--batch", nargs="+", type=count, default=[16, 128, 512, 1024])
    parser.add_argument("--response", nargs="+", type=count, default=[64, 128, 256])
    parser.add_argument("--prompt", type=count, default=64, help="tokens of every prompt")
    parser.add_argument("--lengths", nargs="+", choices=("fixed", "geometric"), default=["fixed"])
    parser.add_argument("--warm-up", type=count, default=3, help="rollouts before, 1 or more")
    parser.add_argument("--repeats", type=count, default=5, help="rollouts that are measured")
    parser.add_argument("--json", type=json_file, help="file to write")
    args, options = parser.parse_known_args(argv)
    write(measure(args, options), args.json)


if __name__ == "__main__":
    guarded(main)
