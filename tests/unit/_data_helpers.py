"""Small files and configurations for the tests of cores.data."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cores.config.data import DataSection, SourceSection
from cores.config.schema import Config
from cores.config.template import RoleTemplate, TemplateSection
from cores.data.sources import Row, Source, sources
from cores.errors import UserError

NONE = TemplateSection(kind="none")
CHAT = TemplateSection(kind="chat")
ROLES = TemplateSection(
    kind="roles",
    system=RoleTemplate("", "\n\n"),
    user=RoleTemplate("User: ", "\n"),
    assistant=RoleTemplate("Assistant:", "\n"),
)


def write_jsonl(path: Path, rows: list[Any]) -> str:
    """Write rows one a line; returns the path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config(
    path: str | None = None,
    template: TemplateSection = NONE,
    test_fraction: float = 0.0,
    source: dict[str, Any] | None = None,
    **stages: dict[str, Any],
) -> Config:
    """All three sources read `path`; `stages` are overrides, e.g. sft={"max_length": 8}."""
    section = SourceSection(**{"path": path, **(source or {})})
    made = Config(
        template=template,
        data=DataSection(
            sft=section, preference=section, prompts=section, test_fraction=test_fraction
        ),
    )
    for name, values in stages.items():
        made = replace(made, **{name: replace(getattr(made, name), **values)})
    return made


def read(path: Path | str, **fields: object) -> Source:
    """A source of its own."""
    section: Any = SourceSection(path=str(path), **fields)  # type: ignore[arg-type]
    return sources(section, "data.sft")[0]


def rows(source: Source | None) -> list[Row]:
    """A pass over it."""
    assert source is not None
    return list(source.open())


def refused(path: Path | str, **fields: object) -> str:
    """What is said of it."""
    with pytest.raises(UserError) as caught:
        rows(read(path, **fields))
    message = str(caught.value)
    assert "\n" not in message, "one paragraph"
    return message
