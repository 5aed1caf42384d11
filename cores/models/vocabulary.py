"""The pad token, and the ids that no reply may hold.

With pad equal to eos a stock classification head skips the true end of a row (it reads the last id
that is not pad), and training and evaluation read different tokens. So pad is always a token of its
own, and pad and the ids beyond the tokenizer are outside every distribution.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cores.config import TemplateSection
from cores.errors import UserError

NEW_PAD = "<|pad|>"

EXCLUDED_LOGIT = -1e4
"""exp(-1e4) is 0 in every precision, and unlike -inf it gives 0, not NaN, in p * log p."""

ROWS = 64
"""Rows in memory are a multiple of it. Tensor cores want that: with GPT-2's 50,257 logits the head
takes four to five times as long as with 50,304."""

LOWEST_CAP = 25
"""exp(-25) is 1e-11: a model may cap its logits here and an excluded id will not be sampled."""


def settle_tokens(tokenizer: PreTrainedTokenizerBase, template: TemplateSection) -> str | None:
    """Add the special tokens that `template` names, take its end-of-sequence token and its chat
    template; return a line to print if the vocabulary grew or the end is another one.

    UserError for a token that is empty or named twice, or an end that is no token.
    """
    said, before, end = [], len(tokenizer), tokenizer.eos_token
    names, eos = template.tokens, template.eos_token
    wrong = next((n for i, n in enumerate(names) if not n.strip() or n in names[:i]), None)
    if wrong is not None:
        raise UserError(f"template.tokens: {wrong!r} is empty or named twice; remove it.")
    tokenizer.add_tokens(list(names), special_tokens=True)
    if template.chat_template is not None:
        tokenizer.chat_template = template.chat_template
    if grown := len(tokenizer) - before:
        said.append(f"{grown} special tokens added")
    if eos is not None:
        if eos not in tokenizer.get_vocab():
            raise UserError(
                f"template.eos_token: {eos!r} is not in the tokenizer's vocabulary. Name a token "
                "of it, or add it by template.tokens."
            )
        tokenizer.add_special_tokens({"eos_token": eos})  # type: ignore[dict-item]
        if eos != end:
            said.append(f"{eos} ends a sequence in place of {end or 'nothing'}")
    return f"tokens: {', '.join(said)}" if said else None


def settle_pad_token(tokenizer: PreTrainedTokenizerBase, wanted: str | None) -> str | None:
    """Give `tokenizer` a pad token that is neither eos nor bos; return a line to print if anything
    changed.

    `wanted` names a token of the vocabulary that no text uses. Raises UserError if the tokenizer
    has no eos token, or `wanted` is not a token of its own.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            "model.path: the tokenizer has no end-of-sequence token, so no reply could ever stop. "
            "Set eos_token in its tokenizer_config.json."
        )
    if wanted is not None:
        if wanted not in tokenizer.get_vocab():
            raise UserError(
                f"model.pad_token: {wanted!r} is not in the tokenizer's vocabulary. Name an unused "
                f"token of it, or give null (--model.pad_token null) to add {NEW_PAD}."
            )
        if wanted in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token):
            raise UserError(
                f"model.pad_token: {wanted!r} has another use (eos, bos or unk). Name an unused "
                f"token, or leave the key out to add {NEW_PAD}."
            )
        tokenizer.add_special_tokens({"pad_token": wanted})
        return f"pad token: {wanted} taken from the vocabulary"
    pad = tokenizer.pad_token_id
    uses = {tokenizer.bos_token_id: "bos", tokenizer.eos_token_id: "eos", None: "nothing"}
    if pad not in uses:
        return None
    before = "no pad token" if pad is None else f"its pad token was {uses[pad]}"
    if NEW_PAD in tokenizer.get_vocab():
        tokenizer.pad_token = NEW_PAD
    else:
        tokenizer.add_special_tokens({"pad_token": NEW_PAD})
    return f"pad token: {NEW_PAD} added ({before})"


def embedding(model: PreTrainedModel) -> torch.Tensor:
    """The input embedding's weight, (V, d)."""
    table: Any = model.get_input_embeddings()
    return table.weight


def pad_of(model: Any) -> int:
    """The id that pads rows of `model`; 0 where its configuration names none."""
    return model.config.get_text_config().pad_token_id or 0


