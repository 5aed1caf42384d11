"""Measure log-probs and entropy behind the body: our kernels beside torch's, TRL's and Liger's.

    python scripts/bench/logprobs.py [--rows 32] [--response 128] [--repeats 20] [--json out.json]

A GPT-2 of no layers: embeddings, final norm and tied head, so that nearly everything is the way
from hidden states to log-probs and back to the head's gradient. bf16 autocast on a GPU, fp32 on a
CPU. Our Actor, which makes logits a part at a time and again in the backward pass, runs with its
own kernels (`ours`), with torch's operators (`torch`) and with TRL's kernel in their place (`trl`).
Liger's functions take hidden states and the head's weight themselves: cross-entropy a token
(`liger-ce`, without the entropy, in its own chunks and in 16 times those) and, on a GPU of compute
capability 9.0 with nvidia-cutlass-dsl, log-probs and entropy in one kernel (`liger-cute`). What is
not installed is said and left out; a peer that fails is said, and the exit status is 1. Gaps: the
largest differences from torch's operators in fp32, of log-probs in nats and of the head's gradient
relative to its largest entry.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.runtime.cli import guarded
from scripts.bench.ppo_step import at_least, json_file, write

Call = Callable[[Any, Any, int], Any]
"""Log-probs (B, T) of an actor's ids (B, L) and their last T."""
Way = Callable[[], AbstractContextManager[Call]]
"""Within it the call, and its backward pass, go that way."""
OURS = ("torch", "ours")
PEERS = ("triton", "liger-kernel", "nvidia-cutlass-dsl")


def _actor(logprobs_of: Any) -> Way:
    @contextmanager
    def ready() -> Iterator[Call]:
        with patch("cores.models.actor.logprobs_on", lambda device: logprobs_of):
            yield lambda actor, ids, response: actor(ids, None, response)[0]

    return ready


def _from_states(function: Callable[[Any, Any, Any], Any]) -> Way:
    """`function` of hidden states (N, d), weight (V, d) and ids (N,), all in the compute dtype."""

    def run(actor: Any, ids: Any, response: int) -> Any:
        import torch

        from cores.models.body import hidden_states
        from cores.models.rows import Rows, before_replies

        model = actor.model
        states = hidden_states(model.base_model, Rows(ids, None, response))
        states = before_replies(states, response).flatten(0, 1)
        dtype = torch.bfloat16 if torch.is_autocast_enabled(ids.device.type) else torch.float32
        chosen = ids[:, -response:].flatten()
        found = function(states.to(dtype), model.lm_head.weight.to(dtype), chosen)
        return found.view(len(ids), response)

    return lambda: nullcontext(run)


def _trl() -> Way:
    from trl.trainer.utils import selective_log_softmax_and_entropy

    def logprobs(logits: Any, ids: Any, temperature: float, *unused: Any) -> Any:
        return selective_log_softmax_and_entropy(logits, ids, False, temperature)

    return _actor(logprobs)


def _liger_ce(chunk: int) -> Way:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction as Function

    # No bias, class weights, smoothing or cap; -100 is no id; no loss of z; sums in bf16; the rest
    # is what else it could return. autograd's apply takes no names.
    options = (None, None, -100, 0.0, 0.0, "none", None, False, None, False, False, False)
    return _from_states(
        lambda states, weight, ids: (
            -Function.apply(states, weight, ids, *options, None, None, chunk)[0]
        )
    )


def _liger_cute() -> Way:
    import cutlass  # noqa: F401
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction as Function

    return _from_states(
        lambda states, weight, ids: -Function.apply(states, weight, ids, 1.0, -100, 1, True)[0]
    )


def ways(device: Any) -> dict[str, Way]:
    """Those that are installed, by name; our own `torch` first."""
    from cores.models.actor import logprobs_on, token_logprobs

    found = {"torch": _actor(token_logprobs)}
    if logprobs_on(device) is not token_logprobs:
        found["ours"] = _actor(logprobs_on(device))
    makers: dict[str, Callable[[], Way]] = {"trl": _trl}
    if device.type == "cuda":
        makers |= {"liger-ce": lambda: _liger_ce(1), "liger-ce x16": lambda: _liger_ce(16)}
        makers["liger-cute"] = _liger_cute
    else:
        print("ours and Liger's: left out, their kernels need a GPU", flush=True)
    for name, make in makers.items():
        try:
            found[name] = make()
        except ImportError as error:
            print(f"{name}: left out, {error}", flush=True)
    return found


