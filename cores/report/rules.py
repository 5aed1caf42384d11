"""The doctor's rules, a table: name, evidence where it holds, cause, what to change first.
docs/doctor.md says what the thresholds rest on."""

from collections.abc import Callable, Iterator
from typing import Literal

from cores.report.doctor import MANY, STAGES, Row, Rule, Seen, largest, over

PAIRS = 50
"""Pairs below which an accuracy says too little: its 95% interval is wider than +-0.14."""
LOOKS = 50
"""Places of a run where its loss is compared with the newest."""

Holds = Callable[[Seen], object]
When = Literal["data", "row", "end"]


def splits(data: Row) -> Iterator[tuple[str, Row]]:
    """Every split of every source, by a name for people."""
    for source in data.get("sources", [data]):
        for name in ("train", "test"):
            if isinstance(split := source.get(name), dict):
                yield f"{split.get('path')} ({name})", split


def worst(seen: Seen, share: float, key: str, says: str, least: int = 1) -> str | None:
    """What the split `says` that has the largest share of such rows, if that is more than `share`
    and they are `least`."""

    def count(split: Row) -> int:
        told = split.get(key, 0)
        return sum(told.values()) if isinstance(told, dict) else told

    found = [(count(s) / max(1, s.get("read", 0)), name, s) for name, s in splits(seen.data)]
    part, name, split = max(found, key=lambda one: one[0], default=(0.0, "", {}))
    if part <= share or count(split) < least:
        return None
    reasons = ", ".join(f"{n} {why}" for why, n in split.get("dropped", {}).items())
    return says.format(**{**split, "name": name, "count": count(split), "reasons": reasons})


