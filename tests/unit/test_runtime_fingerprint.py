"""Fingerprints of models and tokenizers."""

import copy
from pathlib import Path

from _models import causal, toy_tokenizer

from cores.models import save_model
from cores.runtime.fingerprint import model_files, tokenizer_fingerprint


def test_fingerprints_notice_what_matters(tmp_path: Path) -> None:
    """Invariant 30: vocabulary, special tokens and chat template; weights, configs and tokenizers
    in sub-folders too, stage.json and logs not."""
    tokenizer = toy_tokenizer()
    first = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(copy.deepcopy(tokenizer)) == first
    for name, value in (("pad_token", "w9"), ("eos_token", "w9"), ("chat_template", "x")):
        changed = copy.deepcopy(tokenizer)
        setattr(changed, name, value)
        assert tokenizer_fingerprint(changed) != first, name
    grown = copy.deepcopy(tokenizer)
    grown.add_tokens(["new"])
    assert tokenizer_fingerprint(grown) != first
    save_model(causal("gpt2"), tokenizer, tmp_path)
    (tmp_path / "critic").mkdir()
    for name in ("critic/model.safetensors", "stage.json", "metrics.jsonl", "chat_template.jinja"):
        (tmp_path / name).write_text("x")
    found = set(model_files(tmp_path))
    assert {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"} < found
    assert {"critic/model.safetensors", "chat_template.jinja"} < found
    assert not {"stage.json", "metrics.jsonl"} & found
