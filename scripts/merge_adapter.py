"""Merge a stage that holds an adapter alone (lora.merge false) into an ordinary model folder.

    python scripts/merge_adapter.py FOLDER OUT

The adapter's base must be where adapter_config.json says.
"""

import sys
from pathlib import Path

from cores.errors import UserError
from cores.models.loading import merge_adapter
from cores.models.lora import ADAPTER
from cores.runtime.launch import quiet

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    quiet()
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    if not (folder / ADAPTER / "adapter_config.json").is_file():
        sys.exit(f"{folder}: there is no adapter in it ({ADAPTER}/adapter_config.json).")
    if out.exists():
        sys.exit(f"{out}: exists already. Give another folder.")
    try:
        merge_adapter(folder, out)
    except UserError as error:
        sys.exit(f"error: {error}")
