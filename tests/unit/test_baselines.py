"""Figures of the real-input run: intervals, ties, the baselines on pairs made by hand."""

import pytest

from scripts.baselines import accuracy, tfidf_margins, wilson
from scripts.figures import _samples


def test_wilson_by_hand() -> None:
    """8 of 10 at z = 2: (.8 + .2 -+ 2 sqrt(.016 + .01)) / 1.4."""
    low, high = wilson(0.8, 10, z=2.0)
    assert low == pytest.approx((1.0 - 2 * 0.026**0.5) / 1.4)
    assert high == pytest.approx((1.0 + 2 * 0.026**0.5) / 1.4)


def test_ties_count_half() -> None:
    """Two wins, one tie, one loss of four."""
    assert accuracy([3.0, 0.5, 0.0, -1.0])["accuracy"] == pytest.approx(0.625)


def test_tfidf_learns_the_word_that_decides_and_not_the_side() -> None:
    """The word "please" decides in training; a test pair in the wrong order is lost by as much."""
    train = [(f"please take the {x}", f"take the {x}") for x in ("bus", "tram", "lift", "stairs")]
    margins = tfidf_margins(train, [("please sit", "sit"), ("sit", "please sit")])
    assert margins[0] > 0
    assert margins[1] == pytest.approx(-margins[0])


def test_samples_are_shown_without_the_template_around_them() -> None:
    """What all prompts share up to a line break is the template's; shared first letters stay."""
    sides = {when: {"score": 0.5, "text": " ok"} for when in ("before", "after")}
    prompts = [f"<user>\n{text}\n<assistant>\n" for text in ("What is it?", "Where is she")]
    lines = _samples([{"prompt": prompt, **sides} for prompt in prompts])
    assert [line for line in lines if line.startswith("prompt")] == [
        "prompt  What is it?",
        "prompt  Where is she",
    ]
    assert lines[1] == "before  +0.50  ok"
