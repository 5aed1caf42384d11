#!/usr/bin/env bash
# A verifiable reward from nothing: bash scripts/arithmetic.sh
# A tiny GPT-2 learns sums from replies of which half are wrong, then from a Python function that
# knows the answers. Leaves runs/arithmetic/{sft,ppo} and runs/arithmetic/summary.json.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TRISTAGE_SCRIPT=1 bash scripts/setup.sh

export CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu  # a CPU is enough, and the same everywhere
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}  # matrices this small get slower with more
python=.venv/bin/python
started=$SECONDS
step() { printf '\n== %s\n' "$1"; }

step "Sums of two numbers, a tokenizer and a base model of random weights"
"$python" scripts/arithmetic/make.py --out runs/arithmetic
step "Stage 1: supervised fine-tuning on replies of which half are wrong"
"$python" stage1_sft.py --config configs/arithmetic.yaml --overwrite
step "Stage 3: PPO against scripts/arithmetic/reward.py, without reward model and critic"
"$python" stage3_ppo.py --config configs/arithmetic.yaml --overwrite
step "Before and after, on sums never seen"
"$python" scripts/arithmetic/report.py --run runs/arithmetic
echo "the example took $((SECONDS - started)) s"
