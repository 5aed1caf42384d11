#!/usr/bin/env bash
# Make .venv and install this package and its dependencies into it, unless that is done already.
#
#   bash scripts/setup.sh [EXTRAS]        for example: bash scripts/setup.sh dev,deepspeed
#
# Installs again when pyproject.toml or constraints.txt has changed. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${1:-}

recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if recent "$python"; then break; fi
        python=
    done
    if [ -z "$python" ]; then
        echo "error: Python 3.11 or newer is needed and was not found (tried" \
            "${PYTHON:-python3, python3.13, python3.12, python3.11}). Install one, or name it:" \
            "PYTHON=/path/to/python bash scripts/demo.sh" >&2
        exit 1
    fi
    if ! "$python" -m venv .venv; then
        echo "error: $python cannot make a virtual environment; on Debian and Ubuntu, install" \
            "the package python3-venv." >&2
        exit 1
    fi
elif ! recent .venv/bin/python; then
    echo "error: .venv holds a Python older than 3.11; delete the folder and run this again." >&2
    exit 1
fi

# A stamp is what was installed from. One with extras stands for the bare package as well.
wanted=$(cat pyproject.toml constraints.txt)
stamp=.venv/installed-${extras:-bare}
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into .venv (once; some minutes, two gigabytes)"
    started=$SECONDS
    # pip's own lines, and its bars on a terminal: a package is up to half a gigabyte.
    .venv/bin/python -m pip install --disable-pip-version-check -c constraints.txt \
        -e ".${extras:+[$extras]}"
    printf '%s\n' "$wanted" | tee .venv/installed-bare >"$stamp"
    echo "installed in $((SECONDS - started)) s"
fi
# Other scripts call this one, and say themselves what comes next.
if [ -z "${TRISTAGE_SCRIPT:-}" ]; then
    echo "ready; next: source .venv/bin/activate && python stage1_sft.py --config configs/gpt2.yaml"
    echo "or, on a CPU in minutes and without any data: bash scripts/demo.sh"
fi
