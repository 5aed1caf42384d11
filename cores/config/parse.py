"""Command line and YAML to `Config`, and every error in them as one sentence that names the key."""

import dataclasses
import difflib
import re
import typing
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from cores.config.schema import Config
from cores.config.validate import check
from cores.errors import UserError

COMMAND_LINE = "command line"
YAML_NULL = "tag:yaml.org,2002:null"
ITEM = "each item must hold keys of its own, such as {path: FILE, weight: 2}."


def parse_config(argv: list[str], prog: str, description: str) -> Config:
    """Parse `argv` (without the program's name) into a checked `Config`.

    `--help` and `--print_config` print and raise SystemExit(0). Raises UserError naming the file
    (or "command line") and the key of the first mistake.
    """
    parser = _parser(prog, description)
    argv = _bare_flags(argv)
    _check_item_flags(argv)
    files = _config_files(argv)
    for file in files:
        _check_keys(file)
        _check_items(file)
        _parse(parser, ["--config", file], file)
    namespace = _parse(parser, argv, COMMAND_LINE)
    config = parser.instantiate(namespace).as_dict()
    config.pop("config")
    result = Config(**config)
    for key, problem in check(result):
        raise UserError(f"{_origin(argv, files, key)}: {problem}")
    return result


def plain(config: Any) -> dict[str, Any]:
    """A configuration (section) as nested dicts of JSON values."""
    return dataclasses.asdict(config)


def _parser(prog: str, description: str) -> jsonargparse.ArgumentParser:
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=prog, description=description, exit_on_error=False, allow_abbrev=False
    )
    parser.add_argument("--config", action="config", help="YAML file; several are read in order.")
    parser.add_class_arguments(Config)
    return parser


def _bare_flags(argv: list[str]) -> list[str]:
    """`--overwrite` may stand alone: true is the only value anyone means by it."""
    result = []
    for i, word in enumerate(argv):
        result.append(word)
        follower = argv[i + 1] if i + 1 < len(argv) else "--"
        if word == "--overwrite" and follower.lower() not in ("true", "false"):
            result.append("true")
    return result


def _check_item_flags(argv: list[str]) -> None:
    """Refuse a flag for a key of a list's items: the parser would set it in the last item alone."""
    for word in argv:
        found = re.match(r"--(data\.\w+\.sources)\.(\w+)", word)
        if found and found[2] != "help":
            raise UserError(
                f"command line: {word.partition('=')[0]}: items of a list have no flags of their "
                f'own. Give the whole list, --{found[1]} \'[{{"path": ..., "{found[2]}": ...}}]\', '
                "or write it in the YAML file."
            )


def _config_files(argv: list[str]) -> list[str]:
    files = []
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            files.append(argv[i + 1])
        elif word.startswith("--config="):
            files.append(word.partition("=")[2])
    for file in files:
        if not Path(file).is_file():
            raise UserError(
                f"--config: there is no file {file}. Give the path of a YAML file such as "
                "configs/gpt2.yaml."
            )
    return files


def _origin(argv: list[str], files: list[str], key: str) -> str:
    """Where the value of `key` is from: the command line, else the last file that has it, else its
    default, which another key's value can make a wrong one."""
    if _given(argv, key):
        return _place(COMMAND_LINE, key)
    having = [file for file in files if _line(file, key)]
    return _place(having[-1], key) if having else f"key {key} (its default)"


def _given(argv: list[str], key: str) -> bool:
    """Whether the command line sets `key`: by itself, as part of a section given as JSON, or where
    `key` is a section, by a key in it."""
    names = re.sub(r"\[\d+\]", "", key).split(".")
    options = {"--" + ".".join(names[: i + 1]) for i in range(len(names))}
    given = [word.partition("=")[0] for word in argv]
    return any(word in options or word.startswith(f"--{key}.") for word in given)


def _parse(parser: jsonargparse.ArgumentParser, argv: list[str], source: str) -> Any:
    try:
        return parser.parse_args(argv)
    except jsonargparse.ArgumentError as error:
        raise UserError(_explain(str(error), source)) from None


def _explain(message: str, source: str) -> str:
    """jsonargparse's message as one sentence with the place first."""
    message = _tidy(message)
    unknown = re.match(r"unrecognized arguments: (--)?([\w.]+)", message)
    if unknown:
        return f"{source}: {_unknown_key(unknown[2])}"
    key, reason = _key_and_reason(message)
    return f"{_place(source, key)}: {reason}" if key else f"{source}: {reason}"


def _tidy(message: str) -> str:
    message = re.sub(r"<class '(\w+)'>|typing\.", r"\1", re.sub(r"\s+", " ", message)).strip()
    return re.sub(r"Problem with given class_path '[\w.]*Source': ", "", message)


def _key_and_reason(message: str) -> tuple[str, str]:
    """The key that has a value of the wrong type, and what is wrong with it."""
    typed = re.match(r'Parser key "([^"]+)": (.*)', message)
    if not typed:
        return "", message
    if "class_path" in typed[2]:
        return typed[1], ITEM
    return typed[1], f"{typed[2].rstrip('.')}. See docs/configuration.md for the key."


