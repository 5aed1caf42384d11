"""The plan of the mutation check fits the code as it is."""

import pytest

from research.mutations.plan import ROOT, Mutation, check, found, plan, planted
from research.mutations.report import render
from research.mutations.sessions import Outcome


def test_every_bug_can_be_planted() -> None:
    """Each old text stands in its file once, the result compiles, the tests named exist."""
    mutations = plan()
    check(mutations)
    assert len(mutations) >= 70


def bug(old: str, new: str = "x = 2\n", name: str = "area/name") -> Mutation:
    return Mutation(name, "Formulas", "cores/errors.py", "a bug", old, new, ())


@pytest.mark.parametrize(
    ("mutation", "reason"),
    [
        (bug("y = 1"), "'y = 1' stands 0 times"),
        (bug("x"), "'x' stands 2 times"),
        (bug("x = 1", "x = 1"), "old and new text are the same"),
    ],
)
def test_a_bug_that_cannot_be_planted_is_told(mutation: Mutation, reason: str) -> None:
    """Nothing is skipped in silence: a text that is gone, is not alone, or does not change."""
    with pytest.raises(ValueError, match=reason):
        planted(mutation, "x = 1\nz = x\n")


def test_names_and_tests_are_checked() -> None:
    """Two bugs of one name, and a test file that is not there."""
    once = plan()[0]
    with pytest.raises(ValueError, match=f"of one name: {once.id}"):
        check([once, once])
    with pytest.raises(ValueError, match=r"there is no tests/gone_\*\.py"):
        found(("tests/unit/test_rl_*.py", "tests/gone_*.py"))
    assert all((ROOT / test).is_file() for mutation in plan() for test in mutation.tests)


def test_the_page_counts_and_names_survivors() -> None:
    """A bug that nothing caught is counted as such and shown with its change."""
    mutations = [bug("x = 1", name="rl/one"), bug("z = x", name="rl/two")]
    outcomes = {
        "rl/one": Outcome("tests/unit/test_a.py::test_b[1|2]", 3.2),
        "rl/two": Outcome(None, 9),
    }
    page = render(mutations, outcomes)
    assert "**1 of 2 are caught.**" in page
    assert "| a bug | `errors.py` | `unit/test_a.py::test_b[1\\|2]` | 3 |" in page
    assert "- a bug (`rl/two`, `cores/errors.py`): `z = x` becomes `x = 2`" in page
