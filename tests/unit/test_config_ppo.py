"""Options of stage 3 that cannot work, alone or together: each is said once, at its key."""

from pathlib import Path
from typing import Any

import pytest
from _config_helpers import mistake, parse

from cores.config import PPOSection

GROUPS = ["--ppo.samples_per_prompt", "4"]


@pytest.mark.parametrize(
    ("words", "key", "said"),
    [
        (["--ppo.minibatch_size", "48"], "minibatch_size", "does not divide ppo.batch_size 128"),
        (["--ppo.samples_per_prompt", "3"], "samples_per_prompt", "does not divide ppo.batch_size"),
        (["--ppo.actor_adam.beta1", "1"], "actor_adam.beta1", "at least 0 and below 1"),
        (["--ppo.critic_adam.beta2", "-0.1"], "critic_adam.beta2", "at least 0 and below 1"),
        (["--ppo.lora.dropout", "0.1"], "lora.dropout", "must be 0"),
        (["--ppo.critic_warmup", "200"], "critic_warmup", "200 of 200 ppo.updates leave none"),
        (["--ppo.clip", "1"], "clip", "above 0 and below 1"),
        (["--ppo.clip", ".nan"], "clip", "above 0"),
        (["--ppo.dual_clip", "1"], "dual_clip", "must be above 1"),
        (["--ppo.dual_clip", ".inf"], "dual_clip", "must be finite and above 1"),
        (["--ppo.kl_in", "loss"], "kl_kind", "choose k2 or k3"),
        (["--ppo.kl_target", "6", "--ppo.kl_coef", "0"], "kl_target", "0 stays 0"),
        (["--ppo.kl_target", "6", "--ppo.kl_horizon", "100"], "kl_horizon", "is below ppo.batch"),
        (["--ppo.ptx_mix", "convex", "--ppo.ptx_coef", "1.5"], "ptx_coef", "at most 1"),
        (["--ppo.ptx_coef", "1", "--data.sft.streaming", "true", "--sft.max_steps", "3"],
         "ptx_coef", "which a stream does not have"),
        (["--ppo.rollout_cap", "1"], "rollout_cap", "must be above 1"),
        (["--ppo.rollout_cap", ".nan"], "rollout_cap", "must be above 1"),
        (["--ppo.stop_token_ids", "[-1]"], "stop_token_ids", "at least 0"),
        (["--ppo.stop_strings", '["", "END"]'], "stop_strings", "would stop every reply at once"),
        (["--ppo.min_new_tokens", "128"], "min_new_tokens", "below ppo.max_new_tokens 128"),
        (["--ppo.estimator", "grpo"], "samples_per_prompt", "1: grpo compares the replies"),
        (["--ppo.estimator", "rloo"], "samples_per_prompt", "1: rloo compares the replies"),
        (["--ppo.estimator", "rloo", *GROUPS, "--ppo.critic_warmup", "1"],
         "critic_warmup", "has no effect with ppo.estimator rloo"),
        (["--ppo.estimator", "coati", "--ppo.kl_in", "loss", "--ppo.kl_kind", "k3"],
         "kl_in", "coati pays the KL in the reward"),
        (["--ppo.rewards", "{}"], "rewards", "weighs no source"),
        (["--ppo.rewards", '{"model": 0}'], "rewards", "weighs no source"),
        (["--ppo.rewards", '{"model": .nan}'], "rewards", "the weight of model is nan"),
        (["--ppo.rewards", '{"modle": 1}'], "rewards", "'modle' is neither"),
        (["--ppo.rewards", '{"model": 1, "a.py:f": 1, "b/a.py:f": 1}'],
         "rewards", "two functions have one name"),
        (["--ppo.rewards", '{"model": 1, "a.py:std": 1}'], "rewards", "another name"),
        (["--ppo.rewards", '{"a.py:f": 1}'], "critic_init", "set it to zero"),
        (["--ppo.eval_prompts", "1"], "eval_prompts", "at least 2, or 0"),
        *(
            (["--ppo.estimator", name, *GROUPS, f"--ppo.{key}", value], key.split(".")[0],
             f"has no effect with ppo.estimator {name}")
            for name in ("grpo", "rloo", "reinforce_pp")
            for key, value in {
                "lam": "0.9", "value_clip": "0.3", "critic_learning_rate": "1e-5",
                "critic_init": "zero", "critic_adam.eps": "1e-6", "critic_warmup": "2",
            }.items()
        ),
        (["--ppo.estimator", "coati", "--ppo.lam", "0.9"], "lam", "has no effect"),
        (["--ppo.reward_timeout", "5"], "reward_timeout", "has no effect"),
        (["--ppo.reward_timeout", "0"], "reward_timeout", "must be above 0"),
        (["--ppo.reward_timeout", ".inf"], "reward_timeout", "finite and above 0"),
        (["--ppo.group_std", "false"], "group_std", "has no effect with ppo.estimator gae"),
        (["--ppo.coati.r_minus_v", "false"], "coati", "has no effect"),
        (["--ppo.estimator", "rloo", *GROUPS, "--ppo.gamma", "0.9"], "gamma", "has no effect"),
        (["--ppo.estimator", "coati", "--ppo.gamma", "0.9"], "gamma", "has no effect"),
        (["--ppo.estimator", "coati", "--ppo.kl_kind", "k2"], "kl_kind", "has no effect"),
        (["--ppo.kl_horizon", "500"], "kl_horizon", "has no effect"),
        (["--ppo.ptx_mix", "convex"], "ptx_mix", "has no effect"),
        (["--ppo.rollout_cap", "5"], "rollout_cap", "has no effect"),
    ],
)  # fmt: skip
def test_each_is_refused(words: list[str], key: str, said: str) -> None:
    """One message, which names the key and what to do."""
    message = mistake(*words)
    given = any(word.startswith(f"--ppo.{key}") for word in words)
    place = f"command line: --ppo.{key}: " if given else f"key ppo.{key} (its default): "
    assert message.startswith(place), message
    assert said in message
    assert message.count(place) == 1


