"""Stage 3: PPO. From <output_dir>/sft, <output_dir>/reward and prompts to <output_dir>/ppo."""

import time

from cores.config import parse_config
from cores.runtime.cli import guarded


def main(argv: list[str]) -> None:
    """Run the stage with the arguments `argv`."""
    started = time.monotonic()
    config = parse_config(argv, "stage3_ppo.py", "Stage 3: proximal policy optimization.")

    # Heavy imports come after the arguments are known to be right.
    from cores.data import prompt_data, show
    from cores.models import load_tokenizer
    from cores.models.loading import load_config
    from cores.models.quantization import check_quantization
    from cores.ppo import build_roles
    from cores.ppo.run import (
        build_trainer,
        check_model,
        check_sampling,
        needed_stages,
        ptx_data,
        save_roles,
        train,
    )
    from cores.rewards.load import load_functions
    from cores.runtime.fingerprint import tokenizer_fingerprint
    from cores.runtime.launch import check_batches, launch
    from cores.runtime.sharding import zero_stage
    from cores.runtime.stage import StageFolder, load_parents, parent_facts, stale_parents

    run = launch(config)
    check_batches(config.ppo, run, "ppo")
    folder = StageFolder(config, "ppo", run, started)
    if not config.data.inspect:
        folder.check()
    check_quantization(config.model, config.ppo.lora, "ppo.lora", zero_stage(), run.device)
    functions, reward_files = load_functions(config.ppo.rewards, config.ppo.reward_timeout)
    parents = load_parents(config, needed_stages(config))
    model_config = load_config(parents["sft"].folder)
    check_model(config, model_config)
    tokenizer = load_tokenizer(parents["sft"].folder)
    check_sampling(config, tokenizer, model_config, run.device)
    data = prompt_data(config, tokenizer)
    if config.data.inspect:
        return run.once(show, data, tokenizer, config.data.inspect)
    ptx = ptx_data(config, tokenizer)
    reports = {"data": data.report, **({"ptx_data": ptx.report} if ptx else {})}
    lines = [line for report in reports.values() for line in report.lines()]
    run.say("\n".join([*lines, *stale_parents(parents)]))

    roles = build_roles(config, tokenizer, parents, run)
    with folder:
        trainer = build_trainer(config, roles, tokenizer, run, functions, ptx.train if ptx else ())
        metrics = train(config, trainer, data, tokenizer, folder)
        save_roles(config, roles, tokenizer, folder.path, run)
        facts = {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "vocab_size": model_config.vocab_size,
            **{name: report.to_json() for name, report in reports.items()},
            "reward_files": reward_files,
            "parents": parent_facts(parents),
            "metrics": metrics,
        }
        folder.finish(facts)


if __name__ == "__main__":
    guarded(main)
