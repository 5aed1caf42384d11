"""Stage 1: supervised fine-tuning. From a base model and demonstrations to <output_dir>/sft."""

import time
from typing import Any

from cores.config import check_run, parse_config
from cores.runtime.cli import guarded


def main(argv: list[str]) -> None:
    """Run the stage with the arguments `argv`."""
    started = time.monotonic()
    config = parse_config(argv, "stage1_sft.py", "Stage 1: supervised fine-tuning.")
    check_run(config, "sft")

    # Heavy imports come after the arguments are known to be right.
    from cores.data import sft_data, show
    from cores.models import check_saving, load_tokenizer, save_model, settle_pad_token
    from cores.models.adapters import check_quantization
    from cores.models.body import check_packing
    from cores.models.loading import check_base, check_length, load_config, scalar_problem
    from cores.run import StageRun
    from cores.runtime.fingerprint import base_facts, cache_if_unreachable, tokenizer_fingerprint
    from cores.runtime.launch import check_batches, launch
    from cores.training.sft import sft_model, train_and_judge

    here = launch(config)
    check_batches(config.sft, here, "sft")
    with StageRun(config, "sft", here, started) as run:
        if not config.data.inspecting:
            run.claim()
        stage, lora = here.sharding.stage, config.sft.lora
        check_quantization(config.model, lora, "sft.lora", stage, here.device)
        cache_if_unreachable(config.model.path)
        base = load_config(config.model.path)
        check_length(base, config.sft.max_length, "sft.max_length")
        tokenizer = load_tokenizer(config.model.path)
        note = settle_pad_token(tokenizer, config.model.pad_token)
        if not config.data.inspecting:
            check_base(config.model.path, base, tokenizer)
        data = sft_data(config, tokenizer)
        if config.data.inspecting:
            return here.once(show, data, tokenizer, config.data)
        here.say("\n".join(data.report.lines() + ([note] if note else [])))
        if problem := scalar_problem(base):
            here.say(f"note: {problem}")

        model: Any = sft_model(config, tokenizer)
        if config.sft.packing:
            check_packing(model)
        check_saving(model, tokenizer)
        parents = {"base": base_facts(config.model.path, model)}
        run.begin({"parents": parents, "data": data.report.to_json()})
        trained, metrics = train_and_judge(config, model, data, tokenizer.pad_token_id, run)
        facts = {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "vocab_size": model.config.get_text_config().vocab_size,
            "data": data.report.to_json(),
            "parents": parents,
            "metrics": metrics,
        }
        run.finish(lambda to: here.once(save_model, trained, tokenizer, to, lora.merge), facts)


if __name__ == "__main__":
    guarded(main)