def _place(source: str, key: str) -> str:
    if source == COMMAND_LINE:
        return f"command line: --{key}"
    line = _line(source, key)
    return f"{source}:{line}: key {key}" if line else f"{source}: key {key}"


def _line(file: str, key: str) -> int | None:
    """The line of a YAML file that sets `key`, or something in it where `key` is a section, or has
    the item that it was left out of."""
    lines = _key_lines(file)
    inside = [line for name, line in lines.items() if name.startswith(f"{key}.")]
    item = re.sub(r"(?<=\])\.\w+$", "", key)
    return lines.get(key) or lines.get(item) or next(iter(inside), None)


def _all_keys() -> dict[str, Any]:
    """Each key in dotted form, sections too, with its type; `[]` stands for any item of a list."""

    def walk(cls: Any, prefix: str) -> dict[str, Any]:
        keys: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            key = prefix + field.name
            keys[key] = field.type
            section = field.type
            if typing.get_origin(section) is list:
                key, section = key + "[]", typing.get_args(section)[0]
            if dataclasses.is_dataclass(section):
                keys[key] = section
                keys |= walk(section, key + ".")
        return keys

    return walk(Config, "")


def _any_item(key: str) -> str:
    return re.sub(r"\[\d+\]", "[]", key)


def _unknown_key(key: str) -> str:
    spelt = re.sub(r"\blr\b", "learning_rate", _any_item(key))
    close = difflib.get_close_matches(spelt, _all_keys(), n=1, cutoff=0.6)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"there is no key {key}.{hint} docs/configuration.md lists all keys."


def _key_nodes(file: str) -> list[tuple[str, int, yaml.Node]]:
    """(key in dotted form, line from 1, value) of each key of a YAML file, in its order.

    Items of a list that are no plain values have keys too: `data.sft.sources[0]`.
    """
    found: list[tuple[str, int, yaml.Node]] = []

    def walk(node: yaml.Node | None, prefix: str) -> None:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                key = f"{prefix}{name.value}"
                found.append((key, name.start_mark.line + 1, value))
                if typing.get_origin(sections.get(_any_item(key))) is not dict:  # its keys are data
                    walk(value, f"{key}.")
        if isinstance(node, yaml.SequenceNode) and f"{prefix[:-1]}[]" in sections:
            for i, item in enumerate(node.value):
                key = f"{prefix[:-1]}[{i}]"
                found.append((key, item.start_mark.line + 1, item))
                walk(item, f"{key}.")

    sections = _all_keys()
    walk(_compose(file), "")
    return found


def _key_lines(file: str) -> dict[str, int]:
    return {key: line for key, line, _ in _key_nodes(file)}


def _compose(file: str) -> yaml.Node | None:
    try:
        return yaml.compose(Path(file).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{file}:{line}: not valid YAML: {error.problem}.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text: {error.reason}.") from None


def _check_keys(file: str) -> None:
    """What the parser would overlook or garble: form, unknown keys, repeated keys, sections."""
    if not isinstance(_compose(file), yaml.MappingNode):
        raise UserError(f"{file}: must hold keys and values, such as `output_dir: runs/mine`.")
    known = _all_keys()
    lines: dict[str, int] = {}
    for key, line, value in _key_nodes(file):
        kind = known.get(_any_item(key))
        if kind is None:
            raise UserError(f"{file}:{line}: {_unknown_key(key)}")
        if key in lines:
            raise UserError(
                f"{file}:{line}: key {key} stands in line {lines[key]} already; remove one."
            )
        lines[key] = line
        if dataclasses.is_dataclass(kind) and not isinstance(value, yaml.MappingNode):
            if key.endswith("]"):
                raise UserError(f"{file}:{line}: {key}: {ITEM}")
            raise UserError(
                f"{file}:{line}: {key} is a section: it must hold keys of its own, indented below "
                "it; remove the line to leave all of them at their defaults."
            )
        if typing.get_origin(kind) is dict and isinstance(value, yaml.MappingNode):
            names = [name.value for name, _ in value.value]
            for name in {name for name in names if names.count(name) > 1}:
                raise UserError(f"{file}:{line}: key {key} names {name} twice; remove one.")
        if value.tag == YAML_NULL and type(None) not in typing.get_args(kind):
            raise UserError(
                f"{file}:{line}: key {key} has no value; give one, or remove the line for the "
                "default."
            )


def _check_items(file: str) -> None:
    """Values of items of lists of sections: the parser does not say which item is wrong."""
    known = _all_keys()
    for key, _, node in _key_nodes(file):
        if not key.endswith("]"):
            continue
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(known[_any_item(key)])
        for name, value in yaml.safe_load(yaml.serialize(node)).items():
            try:
                parser.parse_object({name: value})
            except jsonargparse.ArgumentError as error:
                _, reason = _key_and_reason(_tidy(str(error)))
                raise UserError(f"{_place(file, f'{key}.{name}')}: {reason}") from None