@pytest.mark.parametrize(
    "words",
    [
        ["--ppo.estimator", "grpo", *GROUPS, "--ppo.kl_in", "loss", "--ppo.kl_kind", "k3"],
        ["--ppo.estimator", "grpo", *GROUPS, "--ppo.group_std", "false"],
        ["--ppo.estimator", "rloo", *GROUPS],
        ["--ppo.estimator", "reinforce_pp", "--ppo.gamma", "0.9"],
        ["--ppo.estimator", "coati", "--ppo.coati.r_minus_v", "false", "--ppo.gamma", "0.9"],
        ["--ppo.estimator", "coati", "--ppo.coati.r_minus_v", "false", "--ppo.lam", "0.9"],
        ["--ppo.estimator", "coati", "--ppo.coati.same_prompts", "false"],
        ["--ppo.estimator", "gae", *GROUPS, "--ppo.critic_warmup", "199"],
        ["--ppo.critic_init", "zero", "--ppo.rewards", '{"rules.py:short": 0.5}'],
        ["--ppo.estimator", "reinforce_pp", "--ppo.rewards", '{"rules.py:short": -0.5}'],
        ["--ppo.rewards", '{"model": 1, "a/rules.py:short": 0.5, "a/rules.py:polite": 2}'],
        ["--ppo.rewards", '{"model": 1, "rules.py:short": 0}', "--ppo.reward_timeout", "null"],
        ["--ppo.kl_target", "6", "--ppo.kl_horizon", "128"],
        ["--ppo.kl_coef", "0"],
        ["--ppo.ptx_coef", "27.8"],
        ["--ppo.ptx_coef", "0.9", "--ppo.ptx_mix", "convex"],
        ["--ppo.clip_high", "1.5", "--ppo.dual_clip", "3", "--ppo.early_stop_kl", "0.02"],
        ["--ppo.rollout_correction", "mask", "--ppo.rollout_cap", "5"],
        ["--ppo.min_new_tokens", "127", "--ppo.stop_strings", '["Human:"]'],
        ["--ppo.loss_mean", "sequences", "--ppo.whiten_advantages", "false"],
    ],
)
def test_each_is_accepted(words: list[Any]) -> None:
    """What works together is not refused."""
    assert parse(*words).ppo != PPOSection()


def test_calibration_replies_can_stop() -> None:
    """Else the scale of the scores would come from replies that had no way to end."""
    message = mistake("--ppo.min_new_tokens", "8", "--reward.calibration_tokens", "8")
    assert "reward.calibration_tokens: 8 must be above ppo.min_new_tokens 8" in message


def test_a_source_named_twice(tmp_path: Path) -> None:
    """YAML would keep the last weight and say nothing."""
    file = tmp_path / "twice.yaml"
    file.write_text("ppo:\n  rewards:\n    model: 1\n    model: 0.5\n")
    assert f"{file}:2: key ppo.rewards names model twice" in mistake("--config", str(file))
