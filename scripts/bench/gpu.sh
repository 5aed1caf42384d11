#!/usr/bin/env bash
# All benchmarks of docs/performance.md on one GPU, each in a process of its own.
#
#   bash scripts/bench/gpu.sh OUT [SECONDS]
#
# Writes OUT/NAME.json and OUT/NAME.log. What SECONDS (default 1500) leave no time for is skipped
# and said; what is there already is not run again, so a second call goes on. A part that fails
# stops no other; the exit status is 1 if any failed or was skipped. PEER_PATH: folder with
# trl==1.12.0; without it the pairing is skipped. ENGINE (default graph), PYTHON, ONLY (a pattern
# of names, such as 'W1*') choose what runs and how.
set -uo pipefail
if [ $# -lt 1 ]; then
    echo "usage: bash scripts/bench/gpu.sh OUT [SECONDS]" >&2
    exit 2
fi
mkdir -p "$1"
out=$(realpath "$1")
deadline=${2:-1500}
cd "$(dirname "$0")/../.."
python=${PYTHON:-python}
engine=${ENGINE:-graph}
only=${ONLY:-*}
wrong=0
SECONDS=0

part() { # part NAME LIMIT COMMAND...: at most LIMIT seconds
    local name=$1 limit=$2 left=$((deadline - SECONDS)) begin=$SECONDS status=0
    shift 2
    # shellcheck disable=SC2254
    case $name in $only) ;; *) return ;; esac
    [ -f "$out/$name.json" ] && return
    if [ $left -lt 20 ]; then
        echo "$name: skipped, no time left"
        wrong=1
        return
    fi
    [ $limit -gt $left ] && limit=$left
    timeout "$limit" "$python" "$@" --json "$out/$name.json" >"$out/$name.log" 2>&1 || status=$?
    if [ $status -ne 0 ]; then
        echo "$name: failed with $status after $((SECONDS - begin)) s; the end of $out/$name.log:"
        tail -n 5 "$out/$name.log"
        wrong=1
    else
        echo "$name: $((SECONDS - begin)) s;" \
            "$(grep -m 1 -E 'samples/s|tokens/s|ratio' "$out/$name.log")"
    fi
}

step=scripts/bench/ppo_step.py
rollout=scripts/bench/rollout.py
part W1-$engine 100 $step --workload W1 --engine "$engine"
part rollout-gpt2 100 $rollout --model gpt2 --engine "$engine" \
    --batch 128 512 --response 128 --lengths fixed geometric
part W2-$engine 120 $step --workload W2 --engine "$engine" --updates 5
part W2-captured 120 $step --workload W2 --engine "$engine" --updates 5 \
    --ppo.passes captured --micro-tokens 8192
part W1-compiled 120 $step --workload W1 --engine "$engine" --ppo.passes compiled
if [ -n "${PEER_PATH:-}" ]; then
    part pair-W1 300 scripts/bench/peers/pair.py --workload W1 --engine "$engine" \
        --rounds 1 --peer-path "$PEER_PATH"
elif [[ pair-W1 == $only ]]; then
    echo "pair-W1: skipped, PEER_PATH is not set"
    wrong=1
fi
part steady-W1 200 scripts/bench/steady.py --workload W1 --engine "$engine" --batch 32 \
    --minibatch 16 --epochs 1 --lengths geometric
part rollout-gpt2-hf 100 $rollout --model gpt2 --engine hf --batch 128 512 --response 128 \
    --warm-up 1 --repeats 3
part logprobs 100 scripts/bench/logprobs.py
part W3-$engine 200 $step --workload W3 --engine "$engine" --warm-up 1 --updates 3
if [[ costs == $only ]]; then # ONLY=costs; single ones by costs.py itself
    "$python" scripts/bench/costs.py "$out" --engine "$engine" --seconds $((deadline - SECONDS)) \
        2>&1 | tee "$out/costs.log" || wrong=1
fi
exit $wrong
