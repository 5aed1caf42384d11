"""Write the demo's inputs: data files, a tokenizer and a base model of random weights.

    python scripts/demo/make.py --out runs/demo

leaves data/*.jsonl and base/ under `--out`, the same bytes for the same seed. No prompt of a test
file occurs in a training file.
"""

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

from pairs import make_pair, prefers
from world import gold, make_prompt, make_reply

SIZES = {"sft": 12000, "preference": 16000, "prompts": 4000}
TEST_SIZES = {"sft_test": 400, "preference_test": 800, "prompts_test": 400}
VOCABULARY = 1024
TRANSCRIPT = "Guest:\n{prompt}\nDesk:\n{reply}"
"""A row as configs/demo.yaml renders it, for the tokenizer to learn from."""
END = "<|endoftext|>"


def distinct_prompts(rng: random.Random) -> Iterator[str]:
    """Prompts that never repeat."""
    seen: set[str] = set()
    while True:
        prompt = make_prompt(rng)
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


def preference_row(rng: random.Random, prompt: str, noisy: bool) -> dict[str, str]:
    """Two replies of different worth; clean labels where `noisy` is false."""
    first, second = make_pair(rng, prompt)
    if noisy:
        first_wins = prefers(rng, prompt, first, second)
    else:
        first_wins = gold(prompt, first) > gold(prompt, second)
    chosen, rejected = (first, second) if first_wins else (second, first)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def make_rows(seed: int) -> dict[str, list[dict[str, str]]]:
    """The rows of each file, keyed by its name; each prompt is in one file only."""
    rng = random.Random(seed)
    prompts = distinct_prompts(rng)
    rows: dict[str, list[dict[str, str]]] = {}
    for name, size in {**SIZES, **TEST_SIZES}.items():
        own = [next(prompts) for _ in range(size)]
        if name.startswith("sft"):
            rows[name] = [{"prompt": p, "completion": make_reply(rng, p)} for p in own]
        elif name.startswith("preference"):
            noisy = name == "preference"
            rows[name] = [preference_row(rng, p, noisy) for p in own]
        else:
            rows[name] = [{"prompt": p} for p in own]
    return rows


def write_base(folder: Path, texts: Iterable[str], seed: int) -> None:
    """A byte-level BPE tokenizer trained on `texts`, and a small GPT-2 of random weights.

    The tokenizer has no pad token, as GPT-2's has none: stage 1 adds one.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, bos_token=END, model_max_length=128
    )
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token_id
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=128,
        n_embd=128,
        n_layer=3,
        n_head=4,
        initializer_range=0.08,  # about 1/sqrt(n_embd); with GPT-2's 0.02 it learns to copy late
        bos_token_id=end,
        eos_token_id=end,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = make_rows(args.seed)
    data = args.out / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, content in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in content)
        (data / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    texts = (TRANSCRIPT.format(prompt=r["prompt"], reply=r["completion"]) for r in rows["sft"])
    write_base(args.out / "base", texts, args.seed)


if __name__ == "__main__":
    main()
