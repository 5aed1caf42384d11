"""The numbers that a key may hold, said where the key is: `clip: float = number(0.2, above=0)`.

Without a word a number is 0 or above. Whatever is said, whole numbers stay within 32 bits, in which
some library always counts, and others within what fp32 computes with; None is no number.
"""

import dataclasses
import math
import operator
from collections.abc import Iterator
from typing import Any

MOST, SMALLEST, LARGEST = 2**31 - 1, 1e-30, 1e30
BOUNDS = {
    "above": ("above", operator.gt),
    "least": ("at least", operator.ge),
    "below": ("below", operator.lt),
    "most": ("at most", operator.le),
}


def number(default: Any, **bounds: float) -> Any:
    """A dataclass field for a number within `bounds`: above, least, below, most."""
    assert bounds.keys() <= BOUNDS.keys()
    low = {} if bounds.keys() & {"above", "least"} else {"least": 0}
    return dataclasses.field(default=default, metadata={"bounds": low | bounds})


def in_words(bounds: dict[str, float]) -> str:
    """Such as "above 0 and at most 1"."""
    return " and ".join(f"{BOUNDS[name][0]} {value:.12g}" for name, value in bounds.items())


def range_problems(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) for each number in a section and in those below it."""
    for field in dataclasses.fields(section):
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        items = [(f"{key}[{i}]", x) for i, x in enumerate(value)] if type(value) is list else []
        for place, item in [(key, value), *items]:
            if dataclasses.is_dataclass(item):
                yield from range_problems(item, f"{place}.")
            elif isinstance(item, int | float) and not isinstance(item, bool):
                problem = _problem(item, field.metadata.get("bounds", {"least": 0}))
                if problem:
                    yield key, f"{item if abs(item) < 1e15 else float(item)} must be {problem}."


def _problem(value: float, bounds: dict[str, float]) -> str | None:
    if math.isinf(value):
        return f"finite and {in_words(bounds)}"
    if not all(BOUNDS[name][1](value, bound) for name, bound in bounds.items()):
        return in_words(bounds)
    if isinstance(value, int) and value > max(MOST, bounds.get("most", 0)):
        return f"at most {MOST}"
    if value and not SMALLEST <= abs(value) <= LARGEST:
        return f"0 or within {SMALLEST:g} and {LARGEST:g}, as fp32 computes"
    return None
