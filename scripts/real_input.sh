#!/usr/bin/env bash
# The three stages on one file of pairs, two baselines, and every figure in one place.
#
#   bash scripts/real_input.sh DATA MODEL OUT [--section.key value ...]
#
# DATA: JSONL with instruction, input, output, chosen, rejected; SFT learns `output`. A fifth of it
# is held out by a hash of the prompt, the same rows in every stage. MODEL: a folder or hub id.
# OUT: gets sft/ reward/ ppo/ baselines.json figures.json figures.txt.
# Further arguments go to every stage. STAGES="sft reward" runs a part; PYTHON names the interpreter.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash scripts/real_input.sh DATA MODEL OUT [--section.key value ...]" >&2
    exit 2
fi
data=$(realpath "$1") out=$(realpath -m "$3")
if [ -d "$2" ]; then model=$(realpath "$2"); else model=$2; fi
shift 3
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
common=(--config configs/smollm2.yaml --output_dir "$out" --model.path "$model"
    --data.test_fraction 0.2)
for source in sft preference prompts; do
    common+=("--data.$source.path" "$data" "--data.$source.limit" null)
done
common+=("$@")

for step in ${STAGES:-sft reward ppo report}; do
    case $step in
        sft) "$python" stage1_sft.py "${common[@]}" --overwrite true ;;
        reward) "$python" stage2_rm.py "${common[@]}" --overwrite true ;;
        ppo) "$python" stage3_ppo.py "${common[@]}" --overwrite true ;;
        report)
            "$python" scripts/baselines.py "${common[@]}" --out "$out/baselines.json"
            "$python" scripts/figures.py "$out"
            ;;
        *)
            echo "STAGES: no step $step; there are sft, reward, ppo and report" >&2
            exit 2
            ;;
    esac
done
