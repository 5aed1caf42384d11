"""Pad tokens of three kinds of tokenizer, vocabularies that grow, and saving."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from _documented import documented
from _models import EXCLUDED, FAMILIES, KINDS, causal, policy_of, toy_tokenizer
from _tiny import words
from _tokenizers import chat_like, gpt2_like, llama_like
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from cores.data import left_pad
from cores.errors import UserError
from cores.models import (
    Actor,
    load_policy,
    load_tokenizer,
    save_model,
    settle_pad_token,
)
from cores.models.layers import fuse_layers
from cores.models.loading import exclude_from
from cores.models.vocabulary import (
    NEW_PAD,
    embedding,
    excluded_ids,
    fit_vocabulary,
    rounded,
    saved_rows,
)


def fresh(tokenizer: PreTrainedTokenizerFast) -> Any:
    return copy.deepcopy(tokenizer)


def test_pad_equal_to_eos_gets_a_token_of_its_own() -> None:
    """Invariant 8: GPT-2's pad = eos becomes a new token; eos keeps its id."""
    tokenizer = fresh(gpt2_like())
    old, eos = len(tokenizer), tokenizer.eos_token_id
    line = settle_pad_token(tokenizer, None)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == (NEW_PAD, old)
    assert tokenizer.eos_token_id == eos != tokenizer.pad_token_id
    assert len(tokenizer) == old + 1
    assert line == f"pad token: {NEW_PAD} added (its pad token was eos)"
    assert settle_pad_token(tokenizer, None) is None  # settled for good


def test_no_pad_token_gets_one() -> None:
    """Invariant 8: without a pad token one is added."""
    tokenizer = fresh(gpt2_like())
    tokenizer.pad_token = None
    line = settle_pad_token(tokenizer, None)
    assert tokenizer.pad_token == NEW_PAD
    assert line is not None
    assert "no pad token" in line


@pytest.mark.parametrize("make", [chat_like, llama_like])
def test_a_pad_of_its_own_stays(make: Any) -> None:
    """Invariant 8: nothing is added where pad is already a token of its own."""
    tokenizer = fresh(make())
    before = (len(tokenizer), tokenizer.pad_token_id)
    assert settle_pad_token(tokenizer, None) is None
    assert (len(tokenizer), tokenizer.pad_token_id) == before


def test_a_pad_left_by_an_earlier_run_is_found() -> None:
    """Invariant 8: <|pad|> of the vocabulary is used, not added a second time."""
    tokenizer = fresh(chat_like())
    tokenizer.pad_token = tokenizer.eos_token
    before = len(tokenizer)
    settle_pad_token(tokenizer, None)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == (NEW_PAD, 0, before)


def test_a_named_pad_token_is_taken() -> None:
    """Invariant 8: model.pad_token names an unused token, and the vocabulary does not grow."""
    tokenizer = fresh(chat_like())
    before = len(tokenizer)
    line = settle_pad_token(tokenizer, "<|im_start|>")
    assert tokenizer.pad_token_id == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert len(tokenizer) == before
    assert line is not None
    assert "<|im_start|>" in line


@pytest.mark.parametrize(
    ("make", "wanted", "says"),
    [
        (gpt2_like, "<|nowhere|>", "'<|nowhere|>' is not in the tokenizer's vocabulary"),
        (gpt2_like, "<|endoftext|>", "has another use"),
        (llama_like, "<s>", "has another use"),
        (llama_like, "<unk>", "has another use"),
    ],
)
def test_a_pad_token_that_cannot_be(make: Any, wanted: str, says: str) -> None:
    """Invariant 8: a wrong name is an error that names the key."""
    with pytest.raises(UserError, match=r"model\.pad_token") as error:
        settle_pad_token(fresh(make()), wanted)
    assert says in str(error.value)


def test_a_tokenizer_without_eos_is_refused() -> None:
    """Invariant 16: without eos no reply could stop."""
    tokenizer = fresh(chat_like())
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end-of-sequence token"):
        settle_pad_token(tokenizer, None)


