"""Measure the PPO step of `trl==1.12.0` (trl.experimental.ppo, its last release) on W1 or W4.

    python scripts/bench/peers/trl_ppo.py --workload W4 [--updates 6] [--json out.json]

In an environment of its own, or with that release before the installed one on PYTHONPATH. The same
random shapes, prompt lengths, excluded ids, fixed reply lengths, epochs and minibatches as ours
(scripts/bench/workloads.py), and the same 16 optimizer steps an update:
research/experiments/peer_trl.py says how, and what else its settings are. Given to TRL beyond its
own ways: all prompts are generated at once (--forward-rows), and on a GPU everything runs under
bf16 autocast, where TRL alone would leave rollout and scoring in fp32.

Seconds of a step are those between the ends of two of TRL's updates; its rollout's are taken around
its `batch_generation`.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from research.experiments.peer_trl import check_release, optimizer_steps, settings
from scripts.bench.ppo_step import add_workload_options, json_file, workload_from, write


def peer_settings(workload: Any, updates: int, forward_rows: int | None) -> dict[str, Any]:
    """Arguments of TRL's PPOConfig for `updates` steps of the workload.

    UserError for geometric lengths, which TRL is not set up for here.
    """
    from scripts.bench.workloads import settings as ours

    if workload.mean_length is not None:
        raise UserError("--lengths: TRL is measured on fixed lengths alone; leave it out.")
    more = {
        "total_episodes": updates * workload.batch,
        "local_rollout_forward_batch_size": forward_rows or workload.batch,
        "bf16": workload.precision == "bf16",
    }
    return settings(ours(workload, "hf"), Path(tempfile.mkdtemp(prefix="trl-")), more)


def word_tokenizer(vocabulary: int) -> Any:
    """A tokenizer of `vocabulary` words, with pad and eos where the stand-in of ours has them."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from scripts.bench.workloads import Ids

    ids = Ids(vocabulary, stops=False)
    words = [f"w{i}" for i in range(vocabulary)]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=words[ids.pad_token_id],
        eos_token=words[ids.eos_token_id],
        padding_side="left",
    )


def models_of(workload: Any, tokenizer: Any, device: Any) -> dict[str, Any]:
    """The four roles, pad and eos excluded from what is sampled as in ours."""
    from cores.models.vocabulary import exclude_tokens
    from scripts.bench.made import random_model, random_policy
    from scripts.bench.workloads import shape

    def policy() -> Any:
        model = random_policy(workload, device)
        exclude_tokens(model, [tokenizer.pad_token_id, tokenizer.eos_token_id])
        return model.to(device)

    def scalar() -> Any:
        config = shape(workload.scalar, workload.prompt + workload.response)
        return random_model(config, device, scalar=True)

    return {
        "model": policy(),
        "ref_model": policy(),
        "reward_model": scalar(),
        "value_model": scalar(),
    }


def step_clock(ends: list[float]) -> Any:
    """A callback that notes when each update ends."""
    import torch
    from transformers import TrainerCallback

    class StepClock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    return StepClock()


def around(call: Callable[..., Any], device: Any, seconds: list[float]) -> Callable[..., Any]:
    """`call`, whose seconds are noted."""
    from scripts.bench.machine import synchronize

    def timed(*arguments: Any, **named: Any) -> Any:
        synchronize(device)
        start = time.perf_counter()
        result = call(*arguments, **named)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
        return result

    return timed


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that the JSON holds."""
    from unittest.mock import patch

    import torch
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    from cores.runtime.launch import quiet
    from scripts.bench import machine
    from scripts.bench.workloads import SHAPES, prompts_of

    quiet()
    workload = workload_from(args)
    updates = args.warm_up + args.updates
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given = peer_settings(workload, updates, args.forward_rows)
    tokenizer = word_tokenizer(SHAPES[workload.policy].vocab_size)
    prompts = prompts_of(workload, updates * workload.batch, seed=0)
    ends: list[float] = []
    rollouts: list[float] = []
    trainer = PPOTrainer(
        args=PPOConfig(**given),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        callbacks=[step_clock(ends)],
        **models_of(workload, tokenizer, device),
    )
    generation = around(ppo_trainer.batch_generation, device, rollouts)
    machine.reset_peak(device)
    before = machine.since_start()
    start = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(patch.object(ppo_trainer, "batch_generation", generation))
        if given["bf16"]:
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
        trainer.train()
    steps = int(next(iter(trainer.optimizer.state.values()))["step"])
    if steps != optimizer_steps(given):
        raise RuntimeError(f"TRL took {steps} optimizer steps, not {optimizer_steps(given)}.")
    seconds = [end - begin for begin, end in zip([start, *ends], ends, strict=False)]
    step = statistics.median(seconds[args.warm_up :])
    return {
        "kind": "peer",
        "peer": "TRL 1.12.0",
        "workload": asdict(workload),
        "machine": machine.describe(device),
        "settings": given,
        "warm_up_seconds": seconds[: args.warm_up],
        "step_seconds": seconds[args.warm_up :],
        "seconds": step,
        "samples_per_second": workload.batch / step,
        "rollout_seconds": statistics.median(rollouts[args.warm_up :]),
        "optimizer_steps": steps // updates,
        "peak_bytes": {"step": machine.peak_bytes(device)},
        "first_update_seconds": before + seconds[0],
    }


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure TRL's PPO step.")
    add_workload_options(parser)
    parser.add_argument("--updates", type=int, default=6, help="steps that are measured")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--forward-rows", type=int, help="rows TRL generates and scores at once")
    parser.add_argument("--json", type=json_file, help="file to write")
    args = parser.parse_args(argv)
    check_release()
    found = measure(args)
    print(
        f"{found['peer']} {args.workload}: {found['seconds']:.3f} s a step, of them "
        f"{found['rollout_seconds']:.3f} s of rollout, {found['samples_per_second']:.2f} samples/s"
    )
    write(found, args.json)


if __name__ == "__main__":
    guarded(main)
