"""Tokenizers as another version of transformers reads them: python tokenizer.py FOLDER..."""

import json
import sys
from pathlib import Path

import transformers
from transformers import AutoTokenizer

for folder in sys.argv[1:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert len(tokenizer) <= rows
    text = str(tokenizer.decode(tokenizer("Good evening, room 214.")["input_ids"]))
    assert text.endswith("214.")
print(f"{len(sys.argv) - 1} tokenizers read by transformers {transformers.__version__}")
