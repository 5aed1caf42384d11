"""The site, where its tools are installed (the extra site)."""

import subprocess
import sys
from pathlib import Path

import pytest
from _pages import ROOT


def test_every_page_is_in_the_site(tmp_path: Path) -> None:
    """Built with warnings as errors: a link that leads nowhere, a page that no list names."""
    for name in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(name, reason="the extra site is not installed")
    words = [sys.executable, "-m", "sphinx", "-q", "-W", str(ROOT / "docs"), str(tmp_path)]
    built = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (built.returncode, built.stderr) == (0, "")
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages <= {page.stem for page in tmp_path.glob("*.html")}
