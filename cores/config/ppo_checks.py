"""Options of stage 3 that cannot work, alone or together."""

from collections.abc import Iterator

from cores.config.estimators import ESTIMATORS, OPTIONS
from cores.config.limits import LARGEST
from cores.config.ppo import PPOSection

Problem = tuple[str, str]


def ppo_problems(ppo: PPOSection) -> Iterator[Problem]:
    """Yield (key, what is wrong and what to do)."""
    yield from _batches(ppo)
    yield from _optimization(ppo)
    yield from _policy_loss(ppo)
    yield from _sampling(ppo)
    yield from _estimator(ppo)
    yield from _rewards(ppo)
    yield from _unused(ppo)


def _batches(ppo: PPOSection) -> Iterator[Problem]:
    if ppo.batch_size % ppo.minibatch_size:
        yield (
            "ppo.minibatch_size",
            f"{ppo.minibatch_size} does not divide ppo.batch_size {ppo.batch_size}; choose a "
            "divisor, so that every optimizer step sees as many replies.",
        )
    if ppo.samples_per_prompt > 0 and ppo.batch_size % ppo.samples_per_prompt:
        yield (
            "ppo.samples_per_prompt",
            f"{ppo.samples_per_prompt} does not divide ppo.batch_size {ppo.batch_size}; choose a "
            "divisor, so that every prompt has as many replies.",
        )

    longest = ppo.max_prompt_length + ppo.max_new_tokens
    tokens = ppo.microbatch_tokens
    if tokens is not None and tokens < longest:
        yield (
            "ppo.microbatch_tokens",
            f"{tokens} is less than one row may have: ppo.max_prompt_length + ppo.max_new_tokens "
            f"is {longest}; choose at least that.",
        )


def _optimization(ppo: PPOSection) -> Iterator[Problem]:
    if ppo.lora.dropout:
        yield "ppo.lora.dropout", f"{ppo.lora.dropout} must be 0: old and new log-probs must agree."
    if ppo.critic_warmup >= ppo.updates:
        yield (
            "ppo.critic_warmup",
            f"{ppo.critic_warmup} of {ppo.updates} ppo.updates leave none that trains the actor; "
            "choose fewer.",
        )


def _policy_loss(ppo: PPOSection) -> Iterator[Problem]:
    if ppo.kl_in == "loss" and ppo.kl_kind == "k1":
        yield (
            "ppo.kl_kind",
            "k1 as a loss has a gradient of mean 0, whatever the policy; choose k2 or k3, or "
            "ppo.kl_in reward.",
        )
    if ppo.kl_target is not None and not ppo.kl_coef:
        yield "ppo.kl_target", "steers ppo.kl_coef by factors, and 0 stays 0; start it above 0."
    if ppo.kl_target is not None and ppo.kl_horizon < ppo.batch_size:
        yield (
            "ppo.kl_horizon",
            f"{ppo.kl_horizon:g} is below ppo.batch_size {ppo.batch_size}: kl_coef would move by "
            "more than a fifth an update, or even below 0; choose at least the batch.",
        )
    if ppo.ptx_mix == "convex" and ppo.ptx_coef > 1:
        yield "ppo.ptx_coef", f"{ppo.ptx_coef} must be at most 1 with ppo.ptx_mix convex."


def _sampling(ppo: PPOSection) -> Iterator[Problem]:
    if ppo.eval_prompts == 1:
        yield (
            "ppo.eval_prompts",
            "1 has no deviation to measure by; give at least 2, or 0 for none.",
        )
    if not all(ppo.stop_strings):
        yield "ppo.stop_strings", "an empty text would stop every reply at once; remove it."
    if ppo.min_new_tokens >= ppo.max_new_tokens:
        yield (
            "ppo.min_new_tokens",
            f"{ppo.min_new_tokens} must be below ppo.max_new_tokens {ppo.max_new_tokens}, so that "
            "a reply can stop.",
        )


def _estimator(ppo: PPOSection) -> Iterator[Problem]:
    name = ppo.estimator
    if ESTIMATORS[name].grouped and ppo.samples_per_prompt < 2:
        yield (
            "ppo.samples_per_prompt",
            f"{ppo.samples_per_prompt}: {name} compares the replies to one prompt and needs at "
            "least 2.",
        )
    if name == "coati" and ppo.kl_in == "loss":
        yield "ppo.kl_in", "coati pays the KL in the reward; set it to reward."


def _rewards(ppo: PPOSection) -> Iterator[Problem]:
    if not any(ppo.rewards.values()):
        yield "ppo.rewards", "weighs no source; give `model: 1.0`, or a file.py:function."
    for source, weight in ppo.rewards.items():
        if not abs(weight) <= LARGEST:
            yield (
                "ppo.rewards",
                f"the weight of {source} is {weight}; give a number, 0 to log it alone.",
            )
        file, _, function = source.rpartition(":")
        if source != "model" and not (file.endswith(".py") and function.isidentifier()):
            yield (
                "ppo.rewards",
                f"{source!r} is neither `model` nor file.py:function.",
            )
    names = [source.rpartition(":")[2] for source in ppo.rewards]
    if len(set(names)) < len(names):
        yield "ppo.rewards", "two functions have one name, and each is logged by it; rename one."
    if "std" in names:
        yield "ppo.rewards", "score_std is the scores' deviation; give the function another name."
    critic = ESTIMATORS[ppo.estimator].critic
    if "model" not in ppo.rewards and critic and ppo.critic_init != "zero":
        yield (
            "ppo.critic_init",
            "the critic cannot start from a reward model that ppo.rewards does not name; set it to "
            "zero, name the model with weight 0, or choose an estimator without a critic.",
        )


def _unused(ppo: PPOSection) -> Iterator[Problem]:
    """Options that were set and would do nothing."""
    name, default = ppo.estimator, PPOSection()
    gae = {"gamma", "lam"} if name == "coati" and not ppo.coati.r_minus_v else set()
    reads = ESTIMATORS[name].reads | gae
    used = {
        **{key: key in reads for key in OPTIONS},
        "kl_horizon": ppo.kl_target is not None,
        "ptx_mix": ppo.ptx_coef > 0,
        "reward_timeout": any(source != "model" for source in ppo.rewards),
        "rollout_cap": ppo.rollout_correction != "none",
        "keep_best": ppo.eval_every > 0 and ppo.eval_prompts > 0,
        "eval_every": ppo.eval_prompts > 0,
    }
    for key, has_effect in used.items():
        if not has_effect and getattr(ppo, key) != getattr(default, key):
            yield (
                f"ppo.{key}",
                f"has no effect with ppo.estimator {name} and the other options as they are; "
                f"remove it, set it back to {getattr(default, key)}, or set what it belongs to.",
            )
