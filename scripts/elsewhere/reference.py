"""What another tool must agree with: python reference.py FOLDER OUT.json [BASE].

Greedy replies of stock transformers in fp32 to held-out prompts of the demo, with the log-prob of
each token over the whole softmax, as an engine that excludes nothing has it. With BASE the folder
holds an adapter alone, which peft puts onto that base.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS, TOKENS = 20, 32
PROMPTS = Path("runs/demo/data/prompts_test.jsonl")


def model_of(folder: str, base: str | None, rows: int) -> Any:
    """The folder's model, or its adapter on `base`, which has `rows` rows or more."""
    if base is None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    from peft import PeftModel

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if rows > model.config.vocab_size:
        model.resize_token_embeddings(rows, mean_resizing=False)
    return PeftModel.from_pretrained(model, f"{folder}/adapter").eval()


@torch.no_grad()
def main(folder: str, out: str, base: str | None = None) -> None:
    """Write [{prompt, ids, reply, logprobs}]."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, found = model_of(folder, base, len(tokenizer)), []
    for line in PROMPTS.read_text(encoding="utf-8").splitlines()[:ROWS]:
        text = f"Guest:\n{json.loads(line)['prompt']}\nDesk:\n"
        ids = tokenizer(text, return_tensors="pt").input_ids
        end = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
        whole = model.generate(input_ids=ids, do_sample=False, max_new_tokens=TOKENS, **end)
        first = ids.shape[1]
        logprobs = model(whole).logits[0, first - 1 : -1].float().log_softmax(dim=-1)
        reply = whole[0, first:]
        told = logprobs.gather(1, reply[:, None])[:, 0].tolist()
        found.append({"prompt": text, "ids": ids[0].tolist(), "reply": reply.tolist(),
                      "logprobs": told})  # fmt: skip
    Path(out).write_text(json.dumps(found), encoding="utf-8")
    print(f"{len(found)} greedy replies of {folder}")


if __name__ == "__main__":
    main(*sys.argv[1:])
