"""From folders or the hub to models and back, always in ordinary Hugging Face form."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cores.config import ModelSection
from cores.draws import seeded
from cores.errors import UserError
from cores.models.adapters import base_of, check_widths, lone_adapter, merged, quantize
from cores.models.folders import (
    DROPOUTS,
    LAYERDROP,
    WHOLE,
    check_config,
    check_finite,
    check_numbers,
    check_tensors,
    place,
    reading,
)
from cores.models.heads import JUDGES_IMAGES, built, class_of, has_classifier
from cores.models.images import image_ids, one_vocabulary, reads_images
from cores.models.layers import fuse_layers
from cores.models.vocabulary import (
    architecture,
    embedding,
    exclude_tokens,
    excluded_ids,
    fit_vocabulary,
)

SCALAR_FAMILIES = "GPT-2, OPT, BLOOM, GPT-NeoX, GPT-J, Llama, Mistral, Qwen 2 and 3, Gemma"
SEQ2SEQ = ("t5", "mt5", "umt5")
"""Model types of encoder-decoders that are trained: of T5's family, which begin a reply with a
token of their own and so learn its first one."""
LENGTHS = ("max_position_embeddings", "n_positions")


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id; UserError says how to give a local path."""
    where = place(path)
    with reading(path, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        ids = tokenizer.get_vocab().values()
        int(tokenizer.model_max_length)
    if not tokenizer.is_fast:
        raise UserError(f"{path}: a fast tokenizer (tokenizer.json) is needed.")
    if not tokenizer.vocab_size or max(ids) >= len(tokenizer):
        raise UserError(
            f"{path}: its tokenizer has {tokenizer.vocab_size} tokens beside those that were added "
            f"to it, and {len(tokenizer)} in all for ids up to {max(ids, default=0)}. {WHOLE}"
        )
    if not isinstance(tokenizer.chat_template, str | dict | None):
        raise UserError(f"{path}: the chat_template of its tokenizer is no text. {WHOLE}")
    return tokenizer


def load_config(path: str | Path) -> PretrainedConfig:
    """config.json of a folder or hub id."""
    where, what = place(path), "model configuration"
    with reading(path, what):
        raw, _ = PretrainedConfig.get_config_dict(where)
    check_config(path, raw)
    with reading(path, what):
        return AutoConfig.from_pretrained(where, trust_remote_code=False)


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
    if reads_images(config) and config.model_type not in JUDGES_IMAGES:
        return (
            f"{architecture(config)} reads images, and is trained in stage 1 alone. For all three "
            f"stages take a LLaVA, or for texts a model of one of these families: "
            f"{SCALAR_FAMILIES}."
        )
    if has_classifier(config):
        return None
    return (
        f"{architecture(config)} has no sequence-classification class with a linear head in "
        "transformers, and none can be made of its layers, so it can go through stage 1 but not be "
        "a reward model or critic. For all three stages take a model of one of these families: "
        f"{SCALAR_FAMILIES}."
    )


def check_scalar(config: PretrainedConfig, key: str = "model.path") -> None:
    """UserError if there can be no reward model of this architecture, which `key` gave."""
    if problem := scalar_problem(config):
        raise UserError(f"{key}: {problem}")


def max_length(config: PretrainedConfig) -> int | None:
    """Positions of the model; None where they are not bounded (ALiBi, T5)."""
    if config.model_type in SEQ2SEQ:
        return None  # n_positions is what it was trained on
    found = [getattr(config.get_text_config(), name, None) for name in LENGTHS]
    return next((n for n in found if n), None)


def load_policy(
    path: str | Path,
    dropout: bool,
    frozen: ModelSection | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> PreTrainedModel:
    """A language model in fp32, with its own dropout or none. Whole layers never drop out:
    under DDP all parameters need gradients, and ranks would drop different layers.

    `frozen`: its weights will not be trained, and are held as this section's `quantization` says.
    `tokenizer`: it gets a row for every id of this one, and pad and what lies beyond is excluded.
    """
    model = load_as(path, False, dropout, tokenizer, frozen)
    if tokenizer is not None:
        exclude_from(model, tokenizer)
    return model


def load_scalar(
    path: str | Path,
    frozen: ModelSection | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **head: Any,
) -> PreTrainedModel:
    """A one-label sequence-classification model in fp32, without dropout, else as `load_policy`."""
    return load_as(path, True, False, tokenizer, frozen, **head)


def exclude_from(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Exclude pad and the ids beyond the tokenizer from `model`'s distributions; return the ids."""
    ids = excluded_ids(tokenizer, embedding(model).shape[0])
    ids += sorted(image_ids(model.config, tokenizer))
    exclude_tokens(model, ids)
    return ids


def load_as(
    path: str | Path,
    scalar: bool,
    dropout: bool,
    tokenizer: PreTrainedTokenizerBase | None = None,
    frozen: ModelSection | None = None,
    known: int | None = None,
    fresh: int | None = None,
    **kwargs: Any,
) -> PreTrainedModel:
    """The language model of `path`, or where `scalar` the reward model. `known`: ids that its own
    tokenizer has, `fresh`: see `load_base`."""
    config = load_config(path)
    text = config.get_text_config()
    kept = {
        k: v
        for k, v in text.to_dict().items()
        if k.endswith(DROPOUTS) and isinstance(v, int | float) and not isinstance(v, bool)
    }
    text.update(dict.fromkeys((k for k in kept if not dropout or k.endswith(LAYERDROP)), 0.0))
    for key, value in kwargs.items():
        setattr(config, key, value)
    kind = class_of(config, scalar)
    config.return_dict = text.return_dict = True  # outputs are read by name, whatever it says
    if frozen is not None:
        check_widths(frozen, kind, path, config)
    if fresh is None:
        model = one_vocabulary(_weights(kind, path, config))
    else:
        model = one_vocabulary(random_model(kind, path, config, fresh))
    if tokenizer is not None:
        fit_vocabulary(model, tokenizer, known)
    if frozen is not None:
        model = quantize(model, frozen)  # a new one in few bits
    model = fuse_layers(model)
    model.config.get_text_config().update(kept)
    where = place(path)
    model.name_or_path = str(Path(where).resolve()) if Path(where).is_dir() else where
    return model


def read(kind: Any, path: str | Path, config: PretrainedConfig, **where: Any) -> PreTrainedModel:
    """The model of `path` in fp32, all of its weights the checkpoint's own, but a new head."""
    folder = place(path)
    with reading(path, "model"):
        model, info = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # named below, with the rest
            output_loading_info=True,
            **where,
        )
    check_tensors(path, type(model), info, config.architectures or [])
    check_numbers(folder)
    check_finite(path, model)
    return model


def random_model(
    kind: Any, path: str | Path, config: PretrainedConfig, seed: int
) -> PreTrainedModel:
    """A model in fp32 with the weights that its family begins training with."""
    with reading(path, "model"), seeded(seed, "weights"):
        model: PreTrainedModel = built(kind, config, dtype=torch.float32)
    return model


def _weights(kind: Any, path: str | Path, config: PretrainedConfig) -> PreTrainedModel:
    """The model of `path` in fp32: its own weights, or where it has an adapter alone, those of the
    adapter's base, which may be an adapter itself, with the adapter merged into them."""
    folder = place(path)
    adapter = lone_adapter(folder)
    if adapter is None:
        return read(kind, path, config)
    base = base_of(folder, adapter)
    theirs = load_config(base)  # the vocabulary grew on the way, by what the tokenizer tells
    for key in ("vocab_size", "pad_token_id"):
        setattr(config.get_text_config(), key, getattr(theirs.get_text_config(), key))
    config.architectures = theirs.architectures
    # Random numbers are forked off where a merged parent would draw none: the runs are then alike.
    with torch.random.fork_rng(devices=[], enabled=bool(adapter.modules_to_save)):  # its own head
        model = _weights(kind, base, config)
    with torch.random.fork_rng(devices=[]):
        fit_vocabulary(model, load_tokenizer(folder), len(load_tokenizer(base)), to=1)
        model = merged(model, folder)
    check_finite(path, model)
    return model
