"""The pages of the documentation as the tests read them."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PROGRAMS = """
accelerate apt apt-get bash cd conda curl deepspeed docker export git hf lm_eval make mypy npm npx
ollama pip pre-commit pytest python python3 ray rsync ruff sbatch scp sh source sphinx srun ssh sudo
tensorboard text-generation-launcher torchrun trackio uv vllm wandb wget
""".split()
"""What a command begins with. Programs that no page calls yet are among them: they are in no table
of tests, so the first line that calls one is noticed."""
PROMPT = re.compile(rf"^(\./|(llama[\w-]*|{'|'.join(map(re.escape, PROGRAMS))})(?=\s|$))")
VARIABLE = re.compile(r"^[A-Z_]+=\S* ")


def blocks(text: str) -> Iterator[list[str]]:
    """The lines of each block of code, fenced or indented by four."""
    inside, fenced, block, before = False, False, [], ""
    for line in [*text.split("\n"), ""]:
        if line.lstrip().startswith("```"):
            if block:
                yield block
            fenced, block = not fenced, []
        elif fenced:
            block.append(line)
        elif line.startswith("    ") and (inside or not before.strip()):
            inside = True
            block.append(line[4:])
        elif inside and line.strip():
            yield block
            inside, block = False, []
        before = line
    if block:
        yield block


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command line of a page's blocks, lines that go on put together."""
    for block in blocks(text):
        lines = "\n".join(block).replace("\\\n", " ").split("\n")
        for line in lines:
            for part in line.split(" && "):
                bare = VARIABLE.sub("", part.strip())
                if PROMPT.match(bare):
                    yield shlex.split(bare, comments=True)
