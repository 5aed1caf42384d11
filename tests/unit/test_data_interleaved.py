"""Interleaved rows (MMC4's form): which image stands before which sentence, and what is trained."""

from pathlib import Path
from typing import Any

import pytest
from _images import BARE, data, pictures, pieces, template
from test_data_images import one

from cores.errors import UserError


def interleaved(*images: tuple[str, int, float]) -> dict[str, Any]:
    names = ("image_name", "matched_text_index", "matched_sim")
    texts = ["We moved in.", "A lamp was there.", "And a key.", "The end."]
    return {"text_list": texts, "image_info": [dict(zip(names, i, strict=True)) for i in images]}


CHUNKS = template(BARE, end_of_chunk="<end>")


def test_interleaved_rows(tmp_path: Path) -> None:
    """Each image before its sentence; trained is what follows one, not what stands before the
    first, nor the end of the row."""
    row = interleaved(("key.png", 2, 0.24), ("lamp.png", 1, 0.5), ("towel.png", 3, 0.2399))
    made = one(tmp_path, row, CHUNKS)
    assert pieces(made) == [
        ("<s>We moved in.[IMG]", False),
        ("A lamp was there.<end>", True),
        ("[IMG]", False),
        ("And a key. The end.<end>", True),
        ("</s>", False),
    ]
    assert [Path(file).stem for file in made["images"]] == ["lamp", "key"]
    less = one(tmp_path, row, CHUNKS, source={"similarity": 0.2})
    assert [Path(file).stem for file in less["images"]] == ["lamp", "key", "towel"]
    first = one(tmp_path, row, CHUNKS, source={"similarity": 0.2, "most_images": 2})
    assert [Path(file).stem for file in first["images"]] == ["lamp", "key"]


def test_an_image_a_sentence(tmp_path: Path) -> None:
    """Behind a second one nothing but the end of its chunk would be left to learn."""
    row = interleaved(("key.png", 2, 0.5), ("lamp.png", 2, 0.6))
    made = one(tmp_path, row, CHUNKS)
    assert [Path(file).stem for file in made["images"]] == ["key"]
    assert pieces(made)[1] == ("And a key. The end.<end>", True)


def test_an_interleaved_row_without_an_image_teaches_nothing(tmp_path: Path) -> None:
    pictures(tmp_path / "seen")
    rows = [interleaved(("key.png", 2, 0.1)), interleaved(("key.png", 2, 0.9)), interleaved()]
    made = data(tmp_path, rows, CHUNKS)
    assert len(made.train) == 1
    assert "2 no image is like its sentence" in made.report.lines()[0]


def test_interleaved_rows_that_are_damaged(tmp_path: Path) -> None:
    """An index of no text; an item without its likeness."""
    for row in (interleaved(("key.png", 9, 0.9)), {"text_list": ["a"], "image_info": [{}]}):
        with pytest.raises(UserError, match=r"rows.jsonl:1: an item of 'image_info' needs"):
            one(tmp_path, row, CHUNKS)
