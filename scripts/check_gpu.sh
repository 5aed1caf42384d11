#!/usr/bin/env bash
# Do two GPUs take the steps of one? All stages on tiny models in fp32, by one GPU and by two.
#
#   bash scripts/check_gpu.sh OUT
#
# Runs what tests/integration/test_processes.py runs on the CPU: SFT, reward model and PPO on fixed
# replies, with full weights and with adapters, under each file of configs/accelerate named below.
# Prints a line a launch and writes OUT/equivalence.json; exits with 1 if a difference is too large.
# Needs no network. Without GPUs it runs on two CPU processes (to try the script itself).
# MODELS, LAUNCHES, PYTHON choose the models, the files and the interpreter, PROCESSES their number.
set -euo pipefail
if [ $# -ne 1 ]; then
    echo "usage: bash scripts/check_gpu.sh OUT" >&2
    exit 2
fi
mkdir -p "$1"
out=$(realpath "$1")
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
case $gpus in
    0) one=cpu launches=${LAUNCHES:-cpu2 zero2 zero3 fsdp2} ;;
    1)
        echo "one GPU is not enough: two processes need two" >&2
        exit 2
        ;;
    *) one=gpu launches=${LAUNCHES:-ddp zero2 zero3 fsdp2} ;;
esac
export PROCESSES=${PROCESSES:-2} NVIDIA_TF32_OVERRIDE=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
worker=tests/integration/_modes_worker.py
rm -f "$out/equivalence.json"
failed=0
for model in ${MODELS:-gpt2 llama}; do
    folder=$out/$model
    rm -rf "$folder"
    "$python" $worker make "$folder" "$model" \
        >"$out/$model.make.log" 2>&1 || { tail -n 40 "$out/$model.make.log" >&2; exit 1; }
    for launch in $one $launches; do
        if [ "$launch" = "$one" ]; then count=1; else count=$PROCESSES; fi
        log=$out/$model.$launch.log
        mkdir "$folder/$launch"
        SECONDS=0
        if ! "$python" -m accelerate.commands.launch --quiet \
            --config_file "configs/accelerate/$launch.yaml" --num_processes "$count" \
            $worker run "$folder" "$folder/$launch" >"$log" 2>&1; then
            echo "$model $launch: failed; the end of $log:" >&2
            tail -n 40 "$log" >&2
            failed=1
            continue
        fi
        "$python" scripts/compare_launches.py "$out" "$model" "$one" "$launch" $SECONDS "$count" \
            || failed=1
    done
done
exit $failed
