"""llama.cpp's converter for a tokenizer of this project: python convert.py LLAMA_CPP ARGUMENTS.

The converter knows how a tokenizer splits texts by a hash of what it makes of one text, and refuses
what is not in its list. The tokenizers of `scripts/tiny.py`, as the demo's, split as GPT-2's does.
"""

import runpy
import sys


def main(repository: str, *arguments: str) -> None:
    """Run it with the hash answered: gpt-2."""
    sys.path.insert(0, repository)
    from conversion.base import TextModel

    TextModel.get_vocab_base_pre = lambda *_: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", *arguments]
    runpy.run_path(f"{repository}/convert_hf_to_gguf.py", run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
