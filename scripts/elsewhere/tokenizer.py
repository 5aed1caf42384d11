"""Folders as another version of transformers reads them: python tokenizer.py FOLDER...

The tokenizer, and by the configuration's class the model, whose every weight must be there.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoTokenizer

for folder in sys.argv[1:]:
    told = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) <= told["vocab_size"]
    text = "Good evening, room 214."
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == text, folder
    (name,) = told["architectures"]
    model, report = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"], (folder, report)
    assert not report["unexpected_keys"], (folder, report)
    assert model.get_input_embeddings().weight.shape[0] == told["vocab_size"]
    with torch.no_grad():
        more = {"decoder_input_ids": ids} if told.get("is_encoder_decoder") else {}
        assert model.eval()(input_ids=ids, **more).logits.isfinite().all()
print(f"{len(sys.argv) - 1} folders read by transformers {transformers.__version__}")