@pytest.mark.parametrize("make", [gpt2_like, chat_like, llama_like])
@pytest.mark.parametrize("kind", FAMILIES)
def test_no_id_lies_beyond_the_embedding(kind: str, make: Any) -> None:
    """Invariant 8: after stage 1's preparation pad has a row and is excluded, and the padded ids
    go through the model. New rows start at the mean of the old."""
    tokenizer = fresh(make())
    rows = len(tokenizer)
    model = causal(kind, rows=rows, pad_token_id=None)
    old = embedding(model).detach().clone()
    settle_pad_token(tokenizer, None)
    fit_vocabulary(model, tokenizer)
    excluded = exclude_from(model, tokenizer)
    grown = rounded(len(tokenizer))
    assert saved_rows(model) == max(rows, len(tokenizer))
    assert tokenizer.pad_token_id < embedding(model).shape[0] == model.config.vocab_size == grown
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert excluded == [tokenizer.pad_token_id, *range(len(tokenizer), grown)]
    assert torch.equal(embedding(model)[:rows], old)
    if grown > rows:
        mean = old.mean(dim=0)
        torch.testing.assert_close(embedding(model)[rows:], mean.expand(grown - rows, -1))
        head = model.get_output_embeddings().weight
        assert head.shape == embedding(model).shape
        torch.testing.assert_close(head[rows:], head[:rows].mean(0).expand(grown - rows, -1))
        bias = getattr(model.get_output_embeddings(), "bias", None)
        assert (bias is not None) == (kind == "gptj")
        if bias is not None:
            torch.testing.assert_close(bias[rows:], bias[:rows].mean().expand(grown - rows))
    ids, mask = left_pad([[5, 6, 7], [8]], tokenizer.pad_token_id)
    logprobs, _ = Actor(model, 1.0)(ids, mask, 1)
    assert torch.isfinite(logprobs).all()


def test_rows_beyond_the_tokenizer_stay_and_are_excluded() -> None:
    """Invariant 3: a model with more rows than ids keeps them, outside every distribution."""
    model, tokenizer = causal("llama"), toy_tokenizer()
    fit_vocabulary(model, tokenizer)
    assert embedding(model).shape[0] == 64
    assert excluded_ids(tokenizer, 64) == EXCLUDED
    assert exclude_from(model, tokenizer) == EXCLUDED


def test_a_base_s_own_rows_stay(tmp_path: Path) -> None:
    """Those beyond its ids: new tokens take the first of them, the rest stays as it was, and what
    is saved has as many rows as the base, however many memory has."""
    tokenizer = fresh(gpt2_like())
    known, rows = len(tokenizer), len(tokenizer) + 10
    model = causal("llama", rows=rows, pad_token_id=None)
    old = embedding(model).detach().clone()
    settle_pad_token(tokenizer, None)
    fit_vocabulary(model, tokenizer, known)
    assert embedding(model).shape[0] == rounded(rows) > rows
    save_model(model, tokenizer, tmp_path)
    saved = embedding(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert torch.equal(saved[:known], old[:known])
    torch.testing.assert_close(saved[known], old[:known].mean(dim=0))
    assert torch.equal(saved[known + 1 :], old[known + 1 :])
    assert GenerationConfig.from_pretrained(tmp_path).suppress_tokens == [*range(known, rows)]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "gptj"])
@torch.no_grad()
def test_a_copy_without_rows_to_spare(kind: str, tied: bool, tmp_path: Path) -> None:
    """By the lines of docs/elsewhere.md: no id beyond the tokenizer's is left to be sampled."""
    tokenizer = fresh(gpt2_like())
    known = len(tokenizer)
    model = causal(kind, rows=known + 10, tie_word_embeddings=tied, pad_token_id=None)
    settle_pad_token(tokenizer, None)
    fit_vocabulary(model, tokenizer, known)
    save_model(model, tokenizer, tmp_path / "saved")
    documented("without_spare_rows", "elsewhere.md")(tmp_path / "saved", tmp_path / "copy")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    copied = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    ids = torch.tensor([[5, 9, 13, 400]])
    assert copied.config.vocab_size == copied(ids).logits.shape[-1] == known + 1 == len(tokenizer)
    assert torch.equal(copied(ids).logits, whole(ids).logits[..., : known + 1])
    assert copied.generation_config.suppress_tokens == [tokenizer.pad_token_id]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", FAMILIES)
