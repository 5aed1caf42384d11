"""Prefix attention: the tokens of the prompt see each other both ways, those of the reply what is
before them (Raffel et al. 2020, section 3.2.1; GLM, Du et al. 2022).

Shapes: B rows of L tokens, V virtual tokens before them (prefix tuning).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from cores.errors import UserError
from cores.models.actor import plain_model
from cores.models.body import attention_bias, causal_mask, tolerance
from cores.models.vocabulary import embedding

LENGTHS = "prompt_length"
"""Argument of `model` beside ids and mask: tokens of each row's prompt, (B,)."""
PROMPT, TOKENS = 6, 12
"""Of the trial: a prompt of so many tokens, a row of so many."""


def attend_both_ways(model: Any) -> None:
    """From here on `model` takes `prompt_length` (B,) beside input_ids and attention_mask (B, L),
    0 for a row that is causal; it has to be given."""
    forward, config = model.forward, model.config

    @wraps(forward)
    def masked(input_ids: Tensor, attention_mask: Tensor, **others: Any) -> Any:
        lengths = others.pop(LENGTHS)
        virtual = attention_mask.shape[1] - input_ids.shape[1]  # peft put their mask before ours
        seen = causal_mask(attention_mask, lengths + virtual)[:, :, virtual:]
        bias = attention_bias(seen, config)
        return forward(input_ids=input_ids, attention_mask=bias, **others)

    # Of the instance: adapters call it by this name, and would pass over a hook.
    model.forward = masked


@contextmanager
def prompts_both_ways(model: Any) -> Iterator[None]:
    """Within it the first call of `model` reads prompts (B, P) both ways; tokens that come one by
    one in the calls after it see what is before them, as ever. For one `generate`."""
    plain = plain_model(model)
    forward = plain.forward

    @wraps(forward)
    def masked(input_ids: Tensor, attention_mask: Tensor | None = None, **others: Any) -> Any:
        plain.forward = forward
        # Where nothing is padding `generate` may give no mask.
        tokens = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        bias = attention_bias(causal_mask(tokens, tokens.sum(dim=1)), plain.config)
        return forward(input_ids=input_ids, attention_mask=bias, **others)

    plain.forward = masked
    try:
        yield
    finally:
        del plain.forward


@torch.no_grad()
def check_prefix(model: Any, longest: int) -> None:
    """UserError if `model`, behind `attend_both_ways`, does not attend so, in a trial with random
    ids; or if rows of up to `longest` tokens are more than a window of its attention."""
    plain = plain_model(model)
    name, text = type(plain).__name__, plain.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if window and window < longest:
        raise UserError(
            f"model.attention: {name} attends to windows of {window} tokens, which prefix would "
            f"widen. Set sft.max_length {window} or less, or model.attention causal."
        )
    training, device = model.training, embedding(plain).device
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(embedding(plain).shape[0], (TOKENS,), generator=generator).to(device)
    other = (ids + 1) % embedding(plain).shape[0]
    model.eval()
    try:
        start, early, late = (
            _logits(model, torch.where(torch.arange(TOKENS, device=device) == at, other, ids))
            for at in (TOKENS, PROMPT - 1, TOKENS - 2)
        )
    except (ValueError, RuntimeError, IndexError) as error:  # as BLOOM, whose attention is biased
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.attention: {name} cannot be given the mask of prefix attention ({reason}). "
            "Set model.attention causal, or take a model of another family."
        ) from None
    finally:
        model.train(training)
    spread = (start - start.median()).abs().median().item()
    least = tolerance(plain) * spread
    both_ways = (early - start)[: PROMPT - 1].abs().max().item() > least
    causal = (late - start)[: TOKENS - 2].abs().max().item() <= least
    if not (both_ways and causal):
        what = "sees what is behind it in a reply" if both_ways else "reads prompts causally"
        raise UserError(
            f"model.attention: in a trial {name} {what} in spite of the mask. Set model.attention "
            "causal, or take a model of another family."
        )


def _logits(model: Any, ids: Tensor) -> Tensor:
    """(L, V) of one row ids (L,) with a prompt of PROMPT tokens."""
    row = ids[None]
    given = {LENGTHS: torch.tensor([PROMPT], device=ids.device)}
    found = model(input_ids=row, attention_mask=torch.ones_like(row), **given)
    return found.logits[0].float()
