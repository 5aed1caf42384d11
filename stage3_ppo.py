"""Stage 3: PPO. From <output_dir>/sft, <output_dir>/reward and prompts to <output_dir>/ppo."""

import time
from functools import partial

from cores.config import parse_config
from cores.runtime.cli import guarded


def main(argv: list[str]) -> None:
    """Run the stage with the arguments `argv`."""
    started = time.monotonic()
    config = parse_config(argv, "stage3_ppo.py", "Stage 3: proximal policy optimization.")

    # Heavy imports come after the arguments are known to be right.
    from cores.data import inputs, overlap, prompt_data, show
    from cores.forecast import forecast
    from cores.models.adapters import check_quantization
    from cores.models.images import later_processor
    from cores.models.vocabulary import saved_rows
    from cores.rewards.load import load_functions
    from cores.rewards.texts import notes, text_reward
    from cores.run import StageRun
    from cores.runtime.fingerprint import tokenizer_fingerprint
    from cores.runtime.launch import check_batches, launch
    from cores.runtime.parents import load_parents, parent_facts, policy_tokenizer, stale_parents
    from cores.training import ppo
    from cores.training.calibration import calibrated_roles

    here = launch(config)
    check_batches(config.ppo, here, "ppo")
    with StageRun(config, "ppo", here, started) as run:
        run.claim()
        stage, lora = here.sharding.stage, config.ppo.lora
        check_quantization(config.model, lora.rank > 0, "ppo.lora", stage, here.device)
        parents = load_parents(config, ppo.needed_stages(config), here.is_local_main, run.place)
        forecast(config, "ppo", here)
        model_config = ppo.check_models(config, parents, stage)
        tokenizer = policy_tokenizer(config, parents["sft"])
        ppo.check_sampling(config, tokenizer, model_config, here.device)
        functions = load_functions(config.ppo.rewards, config.ppo.reward_timeout)
        sft = parents["sft"].folder
        images = later_processor(config, model_config, tokenizer, sft, "ppo", here.world)
        data = prompt_data(config, tokenizer, takes := inputs(model_config, images))
        if config.data.inspecting:
            return here.once(show, data, tokenizer, config.data, takes.images)
        texts = text_reward(config, tokenizer, parents, data.train + data.test)
        ptx = ppo.ptx_data(config, tokenizer, takes)
        reports = {"data": data.report, **({"ptx_data": ptx.report} if ptx else {})}
        lines = [line for report in reports.values() for line in report.lines()]
        lines += overlap(config, data, takes)
        here.say("\n".join([*lines, *notes(config, texts), *stale_parents(parents)]))
        depends = {name: report.to_json() for name, report in reports.items()}
        depends |= {"reward_files": functions.files, "parents": parent_facts(parents)}
        here.alike(depends)
        roles, scale = calibrated_roles(config, tokenizer, parents, run, texts, data.train)
        run.begin(depends)
        called = functions.functions
        trainer = ppo.build_trainer(config, roles, tokenizer, here, called, ptx, images)
        trainer.state.calibration = scale
        facts = {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "vocab_size": saved_rows(roles.actor.unwrapped.model),
            **depends,
            "metrics": ppo.train(trainer, data, tokenizer, run),
        }
        run.finish(partial(ppo.save_roles, trainer, tokenizer), facts)


if __name__ == "__main__":
    guarded(main)
