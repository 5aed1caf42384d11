"""Filters of texts for chat.py and evaluate.py: --gate FOLDER or --gate FILE.py:FUNCTION."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cores.errors import UserError
from cores.files import read_json

Gate = Callable[[str], str | None]
"""Of a text: why it may not pass, None if it may."""
SHOWN = 60
"""Characters of a text in an error."""


def gate_of(source: str | None) -> Gate | None:
    """The filter that --gate names: a moderation model in the folder that stage 1 wrote, or a
    function of the user's. UserError if there is none."""
    if source is None:
        return None
    if Path(source).expanduser().is_dir():
        return moderation(Path(source).expanduser())
    asked = function(source)

    def gate(text: str) -> str | None:
        try:
            why: Any = asked(text)
        except Exception as error:
            raise UserError(
                f"--gate: {source} failed on {text[:SHOWN]!r}: {type(error).__name__}: {error}. "
                "Mend it; it is asked for any text."
            ) from error
        if why is not None and not isinstance(why, str):
            raise UserError(
                f"--gate: {source} returned {why!r:.60} for {text[:SHOWN]!r}; it must return None, "
                "or why the text may not pass."
            )
        return why

    return gate


def moderation(folder: Path) -> Gate:
    """Refuses what a moderation model (moderation.py here) finds to need intervention."""
    from cores.interop import config_of
    from scripts.evaluation.moderation import load_gate

    record = read_json(folder / "stage.json", "Give <output_dir>/sft of a moderation model.")
    if record.get("stage") != "sft":
        raise UserError(
            f"--gate: {folder} is of the stage {record.get('stage')!r}; a moderation model is of "
            "stage 1: give <output_dir>/sft."
        )
    try:
        return load_gate(config_of(record), folder).reason
    except UserError as error:
        raise UserError(f"--gate: {folder} is no moderation model: {error}") from None


def function(source: str) -> Callable[[str], Any]:
    """The function FILE:FUNCTION; UserError if there is none."""
    path, _, name = source.rpartition(":")
    if not Path(path).is_file():
        raise UserError(
            f"--gate: {source!r}: there is no such folder and no such file; give the folder of a "
            "moderation model, or FILE.py:FUNCTION."
        )
    spec = importlib.util.spec_from_file_location("gate", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--gate: {path} is no file of Python; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(
            f"--gate: {path} cannot be imported: {type(error).__name__}: {error}. Mend it."
        ) from error
    if not callable(found := getattr(module, name, None)):
        raise UserError(f"--gate: {path} has no function {name!r}.")
    return found  # type: ignore[no-any-return]
