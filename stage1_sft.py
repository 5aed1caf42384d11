"""Stage 1: supervised fine-tuning. From a base model and demonstrations to <output_dir>/sft."""

import time
from typing import Any

from cores.config import parse_config
from cores.runtime.cli import guarded


def main(argv: list[str]) -> None:
    """Run the stage with the arguments `argv`."""
    started = time.monotonic()
    config = parse_config(argv, "stage1_sft.py", "Stage 1: supervised fine-tuning.")

    # Heavy imports come after the arguments are known to be right.
    from peft import TaskType

    from cores.data import sft_data, show
    from cores.models import add_lora, load_tokenizer, save_model, settle_pad_token
    from cores.models.loading import (
        check_base,
        check_length,
        load_base,
        load_config,
        scalar_problem,
    )
    from cores.models.packing import check_packing
    from cores.models.quantization import check_quantization
    from cores.runtime.fingerprint import base_facts, tokenizer_fingerprint
    from cores.runtime.hub import cache_if_unreachable
    from cores.runtime.launch import check_batches, launch
    from cores.runtime.sharding import zero_stage
    from cores.runtime.stage import StageFolder
    from cores.training.sft import train_and_judge

    run = launch(config)
    check_batches(config.sft, run, "sft")
    folder = StageFolder(config, "sft", run, started)
    if not config.data.inspect:
        folder.check()
    check_quantization(config.model, config.sft.lora, "sft.lora", zero_stage(), run.device)
    cache_if_unreachable(config.model.path)
    base = load_config(config.model.path)
    check_length(base, config.sft.max_length, "sft.max_length")
    tokenizer = load_tokenizer(config.model.path)
    note = settle_pad_token(tokenizer, config.model.pad_token)
    if not config.data.inspect:
        check_base(config.model.path, base, tokenizer)
    data = sft_data(config, tokenizer)
    if config.data.inspect:
        return run.once(show, data, tokenizer, config.data.inspect)
    run.say("\n".join(data.report.lines() + ([note] if note else [])))
    if problem := scalar_problem(base):
        run.say(f"note: {problem}")

    model: Any = load_base(config.model.path, tokenizer, frozen=config.model)
    if config.sft.packing:
        check_packing(model)
    trained: Any = model
    if config.sft.lora.rank:
        trained = add_lora(model, config.sft.lora, TaskType.CAUSAL_LM, "sft.lora")

    with folder:
        pad_id = tokenizer.pad_token_id
        trained, metrics = train_and_judge(config, trained, data, pad_id, folder, run)
        run.once(save_model, trained, tokenizer, folder.path, config.sft.lora.merge)
        facts = {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "vocab_size": model.config.get_text_config().vocab_size,
            "data": data.report.to_json(),
            "parents": {"base": base_facts(config.model.path, model)},
            "metrics": metrics,
        }
        folder.finish(facts)


if __name__ == "__main__":
    guarded(main)
