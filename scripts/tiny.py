"""Inputs of the examples that start from nothing: JSONL files, a tokenizer, a small model."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

END = "<|endoftext|>"


def write_rows(folder: Path, files: dict[str, list[dict[str, Any]]]) -> None:
    """`folder`/NAME.jsonl for each name, one row a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def write_base(
    folder: Path, texts: Iterable[str], vocabulary: int, positions: int, seed: int
) -> None:
    """A byte-level BPE tokenizer trained on `texts`, and a small GPT-2 of random weights.

    The tokenizer has at most `vocabulary` ids; with 257 or fewer every byte is its own. It has no
    pad token, as GPT-2's has none: stage 1 adds one.
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
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, bos_token=END, model_max_length=positions
    )
    tokenizer.save_pretrained(folder)
    end = tokenizer.eos_token_id
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=128,
        n_layer=3,
        n_head=4,
        initializer_range=0.08,  # about 1/sqrt(n_embd); with GPT-2's 0.02 it learns to copy late
        bos_token_id=end,
        eos_token_id=end,
    )
    config.update({"n_ctx": positions})  # the name that llama.cpp's converter reads
    GPT2LMHeadModel(config).save_pretrained(folder)
    weights = folder / "model.safetensors"  # the library writes it for its owner alone
    weights.chmod((folder / "config.json").stat().st_mode)
