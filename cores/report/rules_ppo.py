"""The doctor's rules of stage 3. FEW rows are a mean that noise does not make, MANY are patience: a
sickness is told within ten updates. docs/doctor.md says what the thresholds rest on."""

from itertools import pairwise
from statistics import fmean, stdev

from cores.report.doctor import Rule
from cores.report.record import Row

Rows = list[Row]
FEW, MANY = 3, 8


def mean(rows: Rows, key: str) -> float | None:
    """Of rows that all have the key; None otherwise, and of no rows."""
    values = [row[key] for row in rows if key in row]
    return fmean(values) if values and len(values) == len(rows) else None


def both(rows: Rows, key: str, least: int = 2 * FEW) -> tuple[float, float] | None:
    """Means of the first and of the last FEW rows, once there are `least`."""
    first, last = mean(rows[:FEW], key), mean(rows[-FEW:], key)
    return None if len(rows) < least or first is None or last is None else (first, last)


def recent(rows: Rows, key: str, count: int) -> list[float]:
    """The last `count` values; none where not all of the last `count` rows have one."""
    values = [row[key] for row in rows[-count:] if key in row]
    return values if len(values) == count else []


def rises(rows: Rows, key: str, sign: int = 1, least: float = 0.0) -> float | None:
    """How far the mean of the last FEW rows is above that of the first (below it: sign -1), if
    it is so by `least` and by five standard errors: at every update the question is put anew."""
    ends = both(rows, key, MANY)
    if ends is None:
        return None
    values = [row[key] for row in rows[-20:] if key in row]
    steps = [b - a for a, b in pairwise(values)]
    error = stdev(steps) / 2**0.5 * (2 / FEW) ** 0.5  # of rows around a trend
    change = sign * (ends[1] - ends[0])
    return change if change > max(5 * error, least) else None


def _exact(facts: Row) -> bool:
    """Whether rounding is that of fp32."""
    return facts["config"].get("model", {}).get("precision") == "fp32"


def first_minibatch(rows: Rows, facts: Row) -> str | None:
    """0 but for rounding: nothing has moved yet. Rounding in bf16 reaches some 1e-4."""
    found, limit = rows[-1].get("first_kl"), 1e-5 if _exact(facts) else 2e-3
    if found is None or found <= limit:
        return None
    return (
        f"before the first optimizer step of update {rows[-1]['step']} the policy is {found:.2g} "
        f"nats a token from the one that sampled (more than {limit:g})"
    )


def mismatch(rows: Rows, facts: Row) -> str | None:
    """Of the same weights, by the engine and by the trainer."""
    found, limit = rows[-1].get("rollout_kl"), 1e-4 if _exact(facts) else 1e-2
    if found is None or found <= limit:
        return None
    return (
        f"the engine's log-probs are {found:.2g} nats a token (KL) from the trainer's of the same "
        f"weights (more than {limit:g}), of one token {rows[-1].get('rollout_logprob_gap', 0):.2g}"
    )


def kl_runaway(rows: Rows, facts: Row) -> str | None:
    """A policy that gives every prompt one usual reply of the reference is as far from it as the
    reference is uncertain: its entropy, times the tokens. Twice that is out of its language. Or the
    price of KL has eaten more score than was won."""
    kl, length = mean(rows[-FEW:], "kl"), mean(rows[-FEW:], "response_length")
    if kl is None or length is None or len(rows) < FEW:
        return None
    entropy = rows[0].get("entropy")
    if entropy is not None and kl > (bound := max(2 * entropy, 0.5) * length):
        return (
            f"KL is {kl:.1f} nats a reply of {length:.0f} tokens, more than {bound:.1f}: twice "
            "what the reference's own entropy makes of such a reply"
        )
    reward = both(rows, "reward")
    if reward is not None and kl > 5 and reward[1] < reward[0] - 1:
        return (
            f"KL is {kl:.1f} nats a reply, and the reward after its price has fallen from "
            f"{reward[0]:+.2f} to {reward[1]:+.2f}"
        )
    return None


def kl_zero(rows: Rows, facts: Row) -> str | None:
    """Updates of the critic alone do not count."""
    moved, kl = recent(rows, "approx_kl", MANY), recent(rows, "kl", MANY)
    if not moved or not kl or max(abs(x) for x in kl) > 1e-3:
        return None
    return f"after {len(rows)} updates KL is still {kl[-1]:.1e} nats a reply"


