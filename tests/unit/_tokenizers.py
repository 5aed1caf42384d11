"""Four tiny tokenizers of the kinds that matter, trained here in a second."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Could you please bring a towel to room 12? Of course, I will bring it right away.",
    "User: Hello there! Assistant: Good morning, how can I help you today?",
    "### Instruction: Name the capital of France. ### Response: The capital is Paris.",
    "The weather is fine; don't worry about the rain, it won't come before Friday evening.",
    "你好，请问今天的天气怎么样？ 今天天气很好。 1234567890 <html> {json: true}\n\nNew line\n",
] * 3

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def gpt2_like() -> PreTrainedTokenizerFast:
    """Byte-level BPE, bos = eos = pad, no chat template: GPT-2 with pad set to eos."""
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level([end]), bos_token=end, eos_token=end, pad_token=end
    )


@cache
def chat_like() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a pad of its own and a ChatML template, whose turns end with eos."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(["<|pad|>", "<|im_start|>", "<|im_end|>"]),
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        extra_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _metaspace(special: list[str], unk: str) -> Tokenizer:
    """BPE over characters with byte fallback, "▁" before each text."""
    tokenizer = Tokenizer(models.BPE(unk_token=unk, byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=620, special_tokens=special + bytes_, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def llama_like() -> PreTrainedTokenizerFast:
    """Metaspace BPE over characters with byte fallback, which puts BOS before each text."""
    tokenizer = _metaspace(["<unk>", "<s>", "</s>", "<pad>"], "<unk>")
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


@cache
def t5_like() -> PreTrainedTokenizerFast:
    """The same with no BOS, pad 0 and eos 1, which it puts behind each text."""
    tokenizer = _metaspace(["<pad>", "</s>", "<unk>"], "<unk>")
    tokenizer.post_processor = TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
