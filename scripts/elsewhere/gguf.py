"""A GGUF file in llama.cpp: python gguf.py FILE REFERENCE.json.

Greedy replies and the log-probs of their tokens beside those of `reference.py`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import xllamacpp

TOLERANCE = 2e-2
"""Nats a token: llama.cpp rounds keys, values and some products to 16 bits."""


def main(file: str, reference: str) -> bool:
    """Print what was found in a line; whether llama.cpp agrees."""
    rows = json.loads(Path(reference).read_text(encoding="utf-8"))
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.warmup = 128, 1, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    same, gap, tokens = 0, 0.0, 0
    for row in rows:
        ask = {"prompt": row["prompt"], "max_tokens": len(row["reply"]), "temperature": 0.0,
               "logprobs": 1}  # fmt: skip
        told: dict[str, Any] = server.handle_completions(ask)
        said = told["choices"][0]["logprobs"]["content"]
        ids, expected = [place["id"] for place in said], row["reply"]
        same += (
            ids == expected[: len(ids)] and len(expected) - len(ids) <= 1
        )  # the end may be left out
        for place, token, logprob in zip(said, expected, row["logprobs"], strict=False):
            if place["id"] != token:
                break
            gap, tokens = max(gap, abs(place["logprob"] - logprob)), tokens + 1
    print(
        f"{same} of {len(rows)} greedy replies equal, log-probs of {tokens} tokens within {gap:.1e}"
    )
    return same == len(rows) and gap < TOLERANCE


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