def rate_low(rows: Rows, facts: Row) -> str | None:
    """Past the warm-up an update moves a token's probability by about half a per cent. KL is
    estimated without bias and so may be a little below 0."""
    moved, factor = recent(rows, "approx_kl", MANY), recent(rows, "learning_rate_factor", MANY)
    kl = recent(rows, "kl", MANY)
    if not moved or not kl or not factor or min(factor) < 0.5 or kl_zero(rows, facts):
        return None
    if fmean(moved) > 2e-5 or abs(fmean(kl)) > 0.05 or rises(rows, "score") is not None:
        return None
    return f"{MANY} updates moved the policy by {fmean(moved):.1e} nats a token each"


def rate_high(rows: Rows, facts: Row) -> str | None:
    """0.1 nats a token within one update is some 45% of every probability. A score that is one
    deviation below its start, far from the reference, is a policy that broke."""
    moved, kl, score = mean(rows[-FEW:], "approx_kl"), mean(rows[-FEW:], "kl"), both(rows, "score")
    if moved is not None and len(rows) >= FEW and moved > 0.1:
        return f"an update moves the policy by {moved:.2f} nats a token (more than 0.1)"
    if score is not None and kl is not None and kl > 1 and score[1] < score[0] - 1:
        return f"the score has fallen from {score[0]:+.2f} to {score[1]:+.2f}, KL is {kl:.1f}"
    return None


def entropy_collapse(rows: Rows, facts: Row) -> str | None:
    """A fifth of the start, and of what a choice between two equal words has the seventh part."""
    ends = both(rows, "entropy", FEW + 1)
    if ends is None or ends[1] > 0.2 * ends[0] or ends[1] > 0.1:
        return None
    return f"entropy has fallen from {ends[0]:.3f} to {ends[1]:.3f} nats a token"


def clip_high(rows: Rows, facts: Row) -> str | None:
    """Healthy is below a tenth."""
    found = mean(rows[-FEW:], "clip_fraction")
    if found is None or len(rows) < FEW or found <= 0.15:
        return None
    return f"the clip removes the gradient of {found:.0%} of the tokens (a tenth is healthy)"


def clip_zero(rows: Rows, facts: Row) -> str | None:
    """An update of one optimizer step has nothing to clip."""
    found, steps = recent(rows, "clip_fraction", MANY), recent(rows, "optimizer_steps", MANY)
    factor = recent(rows, "learning_rate_factor", MANY)
    if not found or max(found) > 0 or min(steps) < 2 or min(factor or [0]) < 0.5:
        return None
    return f"in {MANY} updates of {steps[-1]:.0f} steps the clip met no token"


def critic(rows: Rows, facts: Row) -> str | None:
    """Worse than the mean of the returns; a new critic is given some updates."""
    found = recent(rows, "explained_variance", 5)
    if len(rows) < 2 * FEW or not found or max(found) >= 0:
        return None
    return f"explained variance was below 0 in the last 5 updates, {found[-1]:+.2f} in this one"


def longer(rows: Rows, facts: Row) -> str | None:
    """Twice as long, with the score: to be polite takes more words too, by up to 1.9 times."""
    ends, score = both(rows, "response_length"), rises(rows, "score", least=0.3)
    if ends is None or score is None or ends[1] < 2 * ends[0]:
        return None
    return (
        f"score rose by {score:.2f} while replies grew from {ends[0]:.0f} to {ends[1]:.0f} tokens"
    )


def repeats(rows: Rows, facts: Row) -> str | None:
    """A fifth of all runs of four words more than at the start; templates repeat a few."""
    ends, score = both(rows, "repetition", FEW + 1), both(rows, "score", FEW + 1)
    if ends is None or score is None or ends[1] < ends[0] + 0.2:
        return None
    return (
        f"{ends[1]:.0%} of the runs of four tokens were in the same reply before ({ends[0]:.0%} "
        f"at the start), score {score[0]:+.2f} -> {score[1]:+.2f}"
    )


def judge(rows: Rows, facts: Row) -> str | None:
    """Sources of weight 0 are logged and not learned from."""
    gained = rises(rows, "score")
    for source, weight in (facts["config"].get("ppo", {}).get("rewards") or {}).items():
        name = f"score_{source.rpartition(':')[2]}"
        if weight == 0 and gained and (lost := rises(rows, name, sign=-1)):
            return (
                f"score rose by {gained:.2f} while {name}, which is only logged, fell by {lost:.2f}"
            )
    return None


def never_ends(rows: Rows, facts: Row) -> str | None:
    """Replies of a fixed length are asked for by an equal min_new_tokens."""
    found, ppo = mean(rows[-FEW:], "ended"), facts["config"].get("ppo", {})
    fixed = ppo.get("min_new_tokens", 0) >= ppo.get("max_new_tokens", 1)
    if fixed or found is None or len(rows) < FEW or found > 0.05:
        return None
    return f"{found:.0%} of the replies ended by themselves"


