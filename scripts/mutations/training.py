"""Bugs in stages 1 and 2; see rl.py for the form."""

Bug = tuple[str, str, str, str]
TRAINING = (
    "tests/unit/test_training_settings.py",
    "tests/integration/test_models_training.py",
    "tests/unit/test_two_ranks.py",
    "tests/unit/test_data_margin.py",
)

BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/training/sft.py": (
        (*TRAINING, "tests/unit/test_packing.py"),
        [
            ("pad-trained", "padding has loss",
             'right_pad([row["labels"] for row in rows], IGNORED)',
             'right_pad([row["labels"] for row in rows], pad_id)'),
            ("first-label", "the first label counted although nothing predicts it",
             "    labels[:, 0] = IGNORED\n", ""),
            ("pad-attended", "padding attended",
             '"attention_mask": mask.long()', '"attention_mask": torch.ones_like(ids)'),
            ("packed-pad-position", "padding of packed rows goes on with the last row",
             'right_pad([row["position_ids"] for row in rows], 0)',
             'right_pad([row["position_ids"] for row in rows], 1)'),
            ("held-out-shift", "held-out loss against the token itself",
             'batch.pop("labels")[:, 1:]', 'batch.pop("labels")[:, :-1]'),
            ("held-out-denominator", "held-out loss divided by all places",
             "int((labels != IGNORED).sum())", "labels.numel()"),
            ("held-out-dropout", "held-out loss with dropout",
             "    model.eval()\n", "    model.train()\n"),
            ("held-out-rank", "every rank measures the first rank's held-out rows",
             "rows[launch.rank :: launch.world]", "rows[:: launch.world]"),
        ],
    ),
    "cores/training/reward.py": (
        (*TRAINING, "tests/unit/test_models_scalar.py"),
        [
            ("head-init", "wrong scale of the head's first weights",
             "(weight.shape[1] + 1) ** -0.5", "(weight.shape[1] + 1) ** -1.0"),
            ("pair-weight", "a pair of a small last micro-batch weighs more",
             "return loss * (pairs_in(inputs) * self.accelerator.num_processes / even)",
             "return loss"),
            ("ties-win", "a tie counts as won", "0.5 if c == r", "1.0 if c == r"),
            ("accuracy-swapped", "accuracy of the rejected side",
             "wins(scores[::2], scores[1::2])", "wins(scores[1::2], scores[::2])"),
            ("centre-forgotten", "center_coef does not reach the loss",
             "config.reward.center_coef or None", "None"),
            ("margin-forgotten", "margins do not reach the loss",
             '("chosen_ids", "rejected_ids", "margin")}', '("chosen_ids", "rejected_ids")}'),
        ],
    ),
    "cores/training/calibration.py": (
        (*TRAINING, "tests/unit/test_training_stops.py"),
        [
            ("calibration-prompts", "the chosen reply is part of the prompt",
             'pair["chosen_ids"][: pair["prompt_length"]]', 'pair["chosen_ids"]'),
            ("calibration-exclusion", "pad sampled in calibration",
             "    exclude_from(policy, tokenizer)\n", ""),
            ("scores-order", "scores in the order of the ranks, not the rows",
             "in sorted(everyone)", "in everyone"),
            ("calibration-std", "the unbiased deviation in calibration",
             "raw.std(correction=0)", "raw.std(correction=1)"),
            ("calibration-numbers", "the same random numbers on all ranks in calibration",
             '"calibration")[launch.rank :: launch.world]', '"calibration")'),
            ("calibration-live", "the model in memory keeps its old mean",
             "    model.mean = stock.config.reward_mean\n", ""),
        ],
    ),
    "cores/models/actor.py": (
        (*TRAINING, "tests/integration/test_elsewhere.py"),
        [
            ("calibration-inverse", "the head multiplied by the deviation",
             "parameter.mul_(1.0 / std)", "parameter.mul_(std)"),
            ("calibration-mean", "the mean before the scaling kept",
             "(before + mean) * (1.0 / std)", "before + mean"),
            ("calibration-before", "the mean that the model had is forgotten",
             "(before + mean) * (1.0 / std)", "mean * (1.0 / std)"),
        ],
    ),
    "cores/rewards/texts.py": (
        ("tests/unit/test_elsewhere.py", "tests/integration/test_elsewhere.py"),
        [
            ("texts-control", "a reply may end its turn in the reward model's template",
             'self.controls.sub(" ", text)', "text"),
            ("texts-stop", "a reply that was cut off ends like one that ended",
             "(self.template.eos if stopped else \"\")", "self.template.eos"),
            ("texts-bos", "texts without the token that begins them",
             "[] if chat else leading_ids(self.tokenizer)", "[]"),
            ("texts-room", "rows longer than the reward model's positions go to it",
             "self.positions is None or len(ids) <= self.positions", "True"),
            ("texts-alike", "ids for a reward model of another template",
             "if alike and fits and", "if fits and"),
        ],
    ),
    "cores/training/lasting.py": (
        ("tests/unit/test_training_stops.py", "tests/integration/test_resume.py"),
        [
            ("gradient-nan", "a gradient that is no number is stepped with",
             "if math.isfinite(float(norm)):", "if True:"),
            ("skips-forever", "any number of steps may be left out",
             "self.skipped > faults.max_skips", "False"),
            ("dropout-repeats", "dropout is the same at every step",
             '"dropout", state.global_step, rank', '"dropout", 0, rank'),
        ],
    ),
    "cores/training/trainer_args.py": (
        (*TRAINING, "tests/unit/test_training_stops.py"),
        [
            ("sft-warmup", "warm-up of steps counted in epochs",
             "math.ceil(section.warmup_ratio * steps)",
             "math.ceil(section.warmup_ratio * section.epochs)"),
            ("accumulation", "gradients not accumulated",
             '"gradient_accumulation_steps": passes', '"gradient_accumulation_steps": 1'),
        ],
    ),
}  # fmt: skip
"""File: (tests that run first, its bugs)."""
