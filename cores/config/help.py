"""`--help`: every key with its docstring, read from the source of the dataclasses."""

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from cores.config.nodes import words

OPTIONS = """
  --config FILE    YAML file; several are read in order, and the command line after them.
  --print_config   Print the configuration as it is read, as YAML, and stop.
  --help           Print this and stop."""


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


def help_text(cls: Any, prog: str, description: str) -> str:
    """What `--help` prints."""
    usage = f"usage: {prog} [--config FILE ...] [--KEY VALUE ...]\n\n{description}\n{OPTIONS}"
    return "\n".join([usage, *_section(cls, "")])


def _section(cls: Any, prefix: str) -> Iterator[str]:
    said = descriptions(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.type):
            yield f"\n{prefix}{field.name}: {said[field.name]}"
            yield from _section(field.type, f"{prefix}{field.name}.")
            continue
        factory = field.default_factory
        value = field.default if factory is dataclasses.MISSING else factory()
        text = f"{said[field.name]} (type: {words(field.type)}, default: {json.dumps(value)})"
        yield f"  --{prefix}{field.name} {field.name.upper()}"
        yield textwrap.fill(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)
