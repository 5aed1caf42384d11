"""Parsing as a stage does, and what is said of a mistake."""

from typing import Any

import pytest

from cores.config import Config, parse_config
from cores.errors import UserError


def parse(*words: Any) -> Config:
    """The configuration of these arguments."""
    return parse_config(list(words), "stage.py", "A stage.")


def mistake(*words: Any) -> str:
    """The message that these arguments end with: one paragraph, in the user's words."""
    with pytest.raises(UserError) as caught:
        parse(*words)
    text = str(caught.value)
    assert "\n" not in text
    assert "class_path" not in text
    return text
