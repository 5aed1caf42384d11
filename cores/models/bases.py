"""The model that stage 1 starts from: whether it can, and how it is loaded."""

from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cores.config import Config, ModelSection
from cores.errors import UserError
from cores.models.adapters import base_of, lone_adapter
from cores.models.folders import WHOLE, place
from cores.models.heads import class_of
from cores.models.images import one_vocabulary, reads_images
from cores.models.loading import (
    SCALAR_FAMILIES,
    SEQ2SEQ,
    exclude_from,
    load_as,
    load_tokenizer,
    random_model,
    read,
)
from cores.models.vocabulary import (
    ROWS,
    architecture,
    check_cap,
    embedding,
    settle_pad_token,
    settle_tokens,
)


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
    masked = architecture(config).endswith("MaskedLM")
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
    others = config.model_type in SEQ2SEQ or reads_images(config)
    if not (others or (causal and not masked)):
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
    kind = class_of(config, scalar=False)
    if fresh:
        with torch.device("meta"):
            model = random_model(kind, path, config, 0)
    else:
        with torch.random.fork_rng(devices=[]):
            model = read(kind, path, config, device_map="meta")
    rows = embedding(one_vocabulary(model)).shape[0]
    if len(tokenizer) > rows + max(ROWS, rows // 10):
        raise UserError(
            f"{path}: its tokenizer has {len(tokenizer)} tokens and its model {rows} rows: they "
            f"do not belong together. {WHOLE}"
        )


def base_tokenizer(config: Config) -> tuple[PreTrainedTokenizerBase, list[str]]:
    """The tokenizer of stage 1's base with the template's tokens and a pad of its own, and lines
    that say what is new about it."""
    tokenizer = load_tokenizer(config.model.path)
    notes = [
        settle_tokens(tokenizer, config.template),
        settle_pad_token(tokenizer, config.model.pad_token),
    ]
    return tokenizer, [note for note in notes if note]


def check_encoder(config: Config, base: PretrainedConfig, stage: str, zero_stage: int) -> None:
    """UserError for options that the stage does not have for an encoder-decoder, which `base` is
    the configuration of."""
    if not base.is_encoder_decoder:
        return
    reads = f"model.path: {architecture(base)} reads prompts by an encoder and writes by a decoder"
    unfit = {
        "model.attention prefix": config.model.attention == "prefix",
        "model.quantization": config.model.quantization != "none",
    }
    if stage == "sft":
        unfit |= {
            "sft.packing": config.sft.packing,
            "sft.prefix_tokens": config.sft.prefix_tokens > 0,
            "sft.loss_on all": config.sft.loss_on == "all",
            "data.sft.streaming": config.data.sft.streaming,
            "data.join": config.data.join is not None,
        }
    else:
        coati = config.ppo.estimator == "coati" and config.ppo.coati.mean_over_positions
        unfit |= {
            "reward.base": config.reward.base is not None,
            "reward.path": config.reward.path is not None,
            "ppo.coati.mean_over_positions": stage == "ppo" and coati,
            "shards (DeepSpeed, FSDP2)": zero_stage > 0,
        }
    if keys := [key for key, there in unfit.items() if there]:
        raise UserError(
            f"{reads}, which goes without {', '.join(keys)}. Set back what is named, or take a "
            "model that has a decoder alone."
        )


def load_base(
    path: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    frozen: ModelSection | None = None,
    fresh: int | None = None,
) -> PreTrainedModel:
    """The model that stage 1 starts from: a language model in fp32 with its dropout, a row for
    every id, pad excluded. `fresh`: its weights are random, by this seed, and none are read."""
    model = load_as(path, False, True, tokenizer, frozen, len(load_tokenizer(path)), fresh)
    exclude_from(model, tokenizer)
    return model
