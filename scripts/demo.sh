#!/usr/bin/env bash
# Environment, data, the three stages and a report, from nothing: bash scripts/demo.sh
# Leaves runs/demo/{sft,reward,ppo} and runs/demo/summary.json. Four to seven minutes on two cores
# after installation; run again, it installs nothing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
TRISTAGE_SCRIPT=1 bash scripts/setup.sh

export CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu  # a CPU is enough, and the same everywhere
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2}  # matrices this small get slower with more
python=.venv/bin/python
started=$SECONDS
step() { printf '\n== %s\n' "$1"; }

step "A made world: a hotel front desk. Data, tokenizer and a base model of random weights"
"$python" research/demo/make.py --out runs/demo
step "Stage 1: supervised fine-tuning on good and bad replies"
"$python" stage1_sft.py --config configs/demo.yaml --overwrite
step "Stage 2: a reward model from pairs with noisy labels"
"$python" stage2_rm.py --config configs/demo.yaml --overwrite
step "Stage 3: PPO against the reward model"
"$python" stage3_ppo.py --config configs/demo.yaml --overwrite
step "Before and after, judged by the true reward on prompts never seen"
"$python" research/demo/report.py --run runs/demo
echo "the demo took $((SECONDS - started)) s"
