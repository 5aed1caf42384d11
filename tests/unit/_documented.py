"""Python of the documentation, run by tests."""

from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def lines(function: str) -> str:
    """The lines of docs/models.md that define `function`."""
    blocks = [part.split("```")[0] for part in PAGE.read_text("utf-8").split("```python\n")[1:]]
    (code,) = [block for block in blocks if f"def {function}(" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    return code


def documented(function: str) -> Any:
    """What they define."""
    found: dict[str, Any] = {}
    exec(lines(function), found)
    return found[function]
