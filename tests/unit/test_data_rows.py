"""What stands before the text of a row."""

from copy import deepcopy
from pathlib import Path

import pytest
from _data_helpers import CHAT, ROLES, config, write_jsonl
from _tokenizers import CHATML, llama_like

from cores.config.schema import TemplateSection
from cores.data import preference_data, prompt_data, sft_data


@pytest.mark.parametrize("template", [CHAT, ROLES])
def test_one_bos_whoever_writes_it(template: TemplateSection, tmp_path: Path) -> None:
    """Invariant 27: a chat template writes BOS itself, so that none is put before its text; under
    texts of our own it is the tokenizer's."""
    tokenizer = deepcopy(llama_like())
    tokenizer.chat_template = "{{ bos_token }}" + CHATML.replace("<|im_end|>", "</s>")
    row = {"prompt": "Q", "completion": "A", "chosen": "A", "rejected": "B"}
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    (sft,) = sft_data(config(path, template), tokenizer).train
    (pair,) = preference_data(config(path, template), tokenizer).train
    (prompt,) = prompt_data(config(path, template), tokenizer).train
    for ids in (sft["input_ids"], pair["chosen_ids"], pair["rejected_ids"], prompt["input_ids"]):
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
