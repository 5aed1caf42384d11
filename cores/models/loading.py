"""From folders or the hub to models and back, always in ordinary Hugging Face form."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cores.errors import UserError
from cores.models.vocabulary import embedding, exclude_tokens, excluded_ids, fit_vocabulary

DROPOUTS = ("dropout", "_pdrop")
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


def max_length(config: PretrainedConfig) -> int | None:
    """Positions of the model; None where they are not bounded (ALiBi)."""
    found = [getattr(config, name, None) for name in LENGTHS]
    return next((n for n in found if n), None)


def load_policy(path: str | Path, dropout: bool) -> PreTrainedModel:
    """A causal language model in fp32, with its own dropout or none."""
    return _load(AutoModelForCausalLM, path, dropout)


def load_base(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model that stage 1 starts from, with a row for every id and pad excluded."""
    model = load_policy(path, dropout=True)
    fit_vocabulary(model, tokenizer)
    exclude_from(model, tokenizer)
    return model


def load_scalar(path: str | Path, **head: Any) -> PreTrainedModel:
    """A one-label sequence-classification model in fp32, without dropout."""
    return _load(AutoModelForSequenceClassification, path, dropout=False, **head)


def exclude_from(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Exclude pad and the ids beyond the tokenizer from `model`'s distributions; return the ids."""
    ids = excluded_ids(tokenizer, embedding(model).shape[0])
    exclude_tokens(model, ids)
    return ids


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors), config, generation config and tokenizer to `folder`.

    A causal model's generation config suppresses the ids that were excluded in training, so that
    other tools do not sample them either.
    """
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
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def _with(first: int, others: int | list[int] | None) -> int | list[int]:
    """Stop ids of the generation config: the tokenizer's eos and those the parent had."""
    listed = others if isinstance(others, list) else [others] if others is not None else []
    rest = [i for i in listed if i != first]
    return [first, *rest] if rest else first


def _load(auto: Any, path: str | Path, dropout: bool, **kwargs: Any) -> PreTrainedModel:
    config = load_config(path)
    kept = {
        k: v for k, v in config.to_dict().items() if k.endswith(DROPOUTS) and isinstance(v, float)
    }
    if not dropout:
        config.update(dict.fromkeys(kept, 0.0))
    for key, value in kwargs.items():
        setattr(config, key, value)
    try:
        model = auto.from_pretrained(_place(path), config=config, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(_unloadable(path, "model", error)) from None
    model.config.update(kept)
    return model


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
