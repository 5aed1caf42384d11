"""Tokens that a template adds, and the end it names."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import LORA, causal
from _tokenizers import chat_like, gpt2_like, llama_like
from peft import TaskType
from transformers import AutoTokenizer

from cores.config import TemplateSection
from cores.errors import UserError
from cores.models import add_lora, save_model, settle_pad_token, settle_tokens
from cores.models.bases import load_base
from cores.models.saving import merge_adapter
from cores.models.vocabulary import NEW_PAD, embedding, fit_vocabulary

MARKS = ["<|问|>", "### End"]


def settled(make: Any, **template: Any) -> tuple[Any, str | None]:
    tokenizer = copy.deepcopy(make())
    return tokenizer, settle_tokens(tokenizer, TemplateSection(**template))


@pytest.mark.parametrize("make", [gpt2_like, chat_like, llama_like])
def test_tokens_are_one_id_each(make: Any) -> None:
    """Special ones, also inside a Chinese text, and one of them may end a sequence."""
    tokenizer, note = settled(make, tokens=MARKS, eos_token="### End")
    first = len(make())
    assert len(tokenizer) == first + 2
    assert tokenizer.eos_token_id == first + 1
    assert note is not None
    assert note.startswith("tokens: 2 special tokens added, ### End ends a sequence in place of ")
    ids = tokenizer("你好<|问|>天气### End", add_special_tokens=False)["input_ids"]
    assert ids.count(first) == 1
    assert ids[-1] == first + 1
    assert "<|问|>" not in tokenizer.decode(ids, skip_special_tokens=True)


def test_tokens_outlive_saving(tmp_path: Path) -> None:
    """Later stages read the saved tokenizer and name none."""
    tokenizer, _ = settled(gpt2_like, tokens=MARKS, eos_token="### End")
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.eos_token == "### End"
    assert settle_tokens(again, TemplateSection(tokens=MARKS, eos_token="### End")) is None


def test_nothing_is_said_where_nothing_changes() -> None:
    tokenizer, note = settled(chat_like, tokens=["<|im_start|>"])
    assert (len(tokenizer), note) == (len(chat_like()), None)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ({"tokens": ["<a>", "<a>"]}, r"template\.tokens: '<a>' is empty or named twice"),
        ({"tokens": [" "]}, r"template\.tokens: ' ' is empty or named twice"),
        ({"eos_token": "<end>"}, r"template\.eos_token: '<end>' is not in the tokenizer's"),
    ],
)
def test_tokens_that_cannot_be(template: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        settled(gpt2_like, **template)


def test_pad_equal_to_bos_gets_a_token_of_its_own() -> None:
    """BOS stands before every row, and a row with pad inside is dropped."""
    tokenizer = copy.deepcopy(llama_like())
    tokenizer.pad_token = "<s>"
    note = settle_pad_token(tokenizer, None)
    assert note == f"pad token: {NEW_PAD} added (its pad token was bos)"
    assert tokenizer.bos_token == "<s>"


@pytest.mark.parametrize("kind", ["gpt2", "gptj"])
def test_new_tokens_start_at_the_mean_in_spare_rows_too(kind: str) -> None:
    """A base with more rows than ids: new ids take untrained rows, and get the mean of the rows
    that had ids, in embedding, head and bias."""
    tokenizer, _ = settled(gpt2_like, tokens=MARKS)
    known = len(gpt2_like())
    model = causal(kind, rows=known + 10)
    old = embedding(model).detach().clone()
    fit_vocabulary(model, tokenizer, known)
    new = embedding(model)
    assert saved_rows(model) == known + 10  # in memory they are as many as multiply fast
    torch.testing.assert_close(new[known : known + 2], old[:known].mean(0).expand(2, -1))
    assert torch.equal(new[known + 2 : known + 10], old[known + 2 :])
    head = model.get_output_embeddings()
    torch.testing.assert_close(head.weight[known], head.weight[:known].mean(0))
    if kind == "gptj":
        torch.testing.assert_close(head.bias[known], head.bias[:known].mean())


def test_an_adapter_merges_into_the_rows_it_was_trained_on(tmp_path: Path) -> None:
    """The base is read again for merging, and its new rows must be those of the training."""
    base = tmp_path / "base"
    causal("llama", rows=len(gpt2_like()) + 10).save_pretrained(base)
    gpt2_like().save_pretrained(base)
    tokenizer, _ = settled(gpt2_like, tokens=MARKS)
    settle_pad_token(tokenizer, None)
    model = load_base(base, tokenizer)
    rows = embedding(model).detach().clone()
    adapted = add_lora(model, LORA, TaskType.CAUSAL_LM, "sft.lora")
    save_model(adapted, tokenizer, tmp_path / "a", merge=False)
    merge_adapter(tmp_path / "a", tmp_path / "merged")
    merged = load_base(tmp_path / "merged", tokenizer)
    saved = len(gpt2_like()) + 10
    assert torch.equal(embedding(merged)[:saved], rows[:saved])


def test_the_end_is_told_to_other_tools(tmp_path: Path) -> None:
    """config.json and generation_config.json name the tokenizer's end."""
    tokenizer, _ = settled(gpt2_like, tokens=MARKS, eos_token="### End")
    settle_pad_token(tokenizer, None)
    model = causal("llama", rows=len(gpt2_like()))
    fit_vocabulary(model, tokenizer)
    save_model(model, tokenizer, tmp_path)
    stock = type(model).from_pretrained(tmp_path)
    ends = stock.generation_config.eos_token_id
    assert (ends if isinstance(ends, int) else ends[0]) == tokenizer.eos_token_id
    assert stock.config.eos_token_id == tokenizer.eos_token_id
