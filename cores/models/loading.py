"""From folders or the hub to models and back, always in ordinary Hugging Face form."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from cores.config import ModelSection
from cores.errors import UserError
from cores.models.activations import fuse_activations
from cores.models.actor import plain_model
from cores.models.lora import base_of, lone_adapter, merged, save_adapter
from cores.models.quantization import check_widths, needs_whole_blocks, quantize
from cores.models.vocabulary import (
    architecture,
    embedding,
    exclude_tokens,
    excluded_ids,
    fit_vocabulary,
)

LAYERDROP = "layerdrop"
DROPOUTS = ("dropout", "_pdrop", LAYERDROP)
SCALAR_FAMILIES = "GPT-2, OPT, BLOOM, GPT-NeoX, GPT-J, Llama, Mistral, Qwen 2 and 3, Gemma"
LENGTHS = ("max_position_embeddings", "n_positions")
SAMPLING = "temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff".split()


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id; UserError says how to give a local path."""
    place = _place(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise UserError(_unloadable(path, "tokenizer", error)) from None
    if not tokenizer.is_fast:
        raise UserError(
            f"{path}: a fast tokenizer (tokenizer.json) is needed for character offsets."
        )
    return tokenizer


def load_config(path: str | Path) -> PretrainedConfig:
    """config.json of a folder or hub id."""
    place = _place(path)
    try:
        return AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise UserError(_unloadable(path, "model configuration", error)) from None


def check_length(config: PretrainedConfig, tokens: int, keys: str) -> None:
    """UserError if a row of `tokens` tokens is longer than the model's positions."""
    longest = max_length(config)
    if longest is not None and tokens > longest:
        raise UserError(
            f"{keys}: {tokens} tokens are more than the {longest} positions of the model. Lower "
            f"{keys.split(' + ')[0]}, or take a model with a longer context."
        )


def scalar_problem(config: PretrainedConfig) -> str | None:
    """What keeps this architecture from being a reward model, if anything; reads no weights."""
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        with torch.device("meta"):  # shapes alone: no memory, no time
            model = AutoModelForSequenceClassification.from_config(deepcopy(config))
        if hasattr(model, "score"):
            return None
    return (
        f"{architecture(config)} has no sequence-classification class with a linear head in "
        "transformers, so it can go through stage 1 but not be a reward model or critic. For all "
        f"three stages set model.path to a model of one of these families: {SCALAR_FAMILIES}."
    )


def check_scalar(config: PretrainedConfig) -> None:
    """UserError if there can be no reward model of this architecture."""
    problem = scalar_problem(config)
    if problem:
        raise UserError(f"model.path: {problem}")


def max_length(config: PretrainedConfig) -> int | None:
    """Positions of the model; None where they are not bounded (ALiBi)."""
    found = [getattr(config, name, None) for name in LENGTHS]
    return next((n for n in found if n), None)


def load_policy(
    path: str | Path, dropout: bool, frozen: ModelSection | None = None
) -> PreTrainedModel:
    """A causal language model in fp32, with its own dropout or none. Whole layers never drop out:
    under DDP all parameters need gradients, and ranks would drop different layers.

    `frozen`: its weights will not be trained, and are held as this section's `quantization` says.
    """
    return _load(AutoModelForCausalLM, path, dropout, frozen=frozen)


def load_base(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, frozen: ModelSection | None = None
) -> PreTrainedModel:
    """The model that stage 1 starts from, with a row for every id and pad excluded.

    `frozen` as in `load_policy`.
    """
    model = _load(AutoModelForCausalLM, path, True, tokenizer=tokenizer, frozen=frozen)
    exclude_from(model, tokenizer)
    return model


def load_scalar(
    path: str | Path, frozen: ModelSection | None = None, **head: Any
) -> PreTrainedModel:
    """A one-label sequence-classification model in fp32, without dropout.

    `frozen` as in `load_policy`.
    """
    return _load(AutoModelForSequenceClassification, path, dropout=False, frozen=frozen, **head)


def exclude_from(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Exclude pad and the ids beyond the tokenizer from `model`'s distributions; return the ids."""
    ids = excluded_ids(tokenizer, embedding(model).shape[0])
    exclude_tokens(model, ids)
    return ids


def save_model(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    merge: bool = True,
) -> None:
    """Write weights (safetensors), config, generation config and tokenizer to `folder`.

    Of a model with adapters: `folder`/adapter, and (if `merge`) the weights of its base with the
    adapter merged into them. The base is read again, in fp32 whatever it was trained in.
    """
    _settle_generation(plain_model(model), tokenizer)
    tokenizer.save_pretrained(folder)
    if not isinstance(model, PeftModel):
        model.save_pretrained(str(folder))
        return
    save_adapter(model, folder)
    _save_configs(plain_model(model), folder)
    if merge:
        merge_adapter(folder, folder)


def merge_adapter(folder: Path, out: Path) -> None:
    """Write the model that `folder`/adapter and its base make together to `out`, merged."""
    unset_hf_deepspeed_config()  # else ZeRO-3 would load the base as shards, on this rank alone
    architectures = load_config(folder).architectures or []
    scalar = any("SequenceClassification" in name for name in architectures)
    auto = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    save_model(_load(auto, folder, dropout=True), load_tokenizer(folder), out)


def _save_configs(model: Any, folder: Path) -> None:
    """What `save_pretrained` writes beside the weights, of the model as it is without adapters."""
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(str(folder))
    if model.can_generate():
        model.generation_config.save_pretrained(str(folder))


def _settle_generation(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """A causal model's generation config suppresses the ids that were excluded in training, so
    that other tools do not sample them either."""
    if model.can_generate():
        generation = GenerationConfig.from_dict(model.generation_config.to_dict())
        generation.pad_token_id = tokenizer.pad_token_id
        generation.eos_token_id = _with(tokenizer.eos_token_id, generation.eos_token_id)
        generation.suppress_tokens = excluded_ids(tokenizer, model.config.vocab_size)
        if not generation.do_sample:
            # Some parents have sampling settings beside greedy decoding. They mean nothing there,
            # and the library refuses to save them.
            for name in SAMPLING:
                setattr(generation, name, None)
        model.generation_config = generation


def _with(first: int, others: int | list[int] | None) -> int | list[int]:
    """Stop ids of the generation config: the tokenizer's eos and those the parent had."""
    listed = others if isinstance(others, list) else [others] if others is not None else []
    rest = [i for i in listed if i != first]
    return [first, *rest] if rest else first


def _load(
    auto: Any,
    path: str | Path,
    dropout: bool,
    tokenizer: PreTrainedTokenizerBase | None = None,
    frozen: ModelSection | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    config = load_config(path)
    kept = {
        k: v for k, v in config.to_dict().items() if k.endswith(DROPOUTS) and isinstance(v, float)
    }
    config.update(dict.fromkeys((k for k in kept if not dropout or k.endswith(LAYERDROP)), 0.0))
    for key, value in kwargs.items():
        setattr(config, key, value)
    if frozen is not None and needs_whole_blocks(frozen):
        check_widths(_shapes(auto, path, config))
    model = _weights(auto, path, config)
    if tokenizer is not None:
        fit_vocabulary(model, tokenizer)
    if frozen is not None:
        model = quantize(model, frozen)  # a new one in few bits
    model = fuse_activations(model)
    model.config.update(kept)
    place = _place(path)
    model.name_or_path = str(Path(place).resolve()) if Path(place).is_dir() else place
    return model


def _shapes(auto: Any, path: str | Path, config: PretrainedConfig) -> PreTrainedModel:
    """The model without weights, on the meta device: no memory, no time."""
    try:
        with torch.device("meta"):
            return auto.from_config(deepcopy(config))
    except ValueError as error:
        raise UserError(_unloadable(path, "model", error)) from None


def _weights(auto: Any, path: str | Path, config: PretrainedConfig) -> PreTrainedModel:
    """The model of `path` in fp32: its own weights, or where it has an adapter alone, those of the
    adapter's base, which may be an adapter itself, with the adapter merged into them."""
    place = _place(path)
    adapter = lone_adapter(place)
    if adapter is None:
        try:
            return auto.from_pretrained(place, config=config, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise UserError(_unloadable(path, "model", error)) from None
    base = base_of(place, adapter)
    theirs = load_config(base)  # the vocabulary grew on the way, by what the tokenizer tells
    config.update({key: getattr(theirs, key) for key in ("vocab_size", "pad_token_id")})
    # Random numbers are forked off where a merged parent would draw none: the runs are then alike.
    with torch.random.fork_rng(devices=[], enabled=bool(adapter.modules_to_save)):  # its own head
        model = _weights(auto, base, config)
    with torch.random.fork_rng(devices=[]):
        fit_vocabulary(model, load_tokenizer(place))
        return merged(model, place)


def _place(path: str | Path) -> str:
    """The folder, `~` written out, or the hub id; UserError if it is neither."""
    looks_local = str(path).startswith((".", "/", "~")) or str(path).count("/") > 1
    if looks_local and not Path(path).expanduser().is_dir():
        raise UserError(
            f"model.path: there is no folder {path}. Give a folder in Hugging Face form, or a "
            "hub id."
        )
    return str(Path(path).expanduser())


def _unloadable(path: str | Path, what: str, error: Exception) -> str:
    first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if Path(path).is_dir():
        return f"{path}: its {what} cannot be loaded: {first}"
    return (
        f"model.path: {path!r} is no local folder, and its {what} could not be fetched from the "
        "Hugging Face hub. Check the name and the network, or download the model elsewhere and "
        "give its folder: --model.path FOLDER."
    )
