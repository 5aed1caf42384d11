"""Whether an unfinished run may go on under another configuration."""

import json
from typing import Any

from cores.config import Config, plain

FREE = ("output_dir", "logging", "checkpoint", "overwrite", "resume", "data.inspect")
"""Keys and sections that change nothing that is trained."""


def differing(before: dict[str, Any], now: Config) -> list[str]:
    """Keys with another value than the run began with, each `key: before -> now`."""
    old, new = flat(before), flat(plain(now))
    defaults = flat(plain(Config()))
    keys = [key for key in new if not _free(key)]
    changed = [key for key in keys if old.get(key, defaults.get(key)) != new[key]]
    gone = [key for key in old if key not in new and not _free(key)]
    return [
        f"{key}: {_shown(old.get(key, defaults.get(key)))} -> {_shown(new[key])}"
        for key in changed
        if not (key == "ppo.updates" and _grows(old, new))
    ] + [f"{key}: is gone" for key in gone]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted keys, as the command line names them; lists as JSON."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return result


def _free(key: str) -> bool:
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _grows(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether more updates leave those that were taken as they were: no rate depends on how many
    there will be. (Stages 1 and 2 always have a cosine.)"""
    constant = new["ppo.lr_schedule"] == "constant" and new["ppo.warmup_ratio"] == 0
    return constant and new["ppo.updates"] > old["ppo.updates"]


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
