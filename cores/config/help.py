"""`--help`: every key with its docstring, read from the source of the dataclasses."""

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import yaml

from cores.config.nodes import optional


def descriptions(cls: Any) -> dict[str, str]:
    """Field name to the docstring below it, on one line; fields without one are missing."""
    found: dict[str, str] = {}
    for base in cls.__mro__[-2::-1]:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            said = text.value if isinstance(text, ast.Expr) else None
            if isinstance(field, ast.AnnAssign) and isinstance(said, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(said.value).split())
    return found


def help_text(cls: Any, prog: str, description: str) -> str:
    """What `--help` prints."""
    lines = [
        f"usage: {prog} [--config FILE ...] [--KEY VALUE ...]",
        "",
        description,
        "",
        "  -h, --help            Show this and stop.",
        "  --config FILE         YAML file; several are read in order.",
        "  --print_config        Print the configuration as it is read, as YAML, and stop.",
    ]
    return "\n".join([*lines, *_section(cls, "")])


def _section(cls: Any, prefix: str) -> Iterator[str]:
    said = descriptions(cls)
    for field in dataclasses.fields(cls):
        key = prefix + field.name
        if dataclasses.is_dataclass(field.type):
            yield f"\n{key}: {said[field.name]}"
            yield from _section(field.type, f"{key}.")
            continue
        factory = field.default_factory
        value = field.default if factory is dataclasses.MISSING else factory()
        default = yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()
        yield f"  --{key} {field.name.upper()}"
        text = f"{said[field.name]} (type: {_type(field.type)}, default: {default})"
        yield textwrap.fill(text, 100, initial_indent=" " * 8, subsequent_indent=" " * 8)


def _type(kind: Any) -> str:
    kind, null = optional(kind)
    if typing.get_origin(kind) is typing.Literal:
        text = ", ".join(typing.get_args(kind))
    else:
        text = getattr(kind, "__name__", str(kind)) if not typing.get_args(kind) else str(kind)
    return f"{text} or null" if null else text
