"""A folder in vLLM: python vllm_replies.py MODEL REFERENCE.json [--replies N] [--adapter FOLDER].

Greedy replies and log-probs beside those of `reference.py`; then how many of N replies, sampled as
a user would, hold an id that no reply may hold.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

# In one process, on a CPU: nothing compiled, no threads bound, a small cache.
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1",
}
TOLERANCE = 1e-4
"""Nats a token."""


def main(options: argparse.Namespace) -> bool:
    """Print what was found in a line; whether vLLM agrees and samples no excluded id."""
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.lora.request import LoRARequest

    rows = json.loads(Path(options.reference).read_text(encoding="utf-8"))
    engine = LLM(
        options.model, dtype="float32", enforce_eager=True, max_model_len=112,
        max_num_seqs=256, enable_lora=options.adapter is not None,
    )  # fmt: skip
    adapter = LoRARequest("policy", 1, options.adapter) if options.adapter else None

    def generate(asked: list[list[int]], **how: Any) -> list[Any]:
        prompts = [TokensPrompt(prompt_token_ids=ids) for ids in asked]
        params = SamplingParams(detokenize=False, **how)
        return list(engine.generate(prompts, params, use_tqdm=False, lora_request=adapter))

    asked = [row["ids"] for row in rows]
    longest = max(len(row["reply"]) for row in rows)
    greedy = generate(asked, temperature=0.0, max_tokens=longest, logprobs=0)
    same, gap = 0, 0.0
    for out, row in zip(greedy, rows, strict=True):
        (reply,) = out.outputs
        same += list(reply.token_ids) == row["reply"]
        both = zip(reply.token_ids, reply.logprobs, row["reply"], row["logprobs"], strict=False)
        for token, told, expected, logprob in both:
            if token != expected:
                break
            gap = max(gap, abs(told[token].logprob - logprob))
    line = f"{same} of {len(rows)} greedy replies equal, log-probs within {gap:.1e}"
    held = 0
    if options.replies:
        told = json.loads(Path(options.model, "generation_config.json").read_text("utf-8"))
        banned = set(told["suppress_tokens"])
        many = [asked[i % len(asked)] for i in range(options.replies)]
        said = [out.outputs[0] for out in generate(many, temperature=1.0, max_tokens=48)]
        held = sum(bool(banned & set(reply.token_ids)) for reply in said)
        ended = sum(reply.finish_reason == "stop" for reply in said) / len(said)
        line += f"; {len(said):,} sampled replies, {ended:.1%} ended, {held} with one of "
        line += f"{len(banned)} excluded ids"
    print(line)
    return same == len(rows) and gap < TOLERANCE and held == 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("reference")
    parser.add_argument("--replies", type=int, default=0)
    parser.add_argument("--adapter")
    sys.exit(not main(parser.parse_args()))