@torch.no_grad()
def test_save_then_load_gives_the_same_logits(kind: str, tied: bool, tmp_path: Path) -> None:
    """Invariant 30: resized vocabulary, tied and untied, by our loader and by the stock one."""
    tokenizer = fresh(gpt2_like())
    model = causal(kind, rows=len(tokenizer), tie_word_embeddings=tied, pad_token_id=None)
    settle_pad_token(tokenizer, None)
    fit_vocabulary(model, tokenizer)
    ids = torch.tensor([[5, 9, 13, 400]])
    bare = model(ids).logits.clone()
    exclude_from(model, tokenizer)
    save_model(model, tokenizer, tmp_path)
    expected = fuse_layers(model)(ids).logits  # bit for bit, as ours is
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert stock.config.vocab_size == embedding(stock).shape[0] == len(tokenizer)
    bare, expected = bare[..., : len(tokenizer)], expected[..., : len(tokenizer)]
    torch.testing.assert_close(stock(ids).logits, bare, atol=0, rtol=0)
    assert (stock.get_output_embeddings().weight is embedding(stock)) == tied
    ours: Any = load_policy(tmp_path, dropout=False)
    exclude_from(ours, load_tokenizer(tmp_path))
    # GPT-2's and GPT-J's activation in one kernel rounds otherwise.
    torch.testing.assert_close(ours(ids).logits, expected, atol=1e-5, rtol=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token == NEW_PAD
    assert not list(tmp_path.glob("*.bin"))


def test_tokenizers_are_written_as_transformers_4_reads_them(tmp_path: Path) -> None:
    """Its class and its list of special tokens have the names of version 4; nothing tells where the
    files came from; every file is as readable as others that are written here."""
    tokenizer = fresh(chat_like())
    save_model(causal("llama", rows=len(tokenizer)), tokenizer, tmp_path)
    told = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert told["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert told["additional_special_tokens"] == ["<|im_start|>"]
    assert not {"extra_special_tokens", "is_local", "local_files_only"} & told.keys()
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.all_special_tokens == tokenizer.all_special_tokens
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes == {(tmp_path / "new").stat().st_mode}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_an_added_pad_token_is_as_unlikely_as_the_mean(kind: str, tmp_path: Path) -> None:
    """Training never moves its row, so that it would end among those that it began with; what is
    saved has it at the mean of the rows as they are now."""
    tokenizer = fresh(gpt2_like())
    model = causal(kind, rows=len(tokenizer), pad_token_id=None)
    settle_pad_token(tokenizer, None)
    fit_vocabulary(model, tokenizer)
    pad = tokenizer.pad_token_id
    model.get_output_embeddings().weight[:pad] += 1.0
    save_model(model, tokenizer, tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    head = saved.get_output_embeddings().weight
    torch.testing.assert_close(head[pad], head[:pad].mean(dim=0))
    logits = saved(torch.tensor([[5, 6, 7]])).logits[0, -1]
    assert logits.softmax(-1)[pad] <= 1 / pad
    own = words()  # whose own token of that name is its first one
    model = causal(kind, rows=len(own), pad_token_id=own.pad_token_id)
    assert own.pad_token == NEW_PAD
    row = model.get_output_embeddings().weight[own.pad_token_id].clone()
    save_model(model, own, tmp_path)
    assert torch.equal(model.get_output_embeddings().weight[own.pad_token_id], row)


@pytest.mark.parametrize("kind", KINDS)
def test_other_tools_do_not_sample_excluded_ids(kind: str, tmp_path: Path) -> None:
    """Invariant 3: the saved generation config suppresses them, keeps the parent's stop ids, and a
    plain `generate` of the stock model obeys."""
    model, tokenizer = policy_of(kind), toy_tokenizer()
    with torch.no_grad():
        model.get_output_embeddings().weight[EXCLUDED] *= 30
    model.generation_config.eos_token_id = [7, 1]
    save_model(model, tokenizer, tmp_path)
    saved = GenerationConfig.from_pretrained(tmp_path)
    assert saved.suppress_tokens == EXCLUDED
    assert (saved.pad_token_id, saved.eos_token_id) == (0, [1, 7])
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 6]]).repeat(50, 1)
    torch.manual_seed(0)
    made = stock.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=1
    )
    assert not set(made[:, 2:].flatten().tolist()) & set(EXCLUDED)


def test_a_parent_with_sampling_settings_but_greedy_decoding_is_saved(tmp_path: Path) -> None:
    """Invariant 30: settings such as Llama 2's first generation config had do not stop saving."""
    model = causal("llama")
    model.generation_config = GenerationConfig(
        temperature=0.6, top_p=0.9, top_k=5, min_p=0.1, typical_p=0.9, repetition_penalty=1.3
    )
    save_model(model, toy_tokenizer(), tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert "temperature" not in saved
    assert saved["repetition_penalty"] == 1.3
