"""The numbers that a key may hold, said where the key is: `clip: float = number(0.2, above=0)`.

Without `number` a key takes 0 or above. Whatever is said, whole numbers stay within 32 bits and
others within what fp32 computes with; a default of None is "not set" and no number.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

MOST = 2**31 - 1
"""Of whole numbers: tensors of sizes and ids are counted in 32 bits somewhere in every library."""
LARGEST, SMALLEST = 1e30, 1e-30
"""Of other numbers: squares of these are still numbers in fp32, near enough."""
RANGE = "range"


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number; None: no such bound."""

    above: float | None = None
    least: float | None = None
    below: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        low = f"above {self.above:g}" if self.above is not None else f"at least {self.least:g}"
        if self.below is not None:
            return f"{low} and below {self.below:g}"
        return low if self.most is None else f"{low} and at most {self.most:.12g}"

    def holds(self, value: float) -> bool:
        """Whether `value` is inside; NaN never is."""
        return (
            (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.below is None or value < self.below)
            and (self.most is None or value <= self.most)
        )


NOT_NEGATIVE = Range(least=0)


def number(
    default: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Any:
    """A dataclass field for a number (or a list of numbers) within these bounds."""
    least = 0 if above is None and least is None else least
    metadata = {RANGE: Range(above, least, below, most)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def range_problems(section: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong) for each number in a section and those below it."""
    for field in dataclasses.fields(section):
        key, value = f"{prefix}{field.name}", getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from range_problems(value, f"{key}.")
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            if dataclasses.is_dataclass(item) and item is not value:
                yield from range_problems(item, f"{key}[{i}].")
            elif isinstance(item, int | float) and not isinstance(item, bool):
                problem = _problem(item, field.metadata.get(RANGE, NOT_NEGATIVE))
                if problem:
                    yield key, problem


def _problem(value: float, allowed: Range) -> str | None:
    shown = f"{value:.3e}" if isinstance(value, int) and abs(value) > 1e15 else f"{value}"
    if math.isinf(value):
        return f"{shown} must be finite and {allowed}."
    if not allowed.holds(value):
        return f"{shown} must be {allowed}."
    if isinstance(value, int) and value > MOST and allowed.most is None:
        return f"{shown} must be at most {MOST}."
    if value and not SMALLEST <= abs(value) <= LARGEST:
        return f"{shown} must be 0 or within {SMALLEST:g} and {LARGEST:g}, as fp32 computes."
    return None
