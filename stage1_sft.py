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
    from cores.data import inputs, sft_data, show
    from cores.forecast import forecast
    from cores.models import check_saving, save_model
    from cores.models.adapters import check_quantization
    from cores.models.bases import base_tokenizer, check_base, check_encoder
    from cores.models.images import image_processor
    from cores.models.loading import load_config, scalar_problem
    from cores.models.tuning import trained_part
    from cores.models.vocabulary import saved_rows
    from cores.run import StageRun
    from cores.runtime.elsewhere import pinned
    from cores.runtime.fingerprint import base_facts, cache_if_unreachable, tokenizer_fingerprint
    from cores.runtime.launch import check_batches, launch
    from cores.training.sft import check_positions, sft_model, train_and_judge

    here = launch(config)
    check_batches(config.sft, here, "sft")
    with StageRun(config, "sft", here, started) as run:
        run.claim()
        merge, frozen = config.sft.lora.merge, config.sft.lora.rank + config.sft.prefix_tokens > 0
        check_quantization(config.model, frozen, "sft.lora", here.sharding.stage, here.device)
        cache_if_unreachable(config.model.path)
        config, given = pinned(config), config.model
        base = load_config(config.model.path)
        forecast(config, "sft", here)
        check_encoder(config, base, "sft", here.sharding.stage)
        check_positions(config, base)
        tokenizer, notes = base_tokenizer(config)
        if not config.data.inspecting:
            check_base(config.model.path, base, tokenizer, config.model.from_config)
        images = image_processor(config, base, tokenizer, here.sharding.stage)
        data = sft_data(config, tokenizer, takes := inputs(base, images))
        if config.data.inspecting:
            return here.once(show, data, tokenizer, config.data, takes.images)
        if problem := scalar_problem(base):
            notes.append(f"note: {problem}")
        here.say("\n".join([*data.report.lines(), *notes]))
        depends = {"parents": {"base": base_facts(given, base)}, "data": data.report.to_json()}
        here.alike(depends)
        model: Any = sft_model(config, tokenizer)
        if config.model.trainable or config.sft.prefix_tokens:
            here.say(trained_part(model))
        check_saving(model, tokenizer)
        run.begin(depends)
        trained, metrics = train_and_judge(model, data, run, images)
        facts = {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "vocab_size": saved_rows(model),
            **depends,
            "data": data.report.to_json(),  # what was read of a stream is known only now
            "metrics": metrics,
        }
        run.finish(lambda to: here.once(save_model, trained, tokenizer, to, merge, images), facts)


if __name__ == "__main__":
    guarded(main)
