"""Stage 2: the reward model. From <output_dir>/sft and pairs to <output_dir>/reward."""

import time
from typing import Any

from cores.config import parse_config
from cores.runtime.cli import guarded


def main(argv: list[str]) -> None:
    """Run the stage with the arguments `argv`."""
    started = time.monotonic()
    config = parse_config(argv, "stage2_rm.py", "Stage 2: reward model.")

    # Heavy imports come after the arguments are known to be right.
    from cores.data import preference_data, show
    from cores.models import ScalarModel, load_scalar, load_tokenizer, save_model
    from cores.models.loading import check_length, check_scalar, load_config
    from cores.models.quantization import check_quantization
    from cores.ppo.run import check_sampling
    from cores.runtime.fingerprint import tokenizer_fingerprint
    from cores.runtime.launch import check_batches, launch
    from cores.runtime.parents import load_parents, parent_facts
    from cores.runtime.sharding import zero_stage
    from cores.runtime.stage import StageFolder
    from cores.training.calibration import calibration_prompts, policy_engine
    from cores.training.reward import accuracy, calibrate, init_head, train_reward

    run = launch(config)
    check_batches(config.reward, run, "reward")
    folder = StageFolder(config, "reward", run, started)
    if not config.data.inspect:
        folder.check()
    check_quantization(config.model, config.reward.lora, "reward.lora", zero_stage(), run.device)
    parents = load_parents(config, ["sft"], hashed=run.is_main)
    model_config = load_config(sft := parents["sft"].folder)
    check_scalar(model_config)
    check_length(model_config, config.reward.max_length, "reward.max_length")
    tokenizer = load_tokenizer(sft)
    check_sampling(config, tokenizer, model_config, run.device)  # calibration does as stage 3
    data = preference_data(config, tokenizer)
    if config.data.inspect:
        return run.once(show, data, tokenizer, config.data.inspect)
    run.say("\n".join(data.report.lines()))
    prompts = calibration_prompts(config, data.train, model_config)

    model: Any = load_scalar(sft, frozen=config.model, num_labels=1)
    init_head(model)
    pad_id, rows = tokenizer.pad_token_id, config.reward.microbatch_size
    with folder:
        trained = train_reward(config, model, data.train, tokenizer, folder, run)
        reward = ScalarModel(trained)
        result = accuracy(reward, data.test, pad_id, rows, run)
        if data.test:
            run.say(
                f"held-out accuracy {result['accuracy']:.3f} on {result['pairs']} pairs "
                f"(the longer reply wins: {result['accuracy_longer']:.3f})"
            )
        engine = policy_engine(config, sft, tokenizer, run)
        scale = calibrate(reward, engine, prompts, pad_id, rows, run)
        run.once(save_model, trained, tokenizer, folder.path, config.reward.lora.merge)
        facts = {
            "tokenizer": tokenizer_fingerprint(tokenizer),
            "vocab_size": model.config.get_text_config().vocab_size,
            "data": data.report.to_json(),
            "parents": parent_facts(parents),
            "reward_mean": scale["reward_mean"],
            "metrics": {**result, "calibration": scale},
        }
        folder.finish(facts)


if __name__ == "__main__":
    guarded(main)
