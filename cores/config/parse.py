"""Command line and YAML to `Config`, and every error in them as one sentence that names the key."""

import copy
import dataclasses
import difflib
import os
import re
import typing
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import yaml

from cores.config import help as helped
from cores.config.nodes import TAG, checked, compose, optional, printable, shown, value_of
from cores.config.schema import Config
from cores.config.validate import check
from cores.errors import UserError, readable

COMMAND_LINE = "command line"
LARGEST = 1_000_000
"""Bytes of a configuration file at most: a hundred times what one needs."""
SECTION = (
    "is a section: it must hold keys of its own, in a file indented below it; leave it out for the "
    "defaults of all"
)
RENAMED = {f"{stage}.warmup_ratio": f"{stage}.warmup" for stage in ("sft", "reward", "ppo")}
"""Keys of earlier versions, and what they are called now; unfinished runs may still hold them."""
ITEM = "must hold keys of its own, such as {path: FILE, weight: 2}"


def parse_config(argv: list[str], prog: str, description: str) -> Config:
    """Parse `argv` (without the program's name) into a checked `Config`.

    Files are read in their order, then the command line; the last to set a key wins. `--help`,
    `--version`, `--completion` and `--print_config` print and raise SystemExit(0). Raises UserError
    naming the file (or "command line") and the key of the first mistake.
    """
    if (told := _told(argv, prog, description)) is not None:
        print(told)
        raise SystemExit(0)
    given, options = Given(), _options(argv)
    for name, value in options:
        if name == "config":
            given.read_file(checked(value, "--config"))
    for name, value in options:
        if name not in ("config", "print_config"):
            given.read_option(name, value)
    config: Config = given.build(Config)
    for key, problem in check(config):
        raise UserError(f"{given.place(key)}: {problem}")
    if ("print_config", "true") in options:
        print(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True), end="")
        raise SystemExit(0)
    return config


def _told(argv: list[str], prog: str, description: str) -> str | None:
    """What is asked of the command line itself, if anything is."""
    for word, following in pairwise([*argv, "--"]):
        if word in ("-h", "--help"):
            what = None if following.startswith("-") else following
            return helped.page(prog, description, what)
        if word == "--version":
            return helped.versions()
        if word == "--completion":
            return helped.completion(following)
    return None


def plain(config: Any) -> dict[str, Any]:
    """A configuration (section) as nested dicts of JSON values."""
    return dataclasses.asdict(config)


def renamed(values: dict[str, Any]) -> dict[str, Any]:
    """What `plain` gave in an earlier version, under today's names."""
    found = copy.deepcopy(values)
    for old, new in RENAMED.items():
        (section, before), (_, now) = old.split("."), new.split(".")
        if isinstance(inside := found.get(section), dict) and before in inside:
            inside[now] = inside.pop(before)
    return found


def _options(argv: list[str]) -> list[tuple[str, str]]:
    """(name, value) of each option; `--overwrite` and `--print_config` may stand alone."""
    found, left = [], argv[::-1]
    while left:
        word = left.pop()
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UserError(f"{COMMAND_LINE}: {_unknown_key(word)}")
        following = left[-1] if left else "--"
        if not equals and name in ("overwrite", "print_config"):
            follows = name == "overwrite" and following.lower() in ("true", "false")
            value = left.pop() if follows else "true"
        elif not equals and re.match("--", following):
            raise UserError(
                f"{COMMAND_LINE}: --{printable(name)}: expected one argument; one that begins with "
                f"-- is given as --{printable(name)}=VALUE."
            )
        elif not equals:
            value = left.pop()
        found.append((name, value))
    return found


