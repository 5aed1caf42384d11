"""Places of a page that a script fills."""

import pytest

from cores.errors import UserError
from research.pages import BEGIN, END, fill


def test_text_goes_between_the_marks() -> None:
    """What stands around them stays, other places too; filling again changes nothing."""
    a, b = ((BEGIN.format(name), END.format(name)) for name in ("a", "b"))
    page = f"above\n{a[0]}\nold\n{a[1]}\nmiddle\n{b[0]}\n{b[1]}\nbelow"
    filled = fill(page, {"a": "new\n", "b": "more"}, "page.md")
    assert filled == f"above\n{a[0]}\nnew\n{a[1]}\nmiddle\n{b[0]}\nmore\n{b[1]}\nbelow"
    assert fill(filled, {"a": "new"}, "page.md") == filled


def test_a_page_without_marks_is_an_error() -> None:
    for page in ("no marks", BEGIN.format("a"), END.format("a") + BEGIN.format("a")):
        with pytest.raises(UserError, match=r"page\.md: the marks"):
            fill(page, {"a": "text"}, "page.md")
