"""Tiny encoder-decoders of T5's family, rows of theirs, and the arguments of a short run."""

from pathlib import Path
from typing import Any

import torch
from _tiny import write_jsonl
from _tokenizers import t5_like
from transformers import AutoModelForSeq2SeqLM, MT5Config, T5Config, UMT5Config

KINDS = {"t5": T5Config, "mt5": MT5Config, "umt5": UMT5Config}
ASKED = ["用户：天空为什么是蓝的？\n小元：", "Name a fruit.\nAnswer: ", "写一句话", "Two and two?"]
ANSWERS = ["因为光会散射。", "A pear", "今天很好。\n明天更好。", "Four, I think."]
SHORT = """--template.kind none --sft.batch_size 4 --sft.microbatch_size 2 --sft.max_steps 3
--sft.learning_rate 1e-2 --data.test_fraction 0 --sft.max_length 64""".split()


def make_t5(folder: Path, kind: str = "t5", **changes: Any) -> Path:
    """A random model of the family and its tokenizer; a head of its own but in t5."""
    sizes: dict[str, Any] = {
        "vocab_size": 640, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
        "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "dropout_rate": 0.1,
        "tie_word_embeddings": kind == "t5", **changes,
    }  # fmt: skip
    torch.manual_seed(3)
    AutoModelForSeq2SeqLM.from_config(KINDS[kind](**sizes)).save_pretrained(folder)
    t5_like().save_pretrained(folder)
    return folder


def options(base: Path, tmp_path: Path, out: str = "run") -> list[str]:
    """Arguments of a run over eight rows, some of several turns."""
    told = [{"prompt": p, "completion": a} for p, a in zip(ASKED, ANSWERS, strict=True)]
    file = write_jsonl(tmp_path / "rows.jsonl", told * 2)
    return [
        "--model.path", str(base), "--data.sft.path", str(file),
        "--output_dir", str(tmp_path / out), *SHORT,
    ]  # fmt: skip