def _keys_of(cls: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(cls):
        key, kind = prefix + field.name, field.type
        yield key, kind
        if typing.get_origin(kind) is list:
            key, kind = f"{key}[]", typing.get_args(kind)[0]
        if dataclasses.is_dataclass(kind):
            yield key, kind
            yield from _keys_of(kind, f"{key}.")


KEYS: dict[str, Any] = dict(_keys_of(Config, ""))
"""Each key in dotted form, sections too, with its type; `[]` stands for any item of a list."""


def _any_item(key: str) -> str:
    return re.sub(r"\[\d+\]", "[]", key)


def _unknown_key(key: str) -> str:
    key = printable(key)
    if key in RENAMED:
        return f"{key} was renamed to {RENAMED[key]}; docs/configuration.md says what it takes."
    spelt = re.sub(r"\blr\b", "learning_rate", _any_item(key).removeprefix("--"))
    close = difflib.get_close_matches(spelt, KEYS, n=1, cutoff=0.6)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"there is no key {key}.{hint} docs/configuration.md lists all keys."


def _at(source: str, line: int, key: str) -> str:
    return f"{source}: --{key}" if source == COMMAND_LINE else f"{source}:{line}: key {key}"


class Given:
    """What files and command line give: values by dotted key, and where each key stands."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.places: dict[str, tuple[str, int]] = {}
        self.lines: dict[str, int] = {}  # of the keys of one file or option

    def place(self, key: str) -> str:
        """Where the value of `key` is from, itself or as the default beside what was given."""
        item = re.sub(r"(?<=\])\.\w+$", "", key)  # a key that an item lacks stands at the item
        found = self.places.get(key) or self.places.get(item)
        return _at(*found, key) if found else f"key {key} (its default)"

    def build(self, cls: Any, prefix: str = "") -> Any:
        """A `cls` of the values below `prefix`, defaults for the others."""
        found = {}
        for field in dataclasses.fields(cls):
            key = prefix + field.name
            if dataclasses.is_dataclass(field.type):
                found[field.name] = self.build(field.type, f"{key}.")
            elif key in self.values:
                found[field.name] = self.values[key]
        return cls(**found)

    def read_file(self, file: str) -> None:
        """Take over what a YAML file says; UserError with its line for what it may not say."""
        if not os.path.isfile(file):  # a pipe or a device would never end
            raise UserError(
                f"--config: there is no file {file}. Give the path of a YAML file such as "
                "configs/gpt2.yaml."
            )
        with readable(f"--config {file}"), open(file, "rb") as handle:
            content = handle.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"--config {file} has more than {LARGEST} bytes; name a YAML file.")
        try:
            root = compose(content.decode("utf-8"), file)
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: not UTF-8 text: {error.reason}.") from None
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{file}: must hold keys and values, such as `output_dir: runs/mine`.")
        self.lines.clear()
        self._section(root, "", file)

    def read_option(self, name: str, text: str) -> None:
        """Take over an option: a key, a section as JSON, or `key+` with an item for a list."""
        key, place = name.removesuffix("+"), _at(COMMAND_LINE, 0, name)
        kind = None if "[" in key else KEYS.get(key)
        if kind is None:
            parent, _, last = key.rpartition(".")
            if f"{parent}[]" in KEYS:
                raise UserError(
                    f"{place}: items of a list have no flags of their own. Give the whole list, "
                    f'--{parent} \'[{{"path": ..., "{last}": ...}}]\', or a YAML file.'
                )
            raise UserError(f"{COMMAND_LINE}: {_unknown_key(key)}")
        inner, null = optional(kind)
        textual = inner is str or typing.get_origin(inner) is typing.Literal
        if textual and not (null and text == "null"):
            node: yaml.Node | None = yaml.ScalarNode(f"{TAG}str", text)
        else:
            node = compose(checked(text, place), place)
        before: list[Any] = []
        if name != key:
            if typing.get_origin(inner) is not list:
                raise UserError(f"{place}: adds to a list, and {key} is none; leave out the +.")
            before = self.values.get(key, [])
            if not isinstance(node, yaml.SequenceNode):
                node = yaml.SequenceNode(f"{TAG}seq", [node])
        self.lines.clear()
        self._take(key, kind, node or yaml.ScalarNode(f"{TAG}null", ""), COMMAND_LINE, 0, before)

    def _section(self, node: yaml.MappingNode, prefix: str, source: str) -> None:
        """Each key of a section, none twice."""
        for name, value in node.value:
            line = name.start_mark.line + 1
            where = COMMAND_LINE if source == COMMAND_LINE else f"{source}:{line}"
            text = name.value if isinstance(name, yaml.ScalarNode) else shown(name)
            key = prefix + text
            kind = None if "[" in text else KEYS.get(_any_item(key))
            if kind is None:
                raise UserError(f"{where}: {_unknown_key(key)}")
            if key in self.lines:
                raise UserError(
                    f"{where}: key {key} stands in line {self.lines[key]} already; remove one."
                )
            self.lines[key] = line
            self._take(key, kind, value, source, line)

    def _take(
        self,
        key: str,
        kind: Any,
        node: yaml.Node,
        source: str,
        line: int,
        before: Sequence[Any] = (),
    ) -> None:
        """The value of one key; of a section those of the keys inside; of a list its items."""
        place = _at(source, line, key)
        names = key.split(".")
        for parent in (".".join(names[:i]) for i in range(1, len(names))):
            if self.places.get(parent, ("", 0))[0] != source:
                self.places[parent] = (source, line)
        self.places[key] = (source, line)
        if dataclasses.is_dataclass(kind):
            if not isinstance(node, yaml.MappingNode):
                what = ITEM if key.endswith("]") else SECTION
                raise UserError(f"{place}: {what}; it holds {shown(node)}.")
            self._section(node, f"{key}.", source)
        elif f"{key}[]" in KEYS and isinstance(node, yaml.SequenceNode):
            self.values[key] = [*before, *self._items(key, node, source, len(before))]
        else:
            value = value_of(node, kind, place)
            self.values[key] = [*before, *value] if before else value

    def _items(self, key: str, node: yaml.SequenceNode, source: str, first: int) -> Iterator[Any]:
        """Items of a list of sections, numbered from `first`; those of an earlier list are gone."""
        for old in [k for k in self.places if k.startswith(f"{key}[") and not first]:
            self.places.pop(old)
            self.values.pop(old, None)
        for i, item in enumerate(node.value, first):
            line = item.start_mark.line + 1 if item.start_mark else 0
            self._take(f"{key}[{i}]", KEYS[f"{key}[]"], item, source, line)
            yield self.build(KEYS[f"{key}[]"], f"{key}[{i}].")
