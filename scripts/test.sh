#!/usr/bin/env bash
# Everything that must hold before a change is kept: lint, format, types, tests.
#
#   bash scripts/test.sh [PYTEST ARGUMENTS]      for example: bash scripts/test.sh tests/unit
#   bash scripts/test.sh fast [FILES]            lint, types, formulas, configuration, pages, FILES
#
# Makes the environment first, as scripts/setup.sh does.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "${1:-}" = fast ]; then
    shift
    set -- tests/parity tests/unit/test_{rl,config}_*.py \
        tests/unit/test_{imports,documents,mutations,pages}.py "$@"
fi
TRISTAGE_SCRIPT=1 bash scripts/setup.sh dev,deepspeed
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# A worker a core, eight at most, one thread each. loadfile: the tests of a file share the runs that
# it makes.
export OMP_NUM_THREADS=1
workers=$(.venv/bin/python -c 'import os; print(min(8, max(2, os.cpu_count() or 2)))')
.venv/bin/python -m pytest -n "$workers" --dist loadfile "$@"
