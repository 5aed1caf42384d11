"""Merge a stage that holds an adapter alone (lora.merge false) into an ordinary model folder.

    python scripts/merge_adapter.py FOLDER OUT

The adapter's base must be where adapter_config.json says.
"""

import sys
from pathlib import Path

from cores.errors import UserError
from cores.runtime.cli import guarded


def main(argv: list[str]) -> None:
    """Merge argv[0] into argv[1]."""
    if len(argv) != 2:
        sys.exit(__doc__)
    from cores.models.adapters import ADAPTER
    from cores.models.saving import merge_adapter
    from cores.runtime.launch import quiet

    quiet()
    folder, out = Path(argv[0]), Path(argv[1])
    if not (folder / ADAPTER / "adapter_config.json").is_file():
        raise UserError(f"{folder}: there is no adapter in it ({ADAPTER}/adapter_config.json).")
    if out.exists():
        raise UserError(f"{out}: exists already. Give another folder.")
    merge_adapter(folder, out)
    print(f"wrote {out}")


if __name__ == "__main__":
    guarded(main)
