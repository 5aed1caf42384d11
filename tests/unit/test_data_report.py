"""What the terminal says of the counts."""

from cores.data.report import DataReport, SplitReport


def test_an_empty_held_out_split_is_said() -> None:
    """Else its figures would only be missing."""
    train, empty = SplitReport("a", {}, "text", 5, 5), SplitReport("a", {}, "text")
    assert DataReport(train, empty).lines()[-1].startswith("note: no row is held out")
    assert not any("note" in line for line in DataReport(train, None).lines())
    assert not any("note" in line for line in DataReport(train, train).lines())
