"""Two hosts in network namespaces: scripts/trials/two_nodes.py, where this machine allows them."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.trials import two_nodes


def refused() -> str:
    """Why there can be no second host here; empty where there can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2's ip"
    words = ["unshare", "-n", "-u", "-m", "true"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stderr.strip()


@pytest.mark.long
@pytest.mark.parametrize("case", two_nodes.CASES)
def test_two_hosts(case: str, tmp_path: Path) -> None:
    if why := refused():
        pytest.skip(f"network namespaces: {why}")
    status = two_nodes.main([str(tmp_path), case])
    assert status == 0, json.loads((tmp_path / "two_nodes.json").read_text())
