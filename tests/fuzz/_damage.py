"""Ways to damage one file of a folder, and what has to hold of what is said of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cores.errors import UserError

ORDINARY = 100
EXAMPLES = settings.default.max_examples if settings.default.max_examples > ORDINARY else 50
"""A longer profile says how many; hypothesis's own number would take too long here."""
RANDOMLY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
WEIGHTS, CONFIG = "model.safetensors", "config.json"
Damage = Callable[[Path], Any]
VALUES: list[Any] = [None, True, -1, 0, 2.5, 10**9, 10**19, "2", "x", [], [1], {}, {"a": []}]


def instead(name: str, make: Callable[[Path], Any]) -> Damage:
    return lambda folder: ((folder / name).unlink(), make(folder / name))


def keys(name: str, **values: Any) -> Damage:
    def damage(folder: Path) -> None:
        facts = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps({**facts, **values}), "utf-8")

    return damage


def one_paragraph(read: Callable[[Path], Any], folder: Path) -> Any:
    """What `read` gives, or None where it refuses the folder."""
    try:
        return read(folder)
    except UserError as error:
        said = str(error)
    assert said
    assert "\n" not in said
    return None


def damage_at_random(data: st.DataObject, folder: Path) -> str:
    """Damage one file; gives its name."""
    names = sorted(p.name for p in folder.iterdir())
    name = data.draw(st.sampled_from(names))
    path = folder / name
    how = data.draw(st.sampled_from(["key", "byte", "cut", "swap", "gone"]))
    if how == "key" and path.suffix == ".json":
        record = json.loads(path.read_text("utf-8"))
        key = data.draw(st.sampled_from([*sorted(record), "new"]))
        if data.draw(st.booleans()):
            record.pop(key, None)
        else:
            record[key] = data.draw(st.sampled_from(VALUES))
        path.write_text(json.dumps(record), "utf-8")
    elif how == "swap":
        other = folder / data.draw(st.sampled_from(names))
        mine, theirs = path.read_bytes(), other.read_bytes()
        path.write_bytes(theirs)
        other.write_bytes(mine)
    elif how == "gone":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, min(len(content) - 1, 3000)))
        if how == "cut":
            del content[place:]
        else:
            content[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
    return name
