"""Python of the documentation, run by tests."""

from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"


def lines(function: str, page: str = "models.md") -> str:
    """The lines of a page of docs that define `function`."""
    text = (DOCS / page).read_text("utf-8")
    blocks = [part.split("```")[0] for part in text.split("```python\n")[1:]]
    (code,) = [block for block in blocks if f"def {function}(" in block]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    return code


def documented(function: str, page: str = "models.md") -> Any:
    """What they define."""
    found: dict[str, Any] = {}
    exec(lines(function, page), found)
    return found[function]
