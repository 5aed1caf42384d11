"""Tiny tokenizers with the habits of large ones, trained on a few sentences in a second.

Every text comes back from its ids exactly: bytes stand for what the sentences did not have.
"""

import json
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "The kettle boils at seven, and the guests come down for breakfast soon after.",
    "Below is a question about the garden. Write an answer that says which rose to cut.",
    "A good assistant is helpful, polite and brief; it asks when it does not know.",
    "How many steps lead to the lighthouse? Two hundred and twelve, says the keeper.",
    "水开以后再放茶叶，泡三分钟就可以喝了。请问您还需要什么？",
    "问：这条路通到哪里？答：通到河边的老桥。用户说谢谢，助手说不客气。",
] * 2
SIZE = 640
"""Ids at most, special tokens and bytes included."""


def byte_level(special: list[str], merges: bool = True) -> Tokenizer:
    """BPE over bytes, as GPT-2's: OPT, GPT-NeoX, GPT-J, BLOOM, CodeGen. Without merges an id is a
    byte."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE if merges else len(special) + len(alphabet),
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def byte_fallback(special: list[str]) -> Tokenizer:
    """BPE over characters, as sentencepiece's: bytes stand for characters it does not know, line
    breaks among them. No blank is put before a text, which would not come back exactly. Needs
    `<unk>` among `special`."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    blanks = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.pre_tokenizer = blanks
    trainer = trainers.BpeTrainer(vocab_size=SIZE - 256 - len(special), show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(trained["vocab"], key=trained["vocab"].__getitem__)
    names = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    model = models.BPE(
        vocab={name: i for i, name in enumerate(names)},
        merges=[tuple(pair) for pair in trained["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    made = Tokenizer(model)
    made.add_special_tokens(special)
    made.pre_tokenizer = blanks
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return made


def wrapped(
    tokenizer: Tokenizer, before: str = "", after: str = "", **names: Any
) -> PreTrainedTokenizerFast:
    """As transformers knows it: the tokens put around each text, and which token is which
    (`eos_token=` and its like)."""
    around = [token for token in (before, after) if token]
    if around:
        tokenizer.post_processor = TemplateProcessing(
            single=" ".join(part for part in (before, "$A", after) if part),
            special_tokens=[
                (token, tokenizer.token_to_id(token)) for token in dict.fromkeys(around)
            ],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names
    )
