"""The body of a language model: hidden states of rows, padded or not; whether its attention is
plain, as our own decode step and captured passes need it, and keeps packed rows apart.

Shapes: B rows of L columns, d width of the model.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PretrainedConfig, masking_utils
from transformers.modeling_layers import GradientCheckpointingLayer

from cores.errors import UserError
from cores.models.packed import SDPA
from cores.models.rows import Rows, from_decoder, prompts, replies
from cores.models.vocabulary import architecture, embedding

FAMILIES = ("gpt2", "opt", "gpt_neox", "llama", "mistral", "qwen2", "qwen3")
"""Model types whose attention is causal, over all positions, with scores neither capped nor biased,
and whose keys and values go to the cache and the attention function and nowhere else."""
STILL_ROPE = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose angles do not depend on the longest row so far."""
PROBE = [[7, 5], [4, 9]]
"""Tokens of the samples of the probe, side by side in two rows."""
TOLERANCE, TOLERANCE_QUANTIZED = 1e-3, 0.1
"""Largest difference allowed, in median deviations of the logits. fp32 rounds to 1e-6 of them; a
leak changes large weights by 1 and more, and fresh small ones (0.02) by 0.05. 8 and 4 bits round
coarsely, and only trained models are held in them."""
FLASH_FROM, FLASH_HEAD = (8, 0), 256
"""Compute capability from which on torch has flash attention; the largest head of it."""
VARIANTS = 64
"""Compiled forms of one layer's code at most: with and without gradient, padding and adapters, of
actor and critic. Beyond it torch silently runs the layer uncompiled."""


