"""The model that stage 1 starts from: whether it can, and how it is loaded."""

from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cores.config import ModelSection
from cores.errors import UserError
from cores.models.adapters import base_of, lone_adapter
from cores.models.folders import WHOLE, place
from cores.models.loading import (
    SCALAR_FAMILIES,
    exclude_from,
    load_as,
    load_config,
    load_tokenizer,
    policy_class,
    random_model,
    read,
)
from cores.models.vocabulary import ROWS, architecture, check_cap, embedding

SEQ2SEQ = ("t5", "mt5", "umt5")
"""Model types of encoder-decoders that stage 1 trains: of T5's family, which begin a reply with a
token of their own and so learn its first one."""


def check_base(
    path: str | Path,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    fresh: bool = False,
) -> None:
    """UserError if stage 1 cannot start from `path`: whatever is wrong but the weights' values.

    The weights are loaded onto the meta device, which reads names and shapes alone; with `fresh`
    none are read, as all will be random.
    """
    if not (_causal(config) or config.model_type in SEQ2SEQ):
        raise UserError(
            f"model.path: {architecture(config)} is no causal language model, which reads a text "
            f"from left to right, and no T5. Set model.path to one, of these families: "
            f"{SCALAR_FAMILIES}."
        )
    if config.is_encoder_decoder and getattr(config, "decoder_start_token_id", None) is None:
        raise UserError(
            f"{path}: its config.json has no decoder_start_token_id, which a reply begins behind. "
            "Add it (T5: 0, the id of pad)."
        )
    check_cap(config)
    adapter = lone_adapter(place(path))
    if adapter is not None:
        base_of(path, adapter)
        return
    auto = policy_class(config)
    if fresh:
        with torch.device("meta"):
            model = random_model(auto, path, config, 0)
    else:
        with torch.random.fork_rng(devices=[]):
            model = read(auto, path, config, device_map="meta")
    rows = embedding(model).shape[0]
    if len(tokenizer) > rows + max(ROWS, rows // 10):
        raise UserError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens and its model {rows} rows: they "
            f"do not belong together. {WHOLE}"
        )


def _causal(config: PretrainedConfig) -> bool:
    masked = architecture(config).endswith("MaskedLM")
    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    return known and not (config.is_encoder_decoder or masked)


def load_base(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    frozen: ModelSection | None = None,
    fresh: int | None = None,
) -> PreTrainedModel:
    """The model that stage 1 starts from: a language model in fp32 with its dropout, a row for
    every id, pad excluded. `fresh`: its weights are random, by this seed, and none are read."""
    auto = policy_class(load_config(path))
    model = load_as(auto, path, True, tokenizer, frozen, len(load_tokenizer(path)), fresh)
    exclude_from(model, tokenizer)
    return model