def rounded(rows: int, to: int = ROWS) -> int:
    """`rows` or more, a multiple of `to`."""
    return -(-rows // to) * to


def saved_rows(model: Any) -> int:
    """Rows that the model has in its folder: a base's own, and one for each id that was added."""
    return getattr(model, "saved_rows", model.config.get_text_config().vocab_size)


@contextmanager
def as_saved(model: PreTrainedModel) -> Iterator[dict[str, torch.Tensor]]:
    """The model's tensors without the rows that only memory has; its configuration says so too."""
    text, rows = model.config.get_text_config(), saved_rows(model)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    tables = {id(p) for end in ends if end is not None for p in end.parameters(recurse=False)}
    state = {
        name: tensor.detach()[:rows] if id(tensor) in tables else tensor.detach()
        for name, tensor in model.state_dict(keep_vars=True).items()
    }
    before, text.vocab_size = text.vocab_size, rows
    try:
        yield state
    finally:
        text.vocab_size = before


def fit_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    known: int | None = None,
    to: int = ROWS,
) -> None:
    """Give `model` a row for every id of `tokenizer`; those of new tokens start at the mean of the
    others, in the head too (Taori et al. 2023).

    In memory their number is rounded up to a multiple of `to`; `as_saved` takes off what that adds.
    A model that has more rows than the tokenizer has ids keeps them (they are excluded). `known`:
    ids that there were before tokens were added, which take such rows first. None: as many as the
    model has rows.
    """
    old, written = embedding(model).shape[0], max(saved_rows(model), len(tokenizer))
    config = model.config
    # Encoder-decoders share tables in several ways, and image models have ids with a place: these
    # get no more rows than they must.
    alone = config.get_text_config() is config and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    new = rounded(max(old, written), to) if alone or written > old else old
    if new > old:
        with torch.random.fork_rng(devices=[]):  # the new rows are set below
            model.resize_token_embeddings(new, mean_resizing=False)
    vars(model)["saved_rows"] = written
    first = old if known is None else min(known, old)
    last = len(tokenizer)
    tables = [embedding(model)]
    head: Any = model.get_output_embeddings()
    if head is not None and head.weight is not tables[0]:
        tables.append(head.weight)
    if getattr(head, "bias", None) is not None:  # GPT-J
        tables.append(head.bias)
    with torch.no_grad():
        for table in tables:
            mean = table[:first].mean(dim=0)
            table[first:last] = mean  # of new tokens; in rows that a base has to spare, if it can
            table[old:] = mean
    text = model.config.get_text_config()
    text.pad_token_id, ends = tokenizer.pad_token_id, text.eos_token_id
    if tokenizer.eos_token_id not in (ends if isinstance(ends, list) else [ends]):
        text.eos_token_id = tokenizer.eos_token_id


def excluded_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    """The pad id and the ids from len(tokenizer) up to `vocab_size`."""
    return [tokenizer.pad_token_id, *range(len(tokenizer), vocab_size)]


def check_cap(config: PretrainedConfig) -> None:
    """UserError if the model caps its logits so low that excluded ids would come back."""
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    if cap is not None and cap < LOWEST_CAP:
        raise UserError(
            f"model.path: final_logit_softcapping of {architecture(config)} is {cap}, so low that "
            f"pad and unused ids would be sampled. Choose a model that has {LOWEST_CAP} or more "
            "there, or no cap."
        )


def architecture(config: PretrainedConfig) -> str:
    """The model's class as config.json names it."""
    return (config.architectures or [config.model_type])[0]


def exclude_tokens(model: PreTrainedModel, ids: list[int]) -> None:
    """Take `ids` out of every distribution of `model`: sampling, log-probs and the training loss.

    One hook behind the head serves them all, so that they cannot disagree. It writes in place: the
    backward pass of a linear layer does not need its output.

    Gemma 2 caps its logits behind the head, at 30, and the ids come out at -30: their share of the
    softmax is below 1e-13 wherever any logit is above 0, and lost in the rounding of fp32.
    `check_cap` refuses a lower cap.
    """
    head: nn.Module = model.get_output_embeddings()
    head.register_buffer("excluded_ids", torch.tensor(ids), persistent=False)

    def hook(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill_(-1, module.excluded_ids, EXCLUDED_LOGIT)

    head.register_forward_hook(hook)