def position_ids(mask: Tensor) -> Tensor:
    """(B, L) positions counted from each row's first attended token; 0 in padding before it."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def causal_mask(mask: Tensor, first: Tensor | None = None) -> Tensor:
    """(B, 1, L, L) bool of mask (B, L): each position attends to the tokens up to itself, and to
    the `first` (B,) tokens of its row wherever it stands (prefix attention); None: 0.

    Padding before the first token attends to itself, so that its softmax is defined; nothing
    attends to padding.
    """
    length = mask.shape[1]
    before = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    itself = torch.eye(length, dtype=torch.bool, device=mask.device)
    if first is not None:
        before = before | (mask.long().cumsum(dim=1) <= first[:, None])[:, None, :]
    seen = before & mask[:, None, :].bool()
    return (seen | (itself & ~seen.any(dim=2, keepdim=True)))[:, None]


def attention_bias(seen: Tensor, config: PretrainedConfig) -> Tensor:
    """`seen` (B, 1, L, L) bool as the attention of a model takes it: eager adds it to its scores,
    as 0 or a very low number."""
    if config._attn_implementation != "eager":
        return seen
    low = torch.finfo(torch.float32).min
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, low)


def body_of(model: Any) -> tuple[str, ...]:
    """The attributes of a plain model that hold its body, which the head stands behind: two of an
    encoder-decoder; none where the head is not apart."""
    if model.config.is_encoder_decoder:
        return ("encoder", "decoder")
    return () if model.base_model is model else (model.base_model_prefix,)


def decoder_states(body: Any, rows: Rows) -> Tensor:
    """Last hidden states (B, L, d) of an encoder-decoder, whose encoder reads the prompts and whose
    decoder reads its start token and the replies: see `from_decoder`."""
    seen = None if rows.mask is None else prompts(rows.mask, rows.width).long()
    encoded = body.encoder(input_ids=prompts(rows.ids, rows.width), attention_mask=seen)
    start = rows.ids.new_full((len(rows.ids), 1), body.config.decoder_start_token_id)
    decoded = body.decoder(
        input_ids=torch.cat([start, replies(rows.ids, rows.width)], dim=1),
        encoder_hidden_states=encoded.last_hidden_state,
        encoder_attention_mask=seen,
        use_cache=False,
    )
    return from_decoder(decoded.last_hidden_state, rows.ids.shape[1])


def hidden_states(body: Any, rows: Rows, prefix: bool = False) -> Tensor:
    """Last hidden states (B, L, d) of rows (B, L), by column as told there; (1, N, d) of packed
    rows, whose attention has to be plain: see `packs`.

    `prefix`: the tokens of a prompt see each other both ways (prefix attention).

    Without padding and that attention is plain causal, and positions are columns, by the model's
    own defaults, without transformers' looks into ids, positions and OPT's own mask for padding and
    packed rows, of which it is known that there are none: on a GPU each look waits for everything
    asked of it before, and cannot be part of a CUDA graph. Nor is a mask made where a graph is
    captured, as transformers would (5.17) in any tracing: the attention would be slower, and
    compiled layers not the ones that were compiled.
    """
    if body.config.is_encoder_decoder:
        return decoder_states(body, rows)
    ids, mask, packing = rows.ids, rows.mask, rows.packing
    images = {} if rows.images is None else {"pixel_values": rows.images}
    if mask is None and prefix:
        mask = torch.ones_like(ids, dtype=torch.bool)
    if mask is not None and packing is None:
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        if "position_ids" in inspect.signature(body.forward).parameters:  # ALiBi takes none
            inputs["position_ids"] = position_ids(mask)
        if prefix:
            both_ways = causal_mask(mask, prompts(mask, rows.width).sum(dim=1))
            inputs["attention_mask"] = attention_bias(both_ways, body.config)
        elif attention_problem(body.config) is None:
            # transformers takes it as it is. Of a mask (B, L) it would ask whether there is any
            # padding at all, and a GPU would be waited for.
            inputs["attention_mask"] = causal_mask(mask)
        return body(**inputs, **images, use_cache=False).last_hidden_state
    answers: dict[str, Any] = {
        "find_packed_sequence_indices": lambda position_ids: None,
        "fast_all": lambda mask: True,
        "is_tracing": lambda tensor=None: False,
    }
    found = {name: getattr(masking_utils, name) for name in answers}
    vars(masking_utils).update(answers)
    vars(body)["warn_if_padding_and_no_attention_mask"] = lambda *args: None
    where: dict[str, Any] = {}
    if packing is not None:
        ids = pad(ids.flatten(), (0, 1)).index_select(0, packing.tokens)[None]
        where = {"position_ids": packing.positions[None], "packing": packing}
    try:
        return body(input_ids=ids, **where, **images, use_cache=False).last_hidden_state
    finally:
        vars(masking_utils).update(found)
        del vars(body)["warn_if_padding_and_no_attention_mask"]


def packs(model: Any, device: torch.device) -> bool:
    """Whether the layers of a plain model can read packed rows, each token those of its own row
    alone: transformers hands what that takes to `packed.attention`, and a GPU has flash attention
    for heads of this size."""
    config = model.config
    if attention_problem(config) is not None or config._attn_implementation != SDPA:
        return False
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    fits = head % 8 == 0 and head <= FLASH_HEAD
    return device.type == "cpu" or (fits and torch.cuda.get_device_capability(device) >= FLASH_FROM)


def attention_problem(config: PretrainedConfig) -> str | None:
    """What keeps an architecture's attention from being plain, if anything."""
    name = architecture(config)
    if config.model_type not in FAMILIES:
        return f"{name} is none of the model types {', '.join(FAMILIES)}"
    if getattr(config, "sliding_window", None):
        return f"{name} attends to a sliding window"
    rope = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type", "default")
    if kind not in STILL_ROPE:
        return f"the rotary embedding of {name} is {kind}, which changes with the length"
    return None


def looks_for_outliers(model: Any) -> bool:
    """Whether layers in 8 bits ask in every forward pass which inputs are large (bitsandbytes):
    the device is waited for, which a captured graph cannot."""
    return any(hasattr(module, "init_8bit_state") for module in model.modules())


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


def compile_layers(model: Any) -> Any:
    """`model` with each of its transformer layers compiled.

    All layers share one compiled form, so this takes a fraction of the time that the whole model
    would. Names of parameters and modules stay; a copy of the model is not compiled.
    """
    torch._dynamo.config.recompile_limit = VARIANTS
    torch._dynamo.config.accumulated_recompile_limit = 4 * VARIANTS
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()
    return model
