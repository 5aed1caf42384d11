"""Captions: what an image is asked with, and what is left of its text."""

from pathlib import Path
from typing import Any

import pytest
from _images import BARE, data, one, pieces, said, template

from cores.errors import UserError


def test_captions(tmp_path: Path) -> None:
    """The image alone, or one of the requests by the seed, then the caption."""
    row = {"image": "key.png", "caption": "a brass key"}
    assert pieces(one(tmp_path, row, BARE)) == [("<s>[IMG]", False), ("a brass key\n</s>", True)]
    turns = [*said("What is it? <image>", "A key.")]
    row = {"image": "key.png", "conversations": turns}
    shown = pieces(one(tmp_path, row, BARE, source={"format": "caption"}))
    assert shown == [("<s>[IMG]", False), ("A key.\n</s>", True)]
    requests = ["What do you see?", "Tell me of it.", "Well?"]
    asked = template(after=" ", requests=requests)
    rows = [{"image": "key.png", "caption": "a key"}] * 40
    drawn = [pieces(row)[0][0] for row in data(tmp_path, rows, asked).train]
    assert set(drawn) == {f"<s>Guest: [IMG] {request}\nDesk: " for request in requests}
    assert drawn == [pieces(row)[0][0] for row in data(tmp_path, rows, asked).train]


def test_clean_captions(tmp_path: Path) -> None:
    """BLIP's rule."""
    row = {"image": "key.png", "caption": ' A Brass "key"; (old)!  ' + "x " * 60}
    clean = template(BARE, clean=True)
    assert pieces(one(tmp_path, row, clean))[1] == ("a brass key old" + " x" * 46 + "\n</s>", True)
    asked = {"image": "key.png", "messages": said("Q", "A Key.")}
    with pytest.raises(UserError, match=r"template.image.clean: has no effect"):
        one(tmp_path, asked, clean)


@pytest.mark.parametrize(
    "row",
    [
        {"image": "key.png", "messages": said("Q", "A", "Q", "A")},
        {"caption": "a key"},
        {"image": "key.png", "caption": None},
    ],
)
def test_rows_that_are_no_captions(tmp_path: Path, row: dict[str, Any]) -> None:
    """Several replies, no image, no caption."""
    with pytest.raises(UserError, match=r"rows.jsonl:1: format caption reads an image and"):
        one(tmp_path, row, source={"format": "caption"})
