"""Low-rank adapters through peft, and the frozen weights beside them in few bits.

A stage's folder has its adapter under adapter/, and unless `lora.merge` is off the merged model
beside it. Without that the adapter's base, which adapter_config.json names, is needed to load it.

Frozen weights of the body's linear layers are held in 8 or 4 bits through bitsandbytes (Dettmers et
al. 2022, 2023), or those of all linear layers in bf16. The rest stays in fp32. peft, which takes
seconds to import, is imported where there are adapters alone.
"""

import logging
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import BITSANDBYTES_MIN_VERSION, is_bitsandbytes_available

from cores.config import LoraSection, ModelSection
from cores.errors import UserError
from cores.models.folders import WHOLE, reading
from cores.models.heads import built
from cores.models.vocabulary import saved_rows

# It tells of every cast to fp16, and on CPUs of kernels that nobody needs, when TRL imports it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

ADAPTER = "adapter"
MOST_RANK = 2**14
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""What weights in 4 bits are computed with, by `model.precision`; else fp32."""
BLOCK = 64
"""Weights that share one scale in 4 bits, bitsandbytes' default."""
SCALAR_HEAD = "score"
"""Head of a classification model: it computes in fp32, outside autocast, and may be trained."""


def add_lora(model: PreTrainedModel, section: LoraSection, task: str, key: str) -> Any:
    """Wrap `model` in adapters; UserError naming `key` if no layer has the names given. task:
    peft's name of it.

    peft leaves the head out of "all-linear", and trains that of a classification model in full.
    """
    from peft import LoraConfig, get_peft_model

    head = getattr(model, SCALAR_HEAD, None)
    config = LoraConfig(
        task_type=task,
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=section.dropout,
        target_modules=section.target_modules or "all-linear",
        # GPT-2's linear layer has a weight (in, out); a quantised one knows that it was one.
        # peft leaves a head of one layer out by itself.
        exclude_modules=rf"{SCALAR_HEAD}\..*" if isinstance(head, nn.Sequential) else None,
        fan_in_fan_out=any(
            isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D
            for module in model.modules()
        ),
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        if "target" not in str(error).lower():
            raise
        raise UserError(
            f"{key}.target_modules: {section.target_modules} names no layer of "
            f"{type(model).__name__}; leave the key out to adapt every linear layer."
        ) from None


def language_task(config: PretrainedConfig) -> str:
    """What a language model of this configuration is to peft."""
    return "SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM"


def lone_adapter(folder: str | Path) -> Any:
    """The adapter's configuration, where `folder` has an adapter and no weights; else None."""
    place = Path(folder) / ADAPTER
    if not (place / "adapter_config.json").is_file() or any(Path(folder).glob("*.safetensors")):
        return None
    from peft import LoraConfig, PrefixTuningConfig

    with reading(place, "adapter"):
        config = LoraConfig.from_pretrained(str(place))
    if isinstance(config, PrefixTuningConfig):
        raise UserError(
            f"{place}: holds keys and values that stand before every row (sft.prefix_tokens), and "
            "no whole model can be made of them, which later stages start from. Train stage 1 in "
            "full, or with sft.lora.rank."
        )
    if not isinstance(config, LoraConfig) or not 0 < config.r <= MOST_RANK:
        raise UserError(f"{place}: no LoRA adapter of a rank from 1 to {MOST_RANK}. {WHOLE}")
    return config


def base_of(folder: str | Path, adapter: Any) -> str:
    """The folder or hub id of the model that an adapter belongs to; UserError if it is gone."""
    base = str(adapter.base_model_name_or_path)
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(
            f"{folder}: it holds an adapter alone, to the model in {base}, and there is no such "
            "folder any more. Put the model back there, or train the stage again with its "
            "lora.merge at true, which needs no base afterwards."
        )
    return base


def merged(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """`model` with `folder`/adapter merged into its weights.

    An adapter of a causal model goes onto a classification model too: layers have the same names.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    place = str(Path(folder) / ADAPTER)
    with reading(place, "adapter"):
        config = LoraConfig.from_pretrained(place)
        config.task_type = None  # or peft wants the class it was trained on
        both = PeftModel.from_pretrained(model, place, config=config)
        theirs = load_peft_weights(place, device="cpu").keys()
        ours = get_peft_model_state_dict(both, save_embedding_layers=False).keys()
    if theirs ^ ours:  # peft would start what is missing at random
        raise UserError(f"{place}: its weights are not those of its adapter_config.json. {WHOLE}")
    return both.merge_and_unload().requires_grad_(True)  # peft froze it


def check_quantization(
    model: ModelSection, frozen: bool, key: str, zero_stage: int, device: torch.device
) -> None:
    """UserError if model.quantization cannot go with this stage, which trains adapters (`key`)
    beside `frozen` weights or all of them, with this launch or this machine."""
    how = model.quantization
    if how == "none":
        return
    if not frozen:
        raise UserError(
            f"model.quantization: weights held in {how} cannot be trained, and {key}.rank is 0, "
            f"which trains all of them. Set {key}.rank (8 is usual), or give this stage "
            "--model.quantization none."
        )
    if zero_stage == 3:
        raise UserError(
            f"model.quantization: weights in {how} cannot be shards (ZeRO-3, FSDP2). Launch with "
            "DDP or ZeRO-2, or give --model.quantization none."
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


def check_widths(section: ModelSection, kind: Any, path: str | Path, config: Any) -> None:
    """UserError for a layer whose rows are not whole blocks, before any weights are read.

    In 4 bits on a CPU bitsandbytes 0.50 reads some other widths back wrongly, without a word.
    """
    if section.quantization != "4bit" or torch.cuda.is_available():
        return
    with torch.device("meta"), reading(path, "model"):  # no memory, no time
        shapes = built(kind, config)
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
        return hold_linears(model, torch.bfloat16)
    head: Any = model.get_output_embeddings()
    heads = [name for name, m in model.named_modules() if m is head or name == SCALAR_HEAD]
    how = BitsAndBytesConfig(
        load_in_8bit=section.quantization == "8bit",
        load_in_4bit=section.quantization == "4bit",
        llm_int8_skip_modules=heads,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=HALVES.get(section.precision, torch.float32),
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
    small.saved_rows = saved_rows(model)
    del small.config.quantization_config  # what is saved is an adapter and the base as it was
    for layer in small.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            # On CPUs it would pack weights for inference, which training cannot read afterwards.
            layer.support_avx512bf16_for_cpu = False
    return small.eval()


def hold_linears(model: Any, half: torch.dtype) -> Any:
    """`model` (never to be trained itself; adapters may be) with its linear weights in `half`.

    Under autocast to it linear layers (nn.Linear, GPT-2's Conv1D) round their weights so at each
    use, so outputs stay the same bit for bit, for about half the memory. Everything else stays as
    it is: biases, embeddings, norms, the scalar head. A head tied to the embeddings gets a weight
    of its own. Outside autocast the model does not run any more.
    """
    for name, module in model.named_modules():
        linear = isinstance(module, (nn.Linear, Conv1D)) and SCALAR_HEAD not in name.split(".")
        if linear and module.weight.dtype == torch.float32:
            weight = module.weight.detach().to(half)
            module.weight = nn.Parameter(weight, requires_grad=False)
    return model
