"""Stage 2: the reward model. From <output_dir>/sft and pairs to <output_dir>/reward."""

import time
from typing import Any

from cores.config import check_run, parse_config
from cores.runtime.cli import guarded


def main(argv: list[str]) -> None:
    """Run the stage with the arguments `argv`."""
    started = time.monotonic()
    config = parse_config(argv, "stage2_rm.py", "Stage 2: reward model.")
    check_run(config, "reward")

    # Heavy imports come after the arguments are known to be right.
    from cores.data import inputs, preference_data, show
    from cores.forecast import forecast
    from cores.models import ScalarModel, save_model
    from cores.models.adapters import check_quantization
    from cores.models.bases import check_encoder
    from cores.models.images import later_processor
    from cores.models.loading import load_config
    from cores.models.vocabulary import saved_rows
    from cores.run import StageRun
    from cores.runtime.fingerprint import tokenizer_fingerprint
    from cores.runtime.launch import check_batches, launch
    from cores.runtime.parents import first_model, load_parents, policy_tokenizer, stale_parents
    from cores.training.calibration import calibrate, calibration_asked
    from cores.training.ppo import check_sampling
    from cores.training.reward import judged, reward_model, train_reward

    here = launch(config)
    check_batches(config.reward, here, "reward")
    with StageRun(config, "reward", here, started) as run:
        run.claim()
        stage, lora, merge = here.sharding.stage, config.reward.lora, config.reward.lora.merge
        check_quantization(config.model, lora.rank > 0, "reward.lora", stage, here.device)
        parents = load_parents(config, ["sft"], here.is_local_main, run.place)
        forecast(config, "reward", here)
        model_config = load_config(sft := parents["sft"].folder)
        check_encoder(config, model_config, "reward", stage)
        tokenizer = policy_tokenizer(config, parents["sft"])
        start, base_config, about = first_model(config, parents, tokenizer, here.is_local_main)
        check_sampling(config, tokenizer, model_config, here.device)  # calibration does as stage 3
        images = later_processor(config, model_config, tokenizer, sft, "reward", here.world)
        data = preference_data(config, tokenizer, takes := inputs(model_config, images))
        if config.data.inspecting:
            return here.once(show, data, tokenizer, config.data, takes.images)
        here.say("\n".join([*data.report.lines(), *stale_parents(parents)]))
        asked = calibration_asked(config, data.train, model_config, base_config)
        depends = {"parents": about, "data": data.report.to_json()}
        here.alike(depends)
        model: Any = reward_model(config, start, tokenizer)
        run.begin(depends)
        trained = train_reward(model, data.train, run, images)
        result = judged(reward := ScalarModel(trained), data.test, run, images)
        scale = calibrate(config, reward, sft, asked, tokenizer, here, images=images)
        facts = {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "vocab_size": saved_rows(model),
            **depends,
            "reward_mean": scale["reward_mean"],
            "metrics": {**result, "calibration": scale},
        }
        run.finish(lambda to: here.once(save_model, trained, tokenizer, to, merge, images), facts)


if __name__ == "__main__":
    guarded(main)
