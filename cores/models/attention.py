"""Prefix attention: the tokens of the prompt see each other both ways, those of the reply what is
before them (Raffel et al. 2020, section 3.2.1; GLM, Du et al. 2022). And whether a model keeps
samples apart that stage 1 packs side by side.

Shapes: B rows of L tokens, V virtual tokens before them (prefix tuning).
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from cores.errors import UserError
from cores.models.actor import plain_model
from cores.models.body import attention_bias, causal_mask
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


PROBE = [[7, 5], [4, 9]]
"""Tokens of the samples of the probe, side by side in two rows."""
TOLERANCE, TOLERANCE_QUANTIZED = 1e-3, 0.1
"""Largest difference allowed, in median deviations of the logits. fp32 rounds to 1e-6 of them; a
leak changes large weights by 1 and more, and fresh small ones (0.02) by 0.05. 8 and 4 bits round
coarsely, and only trained models are held in them."""


@torch.no_grad()
def check_packing(model: Any) -> None:
    """UserError if `model` computes other logits for packed samples than for each alone.

    transformers tells packed samples by positions that begin again, where there is no attention
    mask; some architectures take no notice. Random ids, evaluation mode, no change to the model.
    """
    generator = torch.Generator().manual_seed(0)
    rows, device = embedding(model).shape[0], embedding(model).device
    samples = [
        [torch.randint(rows, (n,), generator=generator).to(device) for n in row] for row in PROBE
    ]
    training = model.training
    model.eval()
    alone = [[packed_logits(model, [[sample]])[0] for sample in row] for row in samples]
    packed = packed_logits(model, samples)
    model.train(training)
    apart = max(
        (together[: len(expected)] - expected).abs().max().item()
        for together, expected in zip(packed, map(torch.cat, alone), strict=True)
    )
    everything = torch.cat([sample for row in alone for sample in row])
    spread = (everything - everything.median()).abs().median().item()  # blind to excluded ids
    if not apart <= tolerance(model) * spread:
        raise UserError(
            f"sft.packing: {type(model).__name__} mixes rows that are packed side by side: in a "
            f"trial their logits differed by {apart:.2g} from those of each row alone (the logits' "
            f"median deviation is {spread:.2g}). Set sft.packing false."
        )


def tolerance(model: Any) -> float:
    """The largest difference that may be rounding."""
    held = any(weight.dtype == torch.bfloat16 for weight in model.parameters())
    coarse = held or getattr(model, "is_quantized", False)
    return TOLERANCE_QUANTIZED if coarse else TOLERANCE


def packed_logits(model: nn.Module, rows: list[list[Tensor]]) -> Tensor:
    """Logits (B, L, V) of B rows of samples side by side, as training packs them."""
    ids = nn.utils.rnn.pad_sequence([torch.cat(row) for row in rows], batch_first=True)
    positions = nn.utils.rnn.pad_sequence(
        [torch.cat([torch.arange(len(sample)) for sample in row]) for row in rows], batch_first=True
    )
    inputs = {"input_ids": ids}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = positions.to(ids.device)
    return model(**inputs, use_cache=False).logits.float()
