"""The pages as a site, by sphinx with furo: pip install 'tristage[site]', then
sphinx-build -W docs runs/site."""

import re
from typing import Any

project = "tristage"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "tristage"
myst_heading_anchors = 4
exclude_patterns = ["evidence/*", "performance/*"]
OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")
"""Links to files beside docs/, which the site does not have: their words stay."""


def setup(app: Any) -> None:
    """Called by sphinx."""
    app.connect("source-read", without_outside)


def without_outside(app: Any, name: str, source: list[str]) -> None:
    """The page `name` without such links."""
    source[0] = OUTSIDE.sub(r"\1", source[0])
