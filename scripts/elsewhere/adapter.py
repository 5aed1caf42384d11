"""An adapter on the base that it was trained on, without a merge: python adapter.py STAGE BASE.

Prints the largest difference of its logits from those that this project loads.
"""

import sys
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from cores.models import load_policy

stage, base = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(stage)
model: Any = AutoModelForCausalLM.from_pretrained(base)
model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
model = PeftModel.from_pretrained(model, f"{stage}/adapter").eval()
ours = load_policy(stage, dropout=False).eval()
ids = tokenizer("Guest:\nGood evening, room 214 here.\nDesk:\n", return_tensors="pt").input_ids
known = len(tokenizer) - 1  # pad's own logit is that of no token
with torch.no_grad():
    gap = (model(ids).logits - ours(ids).logits)[..., :known].abs().max().item()
print(f"largest difference of logits {gap:.1e}")
sys.exit(gap > 1e-4)
