"""Tiny random bases that read images beside text: of the architectures of LLaVA, of BLIP-2 (in
place of MiniGPT-4's) and of IDEFICS (in place of OpenFlamingo's), each a folder with weights,
tokenizer and image processor.

Images are 32 x 32 pixels. LLaVA makes 4 tokens of one, BLIP-2 3; IDEFICS has one and reads the
image beside the text.
"""

from pathlib import Path
from typing import Any

SIDE, PATCH = 32, 16
QUERIES = 3
"""Tokens that BLIP-2 makes of an image."""
POSITIONS = 4096
"""As many as the longest rows of the recipes."""
SEED = 7
VISION: dict[str, Any] = {
    "image_size": SIDE, "patch_size": PATCH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip
TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
}  # fmt: skip
WIDE: dict[str, Any] = {"initializer_range": 0.3}
"""About 1/sqrt(width): with the usual 0.02 an image would hardly be seen behind the queries."""
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")


def tokenizer(*special: str) -> Any:
    """Of LLaMA's habits: BOS before a text, every byte and printable ASCII character a token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    names = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), "▁", *map(chr, range(33, 127))]
    bpe = models.BPE(
        {name: i for i, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True
    )
    inner = Tokenizer(bpe)
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    inner.add_special_tokens([AddedToken(name, normalized=False) for name in [*SPECIAL, *special]])
    inner.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", extra_special_tokens=list(special), model_max_length=POSITIONS,
    )  # fmt: skip


def llava(out: Path) -> None:
    """CLIP, a projector, LLaMA; an image is `<image>` once a patch."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Model
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.processing_llava import LlavaProcessor

    words = tokenizer("<image>")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(hidden_size=16, projection_dim=16, **VISION),
        text_config=LlamaConfig(**TEXT, **_ids(words)),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    processor = LlavaProcessor(
        images, words, patch_size=PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip
    _write(Model, config, processor, out)


def blip2(out: Path) -> None:
    """A ViT, a Q-Former, a projection, LLaMA; an image is `<image>` once a query."""
    from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig, LlamaConfig
    from transformers import Blip2ForConditionalGeneration as Model
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
    from transformers.models.blip_2.processing_blip_2 import Blip2Processor

    words = tokenizer("<image>")
    config = Blip2Config(
        vision_config=Blip2VisionConfig(hidden_size=16, **VISION, **WIDE).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            encoder_hidden_size=16, vocab_size=len(words), **WIDE,
        ).to_dict(),
        text_config=LlamaConfig(**TEXT, **_ids(words)).to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    images = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    _write(Model, config, Blip2Processor(images, words, num_query_tokens=QUERIES), out)


def idefics(out: Path) -> None:
    """A ViT and a resampler, which gated layers between LLaMA's read; an image is one `<image>`,
    which is in the additional vocabulary, as in the original."""
    from transformers import IdeficsConfig
    from transformers import IdeficsForVisionText2Text as Model
    from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
    from transformers.models.idefics.processing_idefics import IdeficsProcessor

    added = ("<fake_token_around_image>", "<image>")
    words = tokenizer(*added)
    config = IdeficsConfig(
        **TEXT,
        **_ids(words) | {"vocab_size": len(words) - len(added)},
        additional_vocab_size=len(added),
        vision_config={"embed_dim": 16, **VISION},
        use_resampler=True,
        perceiver_config={
            "use_resampler": True, "resampler_n_latents": 4, "resampler_depth": 1,
            "resampler_n_heads": 2, "resampler_head_dim": 8,
        },
    )  # fmt: skip
    images = IdeficsImageProcessorPil(image_size=SIDE)
    _write(Model, config, IdeficsProcessor(images, words, image_size=SIDE), out)


def _ids(words: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words), "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
    }  # fmt: skip


def _write(model: Any, config: Any, processor: Any, out: Path) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        made = model(config)
        for name, weight in made.named_parameters():
            if name == "query_tokens":  # zeros at first, on which a layer norm has no slope
                torch.nn.init.normal_(weight, std=0.02)
        made.save_pretrained(out)
    processor.save_pretrained(out)
