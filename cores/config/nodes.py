"""YAML's nodes to values of a key's type: nothing is constructed but what the types name.

So no tag, no timestamp and no octal number has a meaning here, and no text is anything but text.
"""

import re
import types
import typing
from typing import Any

import yaml

from cores.errors import UserError

TAG = "tag:yaml.org,2002:"
DEEPEST = 20
"""Sections in sections; ours are six deep."""
DIGITS = 30
"""Of a whole number at most: Python refuses to read thousands, and no key needs more."""
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
NUMBER = re.compile(
    r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d{1,9})?|[-+]?\.(inf|nan)", re.I
)
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class _Loader(yaml.SafeLoader):
    """Refuses to go deeper than any configuration does, before it takes minutes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """PyYAML's step from events to a node."""
        self.depth += 1
        if self.depth > DEEPEST:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "brackets or indents nest too deep", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def compose(text: str, source: str) -> yaml.Node | None:
    """The root of a YAML text; UserError with `source` and the line."""
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = " ".join(f"{error.context or ''} {error.problem or ''}".split())
        raise UserError(f"{source}{line}: not valid YAML: {reason}.") from None
    except yaml.reader.ReaderError as error:
        line = f":{text.count(chr(10), 0, error.position) + 1}"
        raise UserError(
            f"{source}{line}: not valid YAML: the character U+{ord(text[error.position]):04X} may "
            "not stand in it; remove it."
        ) from None


def optional(kind: Any) -> tuple[Any, bool]:
    """The type without None, and whether None was part of it."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (inner,) = (a for a in typing.get_args(kind) if a is not type(None))
        return inner, True
    return kind, False


def words(kind: Any) -> str:
    """A type as a user knows it."""
    kind, null = optional(kind)
    if typing.get_origin(kind) is typing.Literal:
        text = f"one of {', '.join(typing.get_args(kind))}"
    elif typing.get_origin(kind) is list:
        text = "a list"
    elif typing.get_origin(kind) is dict:
        text = f"names with {words(typing.get_args(kind)[1])} each"
    else:
        text = WORDS.get(kind, "a section")
    return f"{text}, or null" if null else text


def value_of(node: yaml.Node, kind: Any, place: str) -> Any:
    """The value of `node` as a `kind` without dataclasses; UserError names `place`."""
    kind, null = optional(kind)
    tag = node.tag.removeprefix(TAG)
    if tag == "null" and null:
        return None
    if tag == "null":
        raise UserError(f"{place}: has no value; give {words(kind)}, or leave it out.")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is list and isinstance(node, yaml.SequenceNode):
        return [value_of(item, arguments[0], place) for item in node.value]
    if origin is dict and isinstance(node, yaml.MappingNode):
        return _by_name(node, arguments[1], place)
    if origin is typing.Literal and isinstance(node, yaml.ScalarNode):
        yes = None if node.value in arguments else BOOLEANS.get(node.value.lower())
        word = node.value if yes is None else str(yes).lower()
        if word in arguments:
            return word
    if isinstance(node, yaml.ScalarNode):
        value = _scalar(node.value, tag, kind, place)
        if value is not None:
            return value
    hint = " Put quotes around what is meant as text." if kind is str else ""
    raise UserError(f"{place}: must be {words(kind)}, but is {shown(node)}.{hint}")


def _by_name(node: yaml.MappingNode, kind: Any, place: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in node.value:
        text = value_of(name, str, f"{place}: a name in it")
        if text in found:
            raise UserError(f"{place} names {text} twice; remove one.")
        found[text] = value_of(value, kind, f"{place}: {text}")
    return found


def _scalar(text: str, tag: str, kind: Any, place: str) -> Any:
    """The value, or None if `text` is none of this kind."""
    if kind is str and tag == "str":
        return checked(text, place)
    if kind is bool and tag == "bool":
        return BOOLEANS[text.lower()]
    if kind is int and tag == "int" and INTEGER.fullmatch(text):
        if len(text) > DIGITS:
            raise UserError(f"{place}: a number of {len(text)} digits is too large to be one.")
        return int(text)
    if kind is float and tag in ("int", "float", "str") and NUMBER.fullmatch(text):
        plain = text.replace("_", "").lower()
        return float(re.sub(r"\.(inf|nan)", r"\1", plain))
    return None


def checked(text: str, place: str) -> str:
    """`text`, if it can be encoded, written into files and be part of a path."""
    bad = UNWRITABLE.search(text)
    if bad is None:
        return text
    code = ord(bad[0])
    what = f"half a surrogate pair (\\u{code:04x}), which is no character"
    if not code:
        what = "the character NUL, which ends texts and paths for other programs"
    elif 0xDC80 <= code <= 0xDCFF:  # so Python reads such bytes of the command line and file names
        what = f"the byte 0x{code & 0xFF:02x} (\\u{code:04x}), which is not UTF-8"
    raise UserError(f"{place}: holds {what}; rename the file or correct the text.")


def printable(text: str) -> str:
    """A text of the user's in an error: short and on one line."""
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def shown(node: yaml.Node) -> str:
    """A node in an error."""
    if isinstance(node, yaml.ScalarNode):
        return printable(node.value) or "nothing"
    return "a list" if isinstance(node, yaml.SequenceNode) else "keys with values"