def seconds_of(work: Callable[[], Any], device: Any, repeats: int) -> float:
    """Median."""
    from scripts.bench.machine import synchronize

    found = []
    for _ in range(3 + repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return statistics.median(found[3:])


def kernel_seconds(work: Callable[[], Any]) -> float:
    """Of a GPU's kernels alone, which is what is left where passes are captured."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
        for _ in range(5):
            work()
        torch.cuda.synchronize()
    return sum(each.self_device_time_total for each in seen.key_averages()) / 5e6


def there_and_back(call: Call, actor: Any, ids: Any, response: int, bf16: bool) -> tuple[Any, Any]:
    """Log-probs (B, T), and the gradient (V, d) of their mean by the head."""
    import torch

    actor.zero_grad(set_to_none=True)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=bf16):
        found = call(actor, ids, response)
    found.mean().backward()
    return found.detach().float(), actor.model.lm_head.weight.grad


def cell(
    way: Call, actor: Any, ids: Any, response: int, repeats: int, exact: tuple[Any, Any]
) -> dict[str, Any]:
    """Seconds forward, and forward and back; bytes at the peak beyond what was there; gaps."""
    import torch

    from scripts.bench import machine

    device = ids.device
    enabled = device.type == "cuda"

    def forward() -> None:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            way(actor, ids, response)

    def both() -> None:
        there_and_back(way, actor, ids, response, enabled)

    ours, gradient = there_and_back(way, actor, ids, response, enabled)
    found = {
        "gap": (ours - exact[0]).abs().max().item(),
        "gradient_gap": ((gradient - exact[1]).abs().max() / exact[1].abs().max()).item(),
        "forward_seconds": seconds_of(forward, device, repeats),
    }
    found["both_seconds"] = seconds_of(both, device, repeats)
    if enabled:
        found["forward_kernel_seconds"] = kernel_seconds(forward)
        found["both_kernel_seconds"] = kernel_seconds(both)
        del gradient
        actor.zero_grad(set_to_none=True)
        before = torch.cuda.memory_allocated()
        machine.reset_peak(device)
        both()
        found["peak_bytes"] = machine.peak_bytes(device) - before
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that the JSON holds; a line on the screen a way."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from cores.models import Actor
    from cores.models.actor import token_logprobs
    from scripts.bench import machine

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=0,
        vocab_size=args.vocabulary,
        n_embd=args.width,
        n_positions=1 + args.response,
        bos_token_id=0,
        eos_token_id=0,
        embd_pdrop=0.0,
    )
    model: Any = GPT2LMHeadModel(config)
    actor = Actor(model.to(device), temperature=1.0)
    ids = torch.randint(args.vocabulary, (args.rows, 1 + args.response), device=device)
    with _actor(token_logprobs)() as call:
        exact = there_and_back(call, actor, ids, args.response, bf16=False)
    cells, failed = {}, []
    for name, way in ways(device).items():
        try:
            with way() as call:
                found = cell(call, actor, ids, args.response, args.repeats, exact)
        except Exception as error:
            if name in OURS:
                raise
            # A peer's kernel may fail in any way; the others go on.
            print(f"{name}: failed, {type(error).__name__}: {error}", flush=True)
            failed.append(name)
            continue
        cells[name] = found
        times = [f"{key} {1e3 * value:.2f} ms" for key, value in found.items() if "seconds" in key]
        memory = f"{found['peak_bytes'] / 1e6:.0f} MB, " if "peak_bytes" in found else ""
        gaps = f"gaps {found['gap']:.1e} and {found['gradient_gap']:.1e}"
        print(f"{name}: {', '.join(times)}, {memory}{gaps}", flush=True)
    return {
        "kind": "logprobs",
        "rows": args.rows * args.response,
        "vocabulary": args.vocabulary,
        "width": args.width,
        "machine": machine.describe(device),
        "peers": {package: machine.version_of(package) for package in PEERS},
        "cells": cells,
        "failed": failed,
    }


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure log-probs and entropy.")
    count = at_least(1)
    parser.add_argument("--rows", type=count, default=32)
    parser.add_argument("--response", type=count, default=128, help="tokens of each row")
    parser.add_argument("--vocabulary", type=count, default=50304)
    parser.add_argument("--width", type=count, default=768, help="of hidden states")
    parser.add_argument("--repeats", type=count, default=20)
    parser.add_argument("--json", type=json_file, help="file to write")
    args = parser.parse_args(argv)
    found = measure(args)
    write(found, args.json)
    sys.exit(bool(found["failed"]))


if __name__ == "__main__":
    guarded(main)