def diverges(s: Seen) -> object:
    """The loss is half as much again as it was, and not by a little. Of a long run some LOOKS
    places are looked at, as the question is put at each row."""
    rows, now = s.rows, s.last("loss", 2)
    starts = range(0, len(rows) - 1, max(1, len(rows) // LOOKS))
    known = [loss for i in starts if (loss := over(rows[i : i + 2], "loss")) == loss]
    least = min(known, default=now)
    return len(rows) >= 4 and now >= max(1.5 * least, least + 0.3) and (
        f"the loss is back at {now:.3g} after {least:.3g}"
    )  # fmt: skip


def chance(s: Seen) -> object:
    """The interval of the accuracy reaches one half, or it is little above; of ratings, they are
    hardly related."""
    pairs, right = s.figure("pairs"), s.figure("accuracy")
    half = 1.96 * abs(right * (1 - right) / max(1, pairs)) ** 0.5
    if pairs >= PAIRS and (right - half <= 0.5 or right < 0.55):
        return f"held-out accuracy is {right:.3f} +- {half:.3f} on {pairs} pairs"
    related = s.told.get("correlation", 1.0)
    return s.figure("rows") >= PAIRS and (related is None or related < 0.1) and (
        f"scores and held-out ratings have a correlation of {related}"
    )  # fmt: skip


def length(s: Seen) -> object:
    """It prefers the longer reply much oftener than people did, or its pairs hardly tell length
    and worth apart."""
    told = ("accuracy_longer", "prefers_longer", "accuracy")
    people, model, right = map(s.figure, told)
    enough = s.figure("pairs") >= PAIRS
    if enough and model >= max(0.75, people + 0.1):
        return f"it prefers the longer reply in {model:.0%} of the pairs, people in {people:.0%}"
    return enough and people >= 0.8 and (
        f"the longer reply wins {people:.0%} of the held-out pairs, the model {right:.0%}"
    )  # fmt: skip


def kl_runaway(s: Seen) -> object:
    """A policy that gives every prompt one usual reply of the reference is as far from it as the
    reference is uncertain: its entropy, times the tokens. Twice that is out of its language. Or the
    price of KL has eaten more score than was won."""
    kl, tokens = s.last("kl"), s.last("response_length")
    bound = max(2 * s.rows[0].get("entropy", float("nan")), 0.5) * tokens
    if "entropy" in s.rows[0] and kl > bound:
        return (
            f"KL is {kl:.1f} nats a reply of {tokens:.0f} tokens, more than {bound:.1f}: twice "
            "what the reference's own entropy makes of such a reply"
        )
    (before, now), says = s.ends("reward"), "and the reward after its price has fallen from"
    fallen = kl > 5 and now < before - s.spread()
    return fallen and f"KL is {kl:.1f} nats a reply, {says} {before:+.2f} to {now:+.2f}"


def rate_low(s: Seen) -> object:
    """Past the warm-up an update moves a token's probability by about half a per cent. KL is
    estimated without bias and so may be a little below 0."""
    moved, warm = s.last("approx_kl", MANY), s.last("learning_rate_factor", MANY, min) >= 0.5
    timid = warm and moved <= 2e-5 and abs(s.last("kl", MANY)) <= 0.05
    return timid and s.last("kl", MANY, largest) > 1e-3 and not s.rise("score") and (
        f"{MANY} updates moved the policy by {moved:.1e} nats a token each"
    )  # fmt: skip


def rate_high(s: Seen) -> object:
    """0.1 nats a token within one update is some 45% of every probability. A score that is one
    deviation below its start, far from the reference, is a policy that broke."""
    moved, kl, (before, now) = s.last("approx_kl"), s.last("kl"), s.ends("score")
    if moved > 0.1:
        return f"an update moves the policy by {moved:.2f} nats a token (more than 0.1)"
    return kl > 1 and now < before - s.spread() and (
        f"the score has fallen from {before:+.2f} to {now:+.2f}, KL is {kl:.1f}"
    )  # fmt: skip


def drowned(s: Seen) -> object:
    """What is added to the score is five times what it varies by, or has changed by."""
    score, reward, (before, now) = s.last("score"), s.last("reward"), s.ends("score", 3)
    varies = max(s.spread(), abs(now - before))
    return s.last("score_std") > 1e-4 and abs(reward - score) > 5 * varies and (
        f"the score is {score:+.2f} (deviation {s.last('score_std'):.2g}), the reward with the "
        f"price of KL and all penalties {reward:+.2f}"
    )  # fmt: skip


def judge(s: Seen) -> object:
    """Sources of weight 0 are logged and not learned from."""
    gained = s.rise("score")
    for source, weight in (s.ppo.get("rewards") or {}).items():
        name = f"score_{source.rpartition(':')[2]}"
        if weight == 0 and gained and (lost := s.rise(name, sign=-1)):
            return (
                f"score rose by {gained:.2f} while {name}, which is only logged, fell by {lost:.2f}"
            )
    return None


def off_policy(key: str, exact: float, rounded: float, says: str) -> Holds:
    """A KL that is 0 but for rounding; in bf16 that reaches some 1e-4."""

    def holds(s: Seen) -> object:
        found, limit = s.last(key, 1), exact if s.exact else rounded
        gap = s.rows[-1].get("rollout_logprob_gap", 0)
        return found > limit and says.format(s.rows[-1]["step"], found, limit, gap)

    return holds


LOWER = "Lower ppo.actor_learning_rate"
FREER = "Look at ppo/samples.jsonl; raise ppo.kl_coef, or stop earlier (ppo.keep_best)."
HEART = "Lower sft.epochs, give more rows, or use sft.lora."
TRAINED = ("sft", "reward")
TABLE: list[tuple[str, tuple[str, ...], When, Holds, str, str]] = [
    ("data_dropped", STAGES, "data",
     lambda s: worst(s, 0.2, "dropped", "of the {read} rows of {name}, {used} are used; dropped: "
                     "{reasons}"),
     "The format, the template or the length does not fit the file.",
     "Look with --data.inspect 5, and mend the reason that is named most."),
    ("data_truncated", STAGES, "data",
     lambda s: worst(s, 0.1, "truncated", "{count} of {read} rows of {name} are cut"),
     "Rows are longer than the stage reads.",
     "Raise max_length, or leave long rows out: a reply that is cut teaches no end."),
    ("data_leaked", STAGES, "data",
     lambda s: worst(s, 0.02, "trained_on", "{count} of {read} held-out rows of {name} begin with "
                     "a user turn that is trained on"),
     "The held-out file shares prompts with the training file.",
     "Take these rows out of one of them: held-out figures are too good as it is."),
    ("data_repeated", STAGES, "data",
     lambda s: worst(s, 0.9, "repeated", "{count} of {read} rows of {name} begin with a user turn "
                     "that stands before them already", least=100),
     "The file holds few prompts, many times each.",
     "Take the copies out, or give more prompts: what is learned is these by heart."),
    ("rate_high", TRAINED, "row", diverges,
     "The learning rate is too high, or a batch holds rows of another kind.",
     "Lower learning_rate threefold, or raise warmup."),
    ("rate_low", ("sft",), "end",  # by less than a fiftieth
     lambda s: 0.98 * (was := s.figure("test_loss_before")) < (now := s.figure("test_loss")) <= was
     and f"the held-out loss went from {was:.3f} to {now:.3f} nats a token",
     "The learning rate is too low, or the steps too few.",
     "Raise sft.learning_rate threefold, or sft.epochs."),
    ("sft_not_converged", ("sft",), "end",  # between the last two fifths of at least ten rows
     lambda s: (n := len(s.rows) // 5) >= 2
     and 0.05 <= (now := s.last("loss", n)) <= 0.95 * (was := over(s.rows[-2 * n : -n], "loss"))
     and f"the training loss was still falling at the end, from {was:.3f} to {now:.3f}",
     "Training ended before it had learned what it could.",
     "Raise sft.epochs or sft.max_steps, or the rate."),
    ("sft_overfit", ("sft",), "end",
     lambda s: (now := s.figure("test_loss")) > (was := s.figure("test_loss_before"))
     and f"the held-out loss rose from {was:.3f} to {now:.3f} nats a token",
     "The rows are learned by heart.", HEART),
    ("sft_overfit", ("sft",), "end",
     lambda s: len(s.rows) >= 5
     and (now := s.figure("test_loss")) > 1.5 * (own := over(s.rows[-3:], "loss")) + 0.3
     and f"the held-out loss is {now:.3f}, that of training {own:.3f} nats a token",
     "The rows are learned by heart.",
     HEART),
    ("reward_chance", ("reward",), "row",  # from the tenth on
     lambda s: len(s.rows) >= 10 and s.last("accuracy", 5) >= 0 and s.last("loss", 5, min) >= 0.68
     and f"the loss is {s.last('loss', 1):.3f} after {s.rows[-1]['step']} steps; a coin has 0.693",
     "The pairs teach nothing yet: the rate is too low, or the labels are noise.",
     "Raise reward.learning_rate; see some pairs with --data.inspect 5."),
    ("reward_chance", ("reward",), "end", chance,
     "The reward model can hardly be told from a coin; PPO would follow noise.",
     "Give more or cleaner pairs, a larger base, or another reward.learning_rate."),
    ("reward_length", ("reward",), "end", length,
     "The reward model takes length for worth; PPO would write ever longer replies.",
     "Balance the lengths of chosen and rejected replies, or set ppo.length_penalty."),
    ("first_minibatch", ("ppo",), "row",
     off_policy("first_kl", 1e-5, 2e-3, "before the first optimizer step of update {0} the policy "
                "is {1:.2g} nats a token from the one that sampled (more than {2:g})"),
     "Old and new log-probs are not of one policy: a change in the code, dropout, or an engine "
     "whose numbers differ.",
     "Set ppo.old_logprobs recompute; if it stays, compare with --rollout.engine hf."),
    ("rollout_mismatch", ("ppo",), "row",
     off_policy("rollout_kl", 1e-4, 1e-2, "the engine's log-probs are {1:.2g} nats a token (KL) "
                "from the trainer's of the same weights (more than {2:g}), of one token {3:.2g}"),
     "The engine samples another policy than is trained: precision, attention or a stale copy.",
     "Set ppo.rollout_correction truncate, compute in fp32, or --rollout.engine hf."),
    ("kl_runaway", ("ppo",), "row", kl_runaway,
     "The policy leaves the language it was taught: what it wins is likely the reward model's "
     "error.",
     "Raise ppo.kl_coef or set ppo.kl_target, or lower ppo.actor_learning_rate."),
    ("kl_zero", ("ppo",), "row",
     lambda s: s.last("kl", MANY, largest) <= 1e-3 and s.last("approx_kl", MANY) > -1
     and f"after {len(s.rows)} updates KL is still {s.last('kl', 1):.1e} nats a reply",
     "The policy does not move: the rate is too low, all advantages are 0, or nothing trains.",
     "Raise ppo.actor_learning_rate; see that score_std and actor_grad_norm are not 0."),
    ("rate_low", ("ppo",), "row", rate_low,
     "The learning rate is too timid for this model.",
     "Raise ppo.actor_learning_rate threefold: small models take more (docs/defaults.md)."),
    ("rate_high", ("ppo",), "row", rate_high,
     "The learning rate is too high.",
     f"{LOWER} threefold."),
    ("entropy_collapse", ("ppo",), "row",  # two equal words have seven times 0.1
     lambda s: (now := s.last("entropy")) <= max(0.01, min(0.2 * s.ends("entropy", 4)[0], 0.1))
     and f"entropy has fallen to {now:.3g} nats a token, from {s.ends('entropy', 1)[0]:.3f}",
     "All replies become one, or were one: nothing is explored.",
     f"{LOWER}, raise ppo.kl_coef, or set ppo.entropy_coef; see what stage 1 says."),
    ("score_drowned", ("ppo",), "row", drowned,
     "What is learned is a penalty, the price of KL or a clip, and hardly the score.",
     "Lower ppo.kl_coef or ppo.missing_eos_penalty, or scale the sources of ppo.rewards."),
    ("clip_high", ("ppo",), "row",
     lambda s: (x := s.last("clip_fraction")) > 0.15
     and f"the clip removes the gradient of {x:.0%} of the tokens (a tenth is healthy)",
     "Updates go much further than a rollout tells about.",
     f"{LOWER} or ppo.epochs."),
    ("clip_zero", ("ppo",), "row",
     lambda s: s.last("clip_fraction", MANY, max) <= 0 and s.last("optimizer_steps", MANY, min) >= 2
     and s.last("learning_rate_factor", MANY, min) >= 0.5
     and f"in {MANY} updates of {s.last('optimizer_steps', 1):.0f} steps the clip met no token",
     "Updates are too small for the clip to matter.",
     "Raise ppo.actor_learning_rate, if the score rises slowly."),
    ("explained_variance", ("ppo",), "row",  # a new critic is given some updates
     lambda s: ((len(s.rows) >= 6 and s.last("explained_variance", 5, max) < 0)
                or s.last("explained_variance", MANY, largest) < 0.01)
     and f"explained variance is {s.last('explained_variance', 1):+.3f}, and was in the last "
         "updates",
     "The critic foresees no more than a constant: advantages are noise.",
     "Change ppo.critic_learning_rate (often lower), or give it ppo.critic_warmup."),
    ("length_exploit", ("ppo",), "row",  # to be polite takes up to 1.9 times the words
     lambda s: (e := s.ends("response_length"))[1] >= 2 * e[0] and s.rise("score", least=0.3)
     and f"score rose by {s.rise('score'):.2f} while replies grew from {e[0]:.0f} to {e[1]:.0f} "
         "tokens",
     "The reward pays for length.",
     "Set ppo.length_penalty, or balance the lengths of stage 2's pairs."),
    ("repetition_exploit", ("ppo",), "row",  # templates repeat a few
     lambda s: (e := s.ends("repetition", 4))[1] >= e[0] + 0.2
     and f"{e[1]:.0%} of the runs of four tokens were in the same reply before ({e[0]:.0%} at the "
         f"start), score {s.ends('score', 1)[0]:+.2f} -> {s.last('score'):+.2f}",
     "The reward pays for saying the same again, or the policy has broken.",
     FREER),
    ("judge_disagrees", ("ppo",), "row", judge,
     "The policy fools what it is trained on.",
     FREER),
    ("eos_never", ("ppo",), "row",  # an equal min_new_tokens asks for it
     lambda s: s.ppo.get("min_new_tokens", 0) < s.ppo.get("max_new_tokens", 1)
     and s.last("ended") <= 0.05 and f"{s.last('ended'):.0%} of the replies ended by themselves",
     "Replies run into ppo.max_new_tokens: stage 1 taught no end, or the end is another token.",
     "See that stage 1's rows end (--data.inspect 3); raise ppo.max_new_tokens, set "
     "ppo.missing_eos_penalty, ppo.stop_token_ids or ppo.stop_strings."),
    ("eos_at_once", ("ppo",), "row",
     lambda s: s.ppo.get("max_new_tokens", 128) >= 8 and (n := s.last("response_length")) <= 2
     and f"replies have {n:.1f} tokens, their end included",
     "Saying nothing scores best.",
     "Set ppo.min_new_tokens; see what the reward says of an empty reply."),
    ("equal_rewards", ("ppo",), "row",
     lambda s: s.last("score_std", 2, max) <= 1e-4
     and f"all replies of a rollout score {s.last('score', 1):.4g}",
     "The reward does not tell replies apart, so there is nothing to learn.",
     "Try the function of ppo.rewards by hand on two replies; see stage 2's accuracy."),
    ("gpu_waits", ("ppo",), "row",  # Python still launched when the GPU had done nearly all
     lambda s: s.last("device_wait", 5, max) <= 0.05
     and f"Python waited for the GPU for {s.last('device_wait', 1):.0%} of a step: it waits for "
         "Python",
     "The passes are too small for this GPU.",
     "Raise ppo.microbatch_size, or set ppo.passes captured."),
]  # fmt: skip
RULES = [Rule(*columns) for columns in TABLE]
