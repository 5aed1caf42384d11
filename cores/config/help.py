"""What the command line says of itself: `--help`, `--version`, `--completion`."""

import ast
import dataclasses
import inspect
import json
import sys
import textwrap
import typing
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

from cores.config.nodes import optional, words
from cores.config.schema import Config
from cores.errors import UserError

OPTIONS = """
  --config FILE      YAML file; several are read in order, and the command line after them.
  --print_config     Print the configuration as it is read, as YAML, and stop.
  --help             Print this and stop. --help all: every key. --help SECTION: the keys of one.
  --version          Print the versions of this program and its libraries, and stop.
  --completion bash  Print what completes keys: eval "$(python SCRIPT --completion bash)"
"""
FIRST = {
    "every stage": (
        "output_dir", "seed", "overwrite", "resume", "model.path", "model.precision",
        "template.kind", "data.inspect", "logging.trackers", "logging.samples",
    ),
    "stage1_sft.py": (
        "data.sft.path", "sft.epochs", "sft.max_steps", "sft.learning_rate", "sft.batch_size",
        "sft.microbatch_size", "sft.max_length", "sft.lora.rank",
    ),
    "stage2_rm.py": (
        "data.preference.path", "reward.path", "reward.epochs", "reward.max_steps",
        "reward.learning_rate", "reward.batch_size", "reward.microbatch_size", "reward.lora.rank",
    ),
    "stage3_ppo.py": (
        "data.prompts.path", "ppo.rewards", "ppo.estimator", "ppo.updates", "ppo.batch_size",
        "ppo.microbatch_size", "ppo.max_new_tokens", "ppo.actor_learning_rate",
        "ppo.critic_learning_rate", "ppo.kl_coef", "ppo.lora.rank",
    ),
}  # fmt: skip
"""Keys that a first run looks at, by what reads them."""
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "deepspeed")
COMPLETION = """\
_tristage() {
  local word found= cur=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}
  for word in "${COMP_WORDS[@]}"; do
    case $word in *stage1_sft.py|*stage2_rm.py|*stage3_ppo.py) found=1;; esac
  done
  [ -n "$found" ] || return
  case $before in
%s
  esac
  case $cur in --*) COMPREPLY=($(compgen -W "%s" -- "$cur"));; esac
}
complete -o default -F _tristage python python3 accelerate torchrun
"""


def descriptions(cls: Any) -> dict[str, str]:
    """Field name to the docstring below it, on one line; fields without one are missing."""
    found: dict[str, str] = {}
    for base in cls.__mro__[-2::-1]:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for field, below in pairwise(definition.body):  # type: ignore[attr-defined]
            said = below.value if isinstance(below, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(said.value).split())
    return found


def fields(cls: Any = Config, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, field, what it says) of every key and section, in the order of the tree."""
    said = descriptions(cls)
    for field in dataclasses.fields(cls):
        yield f"{prefix}{field.name}", field, said[field.name]
        if dataclasses.is_dataclass(field.type):
            yield from fields(field.type, f"{prefix}{field.name}.")


def page(prog: str, description: str, what: str | None) -> str:
    """The page of `--help`, or of `--help all` or a section; UserError for what is neither."""
    known = list(fields())
    lines = [f"usage: {prog} [--config FILE ...] [--KEY VALUE ...]", "", description, OPTIONS]
    if what is None:
        return "\n".join([*lines, *_first(prog, known)])
    if what != "all":
        part = f"{what}."
        known = [one for one in known if one[0] == what or one[0].startswith(part)]
        lines = []
    if not known:
        sections = ", ".join(f.name for f in dataclasses.fields(Config) if _section(f))
        raise UserError(f"command line: --help {what}: is no section; there are {sections}, all.")
    for key, field, said in known:
        if _section(field):
            lines.append(f"\n{key}: {said}")
            continue
        text = f"{said} (type: {words(field.type)}, default: {default(field)})"
        lines.append(f"  --{key} {field.name.upper()}")
        lines.append(textwrap.fill(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(lines)


def _first(prog: str, known: list[tuple[str, Any, str]]) -> Iterator[str]:
    """Keys of a first run, a line each, and the sections."""
    table = {key: (field, said) for key, field, said in known}
    for reader, keys in FIRST.items():
        if reader in ("every stage", prog) or prog not in FIRST:
            yield f"Keys of {reader} that a first run looks at (in brackets the default):"
            for key in keys:
                field, said = table[key]
                about = f"[{default(field)}] {said}"
                yield f"  --{key:<28} " + textwrap.shorten(about, 66, placeholder=" ...")
            yield ""
    yield "Sections (--help SECTION has all keys of one):"
    for key, field, said in known:
        if _section(field) and "." not in key:
            count = sum(other.startswith(f"{key}.") and not _section(f) for other, f, _ in known)
            yield f"  {key:<12} {count:>3} keys  {textwrap.shorten(said, 78, placeholder=' ...')}"


def _section(field: Any) -> bool:
    return dataclasses.is_dataclass(field.type)


def default(field: Any) -> str:
    """A field's default, as JSON."""
    factory = field.default_factory
    return json.dumps(field.default if factory is dataclasses.MISSING else factory())


def versions() -> str:
    """This program's and its libraries', without importing any."""
    found = []
    for name in ("tristage", *LIBRARIES):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join([*found, f"Python {sys.version.split()[0]}"])


def completion(shell: str) -> str:
    """A script for bash, or zsh under bashcompinit. UserError for another shell."""
    if shell not in ("bash", "zsh"):
        raise UserError(f"command line: --completion {shell}: there is bash, which zsh reads too.")
    keys, cases = ["--config", "--print_config", "--help", "--version"], []
    for key, field, _ in fields():
        if _section(field):
            continue
        keys.append(f"--{key}")
        kind, _null = optional(field.type)
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        choices = ("true", "false") if kind is bool else choices
        if choices:
            told = f'COMPREPLY=($(compgen -W "{" ".join(choices)}" -- "$cur")); return'
            cases.append(f"    --{key}) {told};;")
    return COMPLETION % ("\n".join(cases), " ".join(keys))
