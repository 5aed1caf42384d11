"""Models of their own around the tensors of another: one frozen base in memory for several roles.

Only tensors that nobody trains are common. A role's modules are its own, and with them its
adapters, what is switched off, and its checkpointed layers: whatever another role does between a
forward pass and its backward pass, layers are made again as they were.
"""

from collections import defaultdict
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import (
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cores.errors import UserError
from cores.models.adapters import ADAPTER, SCALAR_HEAD
from cores.models.body import body_of
from cores.models.folders import WHOLE, check_finite, place, reading
from cores.models.heads import built, class_of
from cores.models.loading import load_config
from cores.models.vocabulary import embedding, fit_vocabulary

HELD = ("is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit", "quantization_method")
"""By which libraries know a model whose layers are in few bits."""
LOW, HIGH = "kept_low", "kept_high"
"""Matrices (r, in) and (out, r) of a kept adapter, on the layer that it is of."""


def shell(model: Any) -> Any:
    """A copy of the modules of `model` around its own tensors: its parameters, and what layers in
    8 and 4 bits have beside them."""
    same: dict[int, Any] = {id(p): p for p in model.parameters()}  # by id as `deepcopy` asks for it
    for module in model.modules():
        # An 8-bit weight moves to its layer's state at its first use, whoever's that is.
        name = "state" if hasattr(module, "init_8bit_state") else "quant_state"
        if (beside := getattr(module, name, None)) is not None:
            same[id(beside)] = beside
    return deepcopy(model, same)


def one_body(config: PretrainedConfig) -> bool:
    """Whether a language model of this configuration and its classifier have bodies of one class,
    apart from their heads; reads and makes no weights."""
    if config.is_encoder_decoder:
        return False
    with torch.device("meta"):  # shapes alone: no memory, no time
        both = [built(class_of(config, scalar), config) for scalar in (False, True)]
    bodies = [getattr(model, name) for model in both for name in body_of(model)]
    return len(bodies) == 2 and type(bodies[0]) is type(bodies[1])


def scalar_on(
    base: PreTrainedModel, path: str | Path, tokenizer: PreTrainedTokenizerBase, **head: Any
) -> Any:
    """The classification model of `path` as `load_scalar` gives it, but around the body of the
    language model `base` and with a head of zeros; no weights are read."""
    config = load_config(path)
    for key, value in {**head, "return_dict": True}.items():
        setattr(config, key, value)
    with torch.device("meta"):
        model = built(class_of(config, scalar=True), config, dtype=torch.float32)
    (name,), (theirs,) = body_of(model), body_of(base)
    setattr(model, name, shell(getattr(base, theirs)))
    getattr(model, SCALAR_HEAD).to_empty(device=base.device)
    for parameter in getattr(model, SCALAR_HEAD).parameters():
        nn.init.zeros_(parameter)
    for known in HELD:
        if hasattr(base, known):
            setattr(model, known, getattr(base, known))
    fit_vocabulary(model, tokenizer)  # rows are there already: what the configuration says of them
    config.get_text_config().vocab_size = embedding(model).shape[0]
    where = place(path)
    model.name_or_path = str(Path(where).resolve()) if Path(where).is_dir() else where
    return model.eval()


@torch.no_grad()
def keep_adapter(model: Any, folder: Path) -> None:
    """`folder`/adapter onto `model` as it is, beside the weights and never trained: layers give
    W x + (alpha / r) B A x. Its head becomes the model's. Adapters that are trained go on top."""
    from peft import LoraConfig
    from peft.utils import load_peft_weights

    where = folder / ADAPTER
    with reading(where, "adapter"):
        adapter = LoraConfig.from_pretrained(str(where))
        tensors = load_peft_weights(str(where), device="cpu")
    layers, heads = dict(model.named_modules()), dict(model.named_parameters())
    pairs: dict[str, dict[str, Tensor]] = defaultdict(dict)
    wanted = {name for name in heads if name.startswith(f"{SCALAR_HEAD}.")}
    for name, tensor in tensors.items():
        layer, low_rank, part = name.removeprefix("base_model.model.").partition(".lora_")
        if low_rank:
            pairs[layer][part] = tensor
        elif layer in wanted and heads[layer].shape == tensor.shape:
            heads[layer].copy_(tensor)
            wanted.remove(layer)
    parts = {"A.weight", "B.weight"}
    if wanted or any(layer not in layers or pairs[layer].keys() != parts for layer in pairs):
        raise UserError(f"{where}: its weights are not those of its adapter_config.json. {WHOLE}")
    for name, pair in pairs.items():
        layer, scale = layers[name], adapter.lora_alpha / adapter.r
        for key, matrix in ((LOW, pair["A.weight"]), (HIGH, pair["B.weight"] * scale)):
            own = nn.Parameter(matrix.float().to(layer.weight.device), requires_grad=False)
            layer.register_parameter(key, own)
        layer.register_forward_hook(_kept)
    check_finite(folder, model)


def _kept(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Forward hook: (..., out) with the kept adapter's part, of inputs (..., in)."""
    return output + linear(linear(inputs[0], getattr(layer, LOW)), getattr(layer, HIGH))


@torch.no_grad()
def frozen_sum(model: nn.Module) -> int:
    """A sum over the bits of all weights of `model` that are not trained, as whole numbers: another
    one if any of them has changed. Biases of layers in few bits are left out: bitsandbytes rounds
    them at their first use."""
    total, whole = 0, {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    for module in model.modules():
        few = hasattr(module, "init_8bit_state") or hasattr(module, "quant_state")
        for name, parameter in module.named_parameters(recurse=False):
            if not (parameter.requires_grad or (few and name == "bias")):
                bits = parameter.detach().contiguous().view(whole[parameter.element_size()])
                total += int(bits.sum(dtype=torch.int64))
    return total