def ends_at_once(rows: Rows, facts: Row) -> str | None:
    """The stop token and at most one before it, where there is room for many."""
    found = mean(rows[-FEW:], "response_length")
    room = facts["config"].get("ppo", {}).get("max_new_tokens", 128)
    if found is None or len(rows) < FEW or found > 2 or room < 8:
        return None
    return f"replies have {found:.1f} tokens, their end included"


def equal_scores(rows: Rows, facts: Row) -> str | None:
    """In standard deviations of the stage-1 model's scores."""
    found = recent(rows, "score_std", 2)
    if not found or max(found) > 1e-4:
        return None
    return f"all replies of a rollout score {rows[-1].get('score', 0):.4g}"


def gpu_waits(rows: Rows, facts: Row) -> str | None:
    """Python was still launching when the GPU had done nearly all of a step."""
    found = recent(rows, "device_wait", 5)
    if not found or max(found) > 0.05:
        return None
    return f"Python waited for the GPU for {found[-1]:.0%} of a step: the GPU waits for Python"


LOWER = "Lower ppo.actor_learning_rate"
FREER = "Look at ppo/samples.jsonl; raise ppo.kl_coef, or stop earlier (ppo.keep_best)."
OF_PPO = [
    Rule(name, ("ppo",), "row", holds, cause, change)
    for name, holds, cause, change in (
        ("first_minibatch", first_minibatch,
         "Old and new log-probs are not of one policy: a change in the code, dropout, or an engine "
         "whose numbers differ.",
         "Set ppo.old_logprobs recompute; if it stays, compare with --rollout.engine hf."),
        ("rollout_mismatch", mismatch,
         "The engine samples another policy than is trained: precision, attention or a stale copy.",
         "Set ppo.rollout_correction truncate, compute in fp32, or --rollout.engine hf."),
        ("kl_runaway", kl_runaway,
         "The policy leaves the language it was taught: what it wins is likely the reward model's "
         "error.",
         "Raise ppo.kl_coef or set ppo.kl_target, or lower ppo.actor_learning_rate."),
        ("kl_zero", kl_zero,
         "The policy does not move: the rate is too low, all advantages are 0, or nothing trains.",
         "Raise ppo.actor_learning_rate; see that score_std and actor_grad_norm are not 0."),
        ("rate_low", rate_low,
         "The learning rate is too timid for this model.",
         "Raise ppo.actor_learning_rate threefold: small models take more (docs/defaults.md)."),
        ("rate_high", rate_high,
         "The learning rate is too high.",
         f"{LOWER} threefold."),
        ("entropy_collapse", entropy_collapse,
         "All replies become one: nothing is explored any more.",
         f"{LOWER}, raise ppo.kl_coef, or set ppo.entropy_coef."),
        ("clip_high", clip_high,
         "Updates go much further than a rollout tells about.",
         f"{LOWER} or ppo.epochs."),
        ("clip_zero", clip_zero,
         "Updates are too small for the clip to matter.",
         "Raise ppo.actor_learning_rate, if the score rises slowly."),
        ("explained_variance", critic,
         "The critic foresees less than a constant: advantages are noise.",
         "Change ppo.critic_learning_rate (often lower), or give it ppo.critic_warmup."),
        ("length_exploit", longer,
         "The reward pays for length.",
         "Set ppo.length_penalty, or balance the lengths of stage 2's pairs."),
        ("repetition_exploit", repeats,
         "The reward pays for saying the same again, or the policy has broken.",
         FREER),
        ("judge_disagrees", judge,
         "The policy fools what it is trained on.",
         FREER),
        ("eos_never", never_ends,
         "Replies run into ppo.max_new_tokens: stage 1 taught no end, or the end is another token.",
         "See that stage 1's rows end (--data.inspect 3); raise ppo.max_new_tokens, set "
         "ppo.missing_eos_penalty, ppo.stop_token_ids or ppo.stop_strings."),
        ("eos_at_once", ends_at_once,
         "Saying nothing scores best.",
         "Set ppo.min_new_tokens; see what the reward says of an empty reply."),
        ("equal_rewards", equal_scores,
         "The reward does not tell replies apart, so there is nothing to learn.",
         "Try the function of ppo.rewards by hand on two replies; see stage 2's accuracy."),
        ("gpu_waits", gpu_waits,
         "The passes are too small for this GPU.",
         "Raise ppo.microbatch_size, or set ppo.passes captured."),
    )
]  # fmt: skip
