"""Replies by vLLM, and how many hold an id that no reply may hold: python vllm_replies.py RUN N."""

import json
import os
import sys
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCH_COMPILE_DISABLE": "1",
}


def main(run: Path, count: int) -> None:
    """Plain sampling, as a user would: no bias, no list of allowed ids."""
    from vllm import LLM, SamplingParams, TokensPrompt

    told = json.loads((run / "ppo/generation_config.json").read_text(encoding="utf-8"))
    lines = (run / "data/prompts_test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [f"Guest:\n{json.loads(line)['prompt']}\nDesk:\n" for line in lines]
    engine = LLM(str(run / "ppo"), dtype="float32", enforce_eager=True, max_model_len=112)
    tokenizer = engine.get_tokenizer()
    asked = [
        TokensPrompt(prompt_token_ids=tokenizer(texts[i % len(texts)])["input_ids"])
        for i in range(count)
    ]
    how = SamplingParams(temperature=1.0, max_tokens=48, detokenize=False)
    replies = [o.outputs[0] for o in engine.generate(asked, how, use_tqdm=False)]
    banned = set(told["suppress_tokens"])
    held = sum(bool(banned & set(reply.token_ids)) for reply in replies)
    ended = sum(reply.finish_reason == "stop" for reply in replies) / count
    print(f"{count:,} replies, {ended:.1%} ended, {held} with one of {len(banned)} excluded ids")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
