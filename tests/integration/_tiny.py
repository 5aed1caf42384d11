"""Tiny models, tokenizers and data files for the command-line tests, the same on every machine."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from _tokenizers import gpt2_like
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

SEED = 7
POSITIONS = 512
THINGS = "towel blanket taxi map lamp kettle newspaper pillow key umbrella".split()
WORDS = "please bring a to room the now yes of course I will it at once no sorry never".split()
TURN = "<|im_start|>{role}\n{content}<|im_end|>\n"
CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def words() -> PreTrainedTokenizerFast:
    """A token a word, so that any sampled reply can be read back from its text; ChatML template."""
    roles = [f"<|im_start|>{role}" for role in ("system", "user", "assistant")]
    names = ["<|pad|>", "<|im_end|>", *roles, *WORDS, *THINGS, *map(str, range(100))]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    fast.chat_template = CHAT
    return fast


def make_gpt2(folder: Path, width: int = 32) -> Path:
    """A random GPT-2 whose pad is its eos, as the real one's would be."""
    return _save(
        GPT2LMHeadModel, GPT2Config(n_positions=POSITIONS, n_embd=width, n_layer=2, n_head=2),
        gpt2_like(), folder,
    )  # fmt: skip


def make_llama(folder: Path, width: int = 32) -> Path:
    """A random Llama with a chat template and a pad of its own."""
    config = LlamaConfig(
        hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=POSITIONS,
    )  # fmt: skip
    return _save(LlamaForCausalLM, config, words(), folder)


def make_data(folder: Path, rows: int = 60) -> dict[str, Path]:
    """Files with the columns of yahma/alpaca-cleaned and Dahoas/rm-static."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(SEED)
    requests = [(draw.choice(THINGS), draw.randrange(100)) for _ in range(rows)]
    instructions = [
        {
            "instruction": f"please bring a {thing}",
            "input": f"to room {number}" if number % 2 else "",
            "output": f"yes of course I will bring the {thing} at once",
        }
        for thing, number in requests
    ]
    pairs = [
        {
            "prompt": f"please bring a {thing} to room {number}",
            "response": " yes",
            "chosen": f" yes of course I will bring the {thing} at once",
            "rejected": " no never",
        }
        for thing, number in requests
    ]
    return {
        "sft": write_jsonl(folder / "alpaca.jsonl", instructions),
        "preference": write_jsonl(folder / "rm_static.jsonl", pairs),
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows one a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _save(
    model: type[PreTrainedModel], config: Any, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> Path:
    config.vocab_size = len(tokenizer)
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(SEED)
    model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
