"""Bases that read images beside text: LLaVA, BLIP-2 (over a causal language model) and IDEFICS.

LLaVA and BLIP-2 put the features of an image in the place of a run of image tokens; IDEFICS has one
token an image, and layers between the others that read the image which a mask says.

Shapes: B rows of L tokens, N images of a batch, C x H x W pixels of one.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cores.config import Config
from cores.errors import UserError
from cores.models.folders import place, reading
from cores.models.vocabulary import architecture

IMAGE_TEXT = ("llava", "blip-2", "idefics")
"""Model types."""
NAMES = ("<image>", "<fake_token_around_image>")
"""IDEFICS's tokens, which its configuration does not name."""


def reads_images(config: PretrainedConfig) -> bool:
    """Whether a base of this configuration reads images beside text."""
    return config.model_type in IMAGE_TEXT


def run_ids(config: PretrainedConfig) -> set[int]:
    """The id that stands for a part of an image, again and again; none where an image is one
    token."""
    found = getattr(config, "image_token_id", None) if reads_images(config) else None
    return set() if found is None else {found}


def image_ids(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids that stand for images, which no reply may hold."""
    if config.model_type != "idefics":
        return run_ids(config)
    known = tokenizer.get_vocab()
    return {known[name] for name in NAMES if name in known}


def image_processor(
    config: Config, base: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, zero_stage: int
) -> "ImageProcessor | None":
    """What `base` makes of images; None if it reads none. UserError for what does not go with a
    base that does."""
    if not reads_images(base):
        return None
    name = architecture(base)
    if base.model_type == "blip-2" and not base.use_decoder_only_language_model:
        raise UserError(
            f"model.path: the language model of this {name} is an encoder-decoder, which is not "
            "trained with images; take one over OPT or LLaMA."
        )
    text = config.model.attention != "causal" or config.sft.prefix_tokens
    unfit = {
        "sft.packing": config.sft.packing,
        "sft.lora.rank": config.sft.lora.rank,
        "model.quantization": config.model.quantization != "none",
        "data.sft.streaming": config.data.sft.streaming,
        "data.join": config.data.join is not None,
        "data.too_long split": config.data.too_long == "split",
        "model.attention prefix and sft.prefix_tokens": text,
        "shards (DeepSpeed, FSDP2)": zero_stage,
    }
    for key, chosen in unfit.items():
        if chosen:
            raise UserError(
                f"model.path: {name} reads images, and such a base is not trained with {key}; "
                "leave it out (model.trainable trains a part of the weights)."
            )
    if find_spec("PIL") is None:
        raise UserError(f"model.path: {name} reads images; run `pip install tristage[images]`.")
    return ImageProcessor(config.model.path, base, tokenizer)


def later_processor(
    config: Config,
    base: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    stage: str,
    processes: int,
) -> "ImageProcessor | None":
    """As `image_processor` in stages 2 and 3, of the policy `base` in `folder`; so many processes
    run."""
    if not reads_images(base):
        return None
    name, section = architecture(base), getattr(config, stage)
    unfit = {
        f"{stage}.lora.rank": section.lora.rank,
        "model.quantization": config.model.quantization != "none",
        "reward.base": config.reward.base,
        "reward.path": config.reward.path,
        "ppo.ptx_coef": stage == "ppo" and config.ppo.ptx_coef,
        "several processes": processes > 1,
    }
    if keys := [key for key, chosen in unfit.items() if chosen]:
        raise UserError(
            f"model.path: {name} reads images, and stages 2 and 3 of such a base go without "
            f"{', '.join(keys)}; set back what is named."
        )
    if find_spec("PIL") is None:
        raise UserError(f"model.path: {name} reads images; run `pip install tristage[images]`.")
    return ImageProcessor(str(folder), base, tokenizer)


def hold_tower(model: Any) -> Any:
    """`model`, whose vision tower, if it has one, stays as it is: behind stage 1 what an image is
    has been learned, and some of its layers give nothing that is read."""
    for name, parameter in model.named_parameters():
        if "vision_tower" in name.split("."):
            parameter.requires_grad_(False)
    return model


@dataclass(frozen=True)
class ImageProcessor:
    """What a base makes of images: its own image processor, and the tokens that stand for one."""

    path: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def processor(self) -> Any:
        """The base's processor, with the tokenizer of this run."""
        with reading(self.path, "image processor"):
            found = AutoProcessor.from_pretrained(place(self.path), trust_remote_code=False)
            found.image_processor  # noqa: B018  # a folder may have a tokenizer alone
        found.tokenizer = self.tokenizer
        return found

    @cached_property
    def id(self) -> int:
        """Of the token that stands for an image, or for a part of it."""
        known = self.tokenizer.get_vocab()
        ids = run_ids(self.config) or {known[name] for name in NAMES[:1] if name in known}
        found = next(iter(ids), None)
        token = None if found is None else self.tokenizer.convert_ids_to_tokens(found)
        read = token and self.tokenizer(token, add_special_tokens=False)["input_ids"]
        if found is None or read != [found]:
            raise UserError(
                f"{self.path}: its tokenizer has no token that stands for an image "
                f"(image_token_id in config.json: {found}; special token <image>). Give the "
                "tokenizer that belongs to the model."
            )
        return found

    @property
    def token(self) -> str:
        """The token of `id`."""
        return str(self.tokenizer.convert_ids_to_tokens(self.id))

    @cached_property
    def count(self) -> int:
        """Tokens that stand for one image, as many as the base makes features of it.

        UserError where the processor makes images of another size than the base reads.
        """
        blank = self.pixels([self.blank()])
        side, made = self.config.vision_config.image_size, list(blank.shape[-2:])
        if made != ([side, side] if isinstance(side, int) else list(side)):
            raise UserError(
                f"{self.path}: its image processor makes images of {made} pixels, and its "
                f"config.json has image_size {side} (vision_config). Give the processor that "
                "belongs to the model."
            )
        if self.config.model_type != "llava":
            return getattr(self.config, "num_query_tokens", 1)
        small = deepcopy(self.config)
        small.get_text_config().num_hidden_layers = 1  # features come before the language model
        with reading(self.path, "image processor"), torch.device("meta"), torch.no_grad():
            model = AutoModelForImageTextToText.from_config(small, trust_remote_code=False)
            return len(model.get_image_features(blank.to("meta")).pooler_output[0])

    def blank(self) -> Any:
        """A black image: batches without any get one, so that all weights have gradients."""
        from PIL import Image

        return Image.new("RGB", (32, 32))

    def pixels(self, images: list[Any]) -> Tensor:
        """(N, C, H, W) float32 of N images of Pillow."""
        with reading(self.path, "image processor", "applied"):
            made = self.processor.image_processor(images, return_tensors="pt")
        found: Tensor = made if isinstance(made, Tensor) else made["pixel_values"]
        return found

    def inputs(self, ids: Tensor, images: list[list[Any]]) -> dict[str, Tensor]:
        """What the model reads beside ids (B, L) of B rows, the images of each.

        `pixel_values` (N, C, H, W), in the order of the rows. IDEFICS: (B, most images of a row, C,
        H, W), black where a row has fewer, and `image_attention_mask` (B, L, most images), which
        shows each token the last image up to it, the first text none (Alayrac et al. 2022).
        """
        pixels = self.pixels([image for row in images for image in row])
        if run_ids(self.config):
            return {"pixel_values": pixels}
        most = max(map(len, images))
        padded = pixels.new_zeros(len(images), most, *pixels.shape[1:])
        for row, own in enumerate(pixels.split([len(each) for each in images])):
            padded[row, : len(own)] = own
        last = (ids == self.id).cumsum(dim=1)[:, :, None]
        shown = last == torch.arange(1, most + 1, device=ids.device)
        return {"pixel_values": padded, "image_attention_mask": shown.long()}

    def save(self, folder: Path) -> None:
        """Write the processor beside the model, so that stock transformers load both."""
        self.processor.save_pretrained(folder)


Images = ImageProcessor | None
"""Of a base that may read none."""


def one_vocabulary(model: PreTrainedModel) -> PreTrainedModel:
    """`model` with IDEFICS's additional ids as ordinary rows of its embedding and head.

    There they lie in tables of their own, which cannot grow; the model computes the same.
    """
    config = model.config
    more = getattr(config, "additional_vocab_size", 0)
    if not more:
        return model
    table: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    table.weight = nn.Parameter(torch.cat([table.weight, table.additional_embedding.weight]).data)
    tied = config.tie_word_embeddings
    rows = torch.cat([head.weight, head.additional_fc.weight]).data
    head.weight = table.weight if tied else nn.Parameter(rows)
    del table.additional_embedding, head.additional_fc
    config.vocab_size += more
    config.additional_vocab_size = 0
    table.num_embeddings = head.out_features = config.vocab_size
    table.num_additional_embeddings = head.out_additional_features = 0
    vars(model)["_tied_weights_keys"] = {"lm_head.weight": "model.embed_tokens.weight"}
    return model
