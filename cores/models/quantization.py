"""Frozen weights in 8 or 4 bits, through bitsandbytes (Dettmers et al. 2022, 2023), or in bf16.

Only linear layers are held so, of the body alone in 8 and 4 bits; the rest stays in fp32.
"""

import logging
from copy import deepcopy
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import BITSANDBYTES_MIN_VERSION, is_bitsandbytes_available

from cores.config import LoraSection, ModelSection
from cores.errors import UserError
from cores.models.folders import reading

# It tells of every cast to fp16, and on CPUs of kernels that nobody needs, when TRL imports it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

BLOCK = 64
"""Weights that share one scale in 4 bits, bitsandbytes' default."""
SCALAR_HEAD = "score"
"""Head of a classification model: it computes in fp32, outside autocast, and may be trained."""


def check_quantization(
    model: ModelSection, lora: LoraSection, key: str, zero_stage: int, device: torch.device
) -> None:
    """UserError if model.quantization cannot go with this stage's adapters (`key`), this launch or
    this machine."""
    how = model.quantization
    if how == "none":
        return
    if not lora.rank:
        raise UserError(
            f"model.quantization: weights held in {how} cannot be trained, and {key}.rank is 0, "
            f"which trains all of them. Set {key}.rank (8 is usual), or give this stage "
            "--model.quantization none."
        )
    if zero_stage == 3:
        raise UserError(
            f"model.quantization: ZeRO-3 cannot shard weights in {how}. Launch with DDP or ZeRO-2, "
            "or give --model.quantization none."
        )
    if how == "bf16":
        return
    weight = torch.ones(64, 64, dtype=torch.float16, device=device)
    try:
        from bitsandbytes import functional

        if how == "8bit":
            functional.int8_vectorwise_quant(weight)
        else:
            functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
        transformers_knows_it = is_bitsandbytes_available()
    except (ImportError, AttributeError, OSError, RuntimeError, ValueError) as error:
        transformers_knows_it, reason = False, str(error).splitlines()[0]
    else:
        reason = f"transformers wants version {BITSANDBYTES_MIN_VERSION} or newer"
    if not transformers_knows_it:
        raise UserError(
            f"model.quantization: bitsandbytes {metadata.version('bitsandbytes')} cannot hold "
            f"weights in {how} on {device}: {reason}. Run `pip install -U bitsandbytes` (it needs "
            "a GPU that it supports, or a recent version for CPUs), or give --model.quantization "
            "none."
        )


def check_widths(section: ModelSection, auto: Any, path: str | Path, config: Any) -> None:
    """UserError for a layer whose rows are not whole blocks, before any weights are read.

    In 4 bits on a CPU bitsandbytes 0.50 reads some other widths back wrongly, without a word.
    """
    if section.quantization != "4bit" or torch.cuda.is_available():
        return
    with torch.device("meta"), reading(path, "model"):  # no memory, no time
        shapes = auto.from_config(deepcopy(config), trust_remote_code=False)
    for name, layer in shapes.named_modules():
        if not isinstance(layer, (nn.Linear, Conv1D)):
            continue
        width = layer.weight.shape[0 if isinstance(layer, Conv1D) else 1]
        if width % BLOCK:
            raise UserError(
                f"model.quantization: on CPUs 4bit needs layers whose input is a multiple of "
                f"{BLOCK} wide, and {name} takes {width}. Use 8bit, or a GPU."
            )


def quantize(model: PreTrainedModel, section: ModelSection) -> PreTrainedModel:
    """`model` with its linear layers in `section.quantization`; itself if that is none.

    In 8 and 4 bits made anew from the weights in memory: by then the vocabulary fits and adapters
    are merged.
    """
    if section.quantization == "none":
        return model
    if section.quantization == "bf16":
        return hold_linears_in_bf16(model)
    head: Any = model.get_output_embeddings()
    heads = [name for name, m in model.named_modules() if m is head or name == SCALAR_HEAD]
    how = BitsAndBytesConfig(
        load_in_8bit=section.quantization == "8bit",
        load_in_4bit=section.quantization == "4bit",
        llm_int8_skip_modules=heads,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if section.precision == "bf16" else torch.float32,
    )
    small: Any = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict=model.state_dict(),
        quantization_config=how,
        dtype=torch.float32,
    )
    if model.can_generate():
        small.generation_config = model.generation_config
    del small.config.quantization_config  # what is saved is an adapter and the base as it was
    for layer in small.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # On CPUs it would pack weights for inference, which training cannot read afterwards.
            layer.support_avx512bf16_for_cpu = False
    return small.eval()


def hold_linears_in_bf16(model: Any) -> Any:
    """`model` (never to be trained itself; adapters may be) with its linear weights in bfloat16.

    Under bfloat16 autocast linear layers (nn.Linear, GPT-2's Conv1D) round their weights so at each
    use, so outputs stay the same bit for bit, for about half the memory. Everything else stays as
    it is: biases, embeddings, norms, the scalar head. A head tied to the embeddings gets a weight
    of its own. Outside autocast the model does not run any more.
    """
    for name, module in model.named_modules():
        linear = isinstance(module, (nn.Linear, Conv1D)) and name.split(".")[-1] != SCALAR_HEAD
        if linear and module.weight.dtype == torch.float32:
            weight = module.weight.detach().to(torch.bfloat16)
            module.weight = nn.Parameter(weight, requires_grad=False)
    return model
