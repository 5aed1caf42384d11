"""Importing the files of `ppo.rewards`, and how their functions are called."""

import hashlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from functools import partial
from inspect import Parameter
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from cores.errors import UserError
from cores.rewards.guard import own_file, run

MODEL = "model"
"""The source that is stage 2's reward model."""
NAMES = {"prompts": 0, "responses": 1, "completions": 1, "rows": 2}
"""Of parameters, and their places in a call by position; `completions` is TRL's for responses."""
MODULES: list[str] = []
FOLDERS: list[str] = []
"""What the last `load_functions` added to sys.modules and to sys.path."""

RewardFunction = Callable[[list[str], list[str], list[dict[str, Any]]], Any]
"""function(prompts, responses, rows): a number or None for each response."""


class Loaded(NamedTuple):
    """What `ppo.rewards` names besides the model."""

    functions: dict[str, RewardFunction]
    """By source, in its order; to be called by position whatever their parameters."""
    files: dict[str, str]
    """sha256 of the bytes that were run, by path."""


def load_functions(rewards: dict[str, float], timeout: float | None = None) -> Loaded:
    """The functions named in `ppo.rewards`; each file is run once, in `timeout` seconds at most.

    Paths are relative to the working directory. A file is the module of its name, which `import`
    finds in worker processes too. Raises UserError for a file or function that is not there or
    cannot be called, a name that is another module's, and an import that fails.
    """
    while MODULES:
        sys.modules.pop(MODULES.pop(), None)
    sys.path[:] = [folder for folder in sys.path if folder not in FOLDERS]
    FOLDERS.clear()
    modules: dict[Path, tuple[ModuleType, str]] = {}
    loaded = Loaded({}, {})
    for source in rewards:
        if source == MODEL:
            continue
        path, _, name = source.rpartition(":")
        file = _found(path, source)
        what = f"ppo.rewards: {source!r} cannot be imported"
        if file not in modules:
            _check_name(file, source)
            modules[file] = run(partial(_imported, file), what, path, timeout, "rewards")
        module, loaded.files[path] = modules[file]
        function: Any = run(partial(getattr, module, name, None), what, path, timeout, "rewards")
        if not callable(function):
            wrong = "does not exist" if function is None else "is no function"
            raise UserError(
                f"ppo.rewards: {source!r}: {name!r} {wrong} in {path!r}; define it as "
                f"{name}(prompts, responses, rows), or correct the name."
            )
        loaded.functions[source] = by_position(function, source)
    return loaded


def _found(path: str, source: str) -> Path:
    try:
        file = own_file(path)
        wrong = "" if file.is_file() else "is a folder" if file.is_dir() else "does not exist"
    except (OSError, RuntimeError, ValueError) as error:  # no permission, no such user, a NUL
        wrong = f"cannot be looked for: {error}"
    if wrong:
        raise UserError(
            f"ppo.rewards: {source!r}: the file {path!r} {wrong} (looked in {Path.cwd()}); correct "
            "the path."
        )
    return file


def _check_name(file: Path, source: str) -> None:
    """Add the folder to sys.path; UserError if `import` then finds another module by the name."""
    name, folder = file.stem, str(file.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: a file beside it may have any module's name
        FOLDERS.append(folder)
    importlib.invalidate_caches()
    try:
        spec = None if "." in name else importlib.util.find_spec(name)
        other = (spec and spec.origin) or "nothing"
    except ValueError:  # it is __main__
        other = "this program"
    if not (os.path.exists(other) and os.path.samefile(other, file)):
        raise UserError(
            f"ppo.rewards: {source!r}: as the module {name!r}, which the file is for itself and "
            f"for worker processes, Python finds {other}; rename the file."
        )


def _imported(file: Path) -> tuple[ModuleType, str]:
    """The file run as a module, and the digest of what was run."""
    data = file.read_bytes()
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None, "its suffix is .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    MODULES.append(file.stem)
    exec(compile(data, file, "exec", dont_inherit=True), vars(module))
    return sys.modules[file.stem], hashlib.sha256(data).hexdigest()


def by_position(function: Callable[..., Any], source: str) -> RewardFunction:
    """`function` as one of (prompts, responses, rows), which are given by name where the parameters
    have their names, and with **kwargs the columns of the rows too. UserError if neither works."""
    try:
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
    except (TypeError, ValueError):  # a builtin that does not tell
        return function
    kinds = {p.kind for p in parameters}
    columns = Parameter.VAR_KEYWORD in kinds
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    needed = [p.name for p in parameters if p.default is p.empty and p.kind.name[:3] != "VAR"]
    strange = [name for name in needed if name not in named or name not in NAMES]
    if Parameter.VAR_POSITIONAL in kinds or (not columns and (strange or not named & set(NAMES))):
        in_place = all(NAMES.get(p.name, i) == i for i, p in enumerate(parameters))
        if in_place and _binds(signature):
            return function
    if (strange and not columns) or not set(needed) <= named or not (columns or named & set(NAMES)):
        raise UserError(
            f"ppo.rewards: {source!r} cannot be called with its parameters {signature}; let it "
            "take (prompts, responses, rows), or any of them by these names (or completions), and "
            "with **kwargs columns of the rows."
        )

    def ask(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> Any:
        given = {"prompts": prompts, "responses": responses, "completions": responses, "rows": rows}
        if not columns:
            return function(**{name: given[name] for name in given if name in named})
        shared = [name for name in rows[0] if all(name in row for row in rows)]
        given = {name: [row[name] for row in rows] for name in shared} | given
        for name in needed:
            if name not in given:
                raise TypeError(f"{name!r} is no column that all rows of data.prompts have")
        return function(**given)

    return ask


def _binds(signature: inspect.Signature) -> bool:
    try:
        signature.bind(1, 2, 3)
    except TypeError:
        return False
    return True
