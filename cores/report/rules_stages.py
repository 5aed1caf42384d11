"""The doctor's rules of the data and of stages 1 and 2, whose rows are means over many steps."""

from collections.abc import Iterator
from typing import Any

from cores.report.doctor import Rule
from cores.report.record import STAGES, Row
from cores.report.rules_ppo import OF_PPO, Rows, mean

PAIRS = 50
"""Pairs below which an accuracy says too little: its 95% interval is wider than +-0.14."""

LOOKS = 50
"""Places of a run where its loss is compared with the newest."""


def splits(data: Row) -> Iterator[tuple[str, Row]]:
    """Every split of every source, by a name for people."""
    for source in data.get("sources", [data]):
        for name in ("train", "test"):
            if isinstance(split := source.get(name), dict):
                yield f"{split.get('path')} ({name})", split


def worst(facts: Row, share: float, count: Any) -> tuple[str, Row] | None:
    """The split with the largest share of such rows, if it is more than `share`."""
    found = [
        (count(split) / max(1, split.get("read", 0)), name, split)
        for name, split in splits(facts["data"])
    ]
    part, name, split = max(found, key=lambda one: one[0], default=(0.0, "", {}))
    return (name, split) if part > share else None


def dropped(rows: Rows, facts: Row) -> str | None:
    """A fifth: what is left is another data set."""
    found = worst(facts, 0.2, lambda split: sum(split.get("dropped", {}).values()))
    if found is None:
        return None
    name, split = found
    reasons = ", ".join(f"{n} {why}" for why, n in split["dropped"].items())
    return f"of the {split['read']} rows of {name}, {split['used']} are used; dropped: {reasons}"


def truncated(rows: Rows, facts: Row) -> str | None:
    """A tenth: replies that are cut teach no end."""
    found = worst(facts, 0.1, lambda split: split.get("truncated", 0))
    return found and f"{found[1]['truncated']} of {found[1]['read']} rows of {found[0]} are cut"


def leaked(rows: Rows, facts: Row) -> str | None:
    """One in fifty."""
    found = worst(facts, 0.02, lambda split: split.get("trained_on", 0))
    return found and (
        f"{found[1]['trained_on']} of {found[1]['read']} held-out rows of {found[0]} begin with a "
        "user turn that is trained on"
    )


def diverges(rows: Rows, facts: Row) -> str | None:
    """The loss is half as much again as it was, and not by a little. Of a long run some LOOKS
    places are looked at, as the question is put at each row."""
    if len(rows) < 4:
        return None
    starts = range(0, len(rows) - 1, max(1, len(rows) // LOOKS))
    pairs = (mean(rows[i : i + 2], "loss") for i in starts)
    now, known = mean(rows[-2:], "loss"), [pair for pair in pairs if pair is not None]
    if now is None or not known or now < max(1.5 * min(known), min(known) + 0.3):
        return None
    return f"the loss is back at {now:.3g} after {min(known):.3g}"


def timid(rows: Rows, facts: Row) -> str | None:
    """The held-out loss, or over half a run that of training, moved by less than a fiftieth."""
    before, after = (facts["metrics"].get(name) for name in ("test_loss_before", "test_loss"))
    if before and after and 0.98 * before < after <= before:
        return f"the held-out loss went from {before:.3f} to {after:.3f} nats a token"
    return None


def unfinished(rows: Rows, facts: Row) -> str | None:
    """One twentieth between the last two fifths of at least ten rows."""
    fifth = len(rows) // 5
    if fifth < 2:
        return None
    before, now = mean(rows[-2 * fifth : -fifth], "loss"), mean(rows[-fifth:], "loss")
    if before is None or now is None or now > 0.95 * before or now < 0.05:
        return None
    return f"the training loss was still falling at the end, from {before:.3f} to {now:.3f}"


def overfit(rows: Rows, facts: Row) -> str | None:
    """The held-out loss is above its start, or half as much again as that of training."""
    before, after = (facts["metrics"].get(name) for name in ("test_loss_before", "test_loss"))
    trained = mean(rows[-3:], "loss")
    if after is None or trained is None:
        return None
    if before is not None and after > before:
        return f"the held-out loss rose from {before:.3f} to {after:.3f} nats a token"
    if len(rows) >= 5 and after > 1.5 * trained + 0.3:
        return f"the held-out loss is {after:.3f}, that of training {trained:.3f} nats a token"
    return None


def chance_so_far(rows: Rows, facts: Row) -> str | None:
    """Half of the run, or ten rows, at a loss that a coin has: 0.693."""
    losses = [row["loss"] for row in rows[-5:] if "accuracy" in row]
    if len(rows) < 10 or len(losses) < 5 or min(losses) < 0.68:
        return None
    return f"the loss is {losses[-1]:.3f} after {rows[-1]['step']} steps; a coin has 0.693"


def chance(rows: Rows, facts: Row) -> str | None:
    """The interval of the accuracy reaches one half; of ratings, they are hardly related."""
    told = facts["metrics"]
    pairs, accuracy = told.get("pairs", 0), told.get("accuracy")
    if accuracy is not None and pairs >= PAIRS:
        half = 1.96 * (accuracy * (1 - accuracy) / pairs) ** 0.5
        if accuracy - half <= 0.5:
            return f"held-out accuracy is {accuracy:.3f} +- {half:.3f} on {pairs} pairs"
    related = told.get("correlation", 1.0)
    if told.get("rows", 0) >= PAIRS and (related is None or related < 0.1):
        return f"scores and held-out ratings have a correlation of {related}"
    return None


def length(rows: Rows, facts: Row) -> str | None:
    """It prefers the longer reply much oftener than people did, or its pairs hardly tell length
    and worth apart."""
    told = facts["metrics"]
    right, people, model = (
        told.get(name) for name in ("accuracy", "accuracy_longer", "prefers_longer")
    )
    if right is None or people is None or told.get("pairs", 0) < PAIRS:
        return None
    if model is not None and model >= max(0.75, people + 0.1):
        return f"it prefers the longer reply in {model:.0%} of the pairs, people in {people:.0%}"
    if people >= 0.8:
        return f"the longer reply wins {people:.0%} of the held-out pairs, the model {right:.0%}"
    return None


TRAINED = ("sft", "reward")
LONGER = "max_length, or leave long rows out"
RULES = [
    Rule("data_dropped", STAGES, "data", dropped,
         "The format, the template or the length does not fit the file.",
         "Look with --data.inspect 5, and mend the reason that is named most."),
    Rule("data_truncated", STAGES, "data", truncated,
         "Rows are longer than the stage reads.",
         f"Raise {LONGER}: a reply that is cut teaches no end."),
    Rule("data_leaked", STAGES, "data", leaked,
         "The held-out file shares prompts with the training file.",
         "Take these rows out of one of them: held-out figures are too good as it is."),
    Rule("rate_high", TRAINED, "row", diverges,
         "The learning rate is too high, or a batch holds rows of another kind.",
         "Lower learning_rate threefold, or raise warmup."),
    Rule("rate_low", ("sft",), "end", timid,
         "The learning rate is too low, or the steps too few.",
         "Raise sft.learning_rate threefold, or sft.epochs."),
    Rule("sft_not_converged", ("sft",), "end", unfinished,
         "Training ended before it had learned what it could.",
         "Raise sft.epochs or sft.max_steps, or the rate."),
    Rule("sft_overfit", ("sft",), "end", overfit,
         "The rows are learned by heart.",
         "Lower sft.epochs, give more rows, or use sft.lora."),
    Rule("reward_chance", ("reward",), "row", chance_so_far,
         "The pairs teach nothing yet: the rate is too low, or the labels are noise.",
         "Raise reward.learning_rate; see some pairs with --data.inspect 5."),
    Rule("reward_chance", ("reward",), "end", chance,
         "The reward model cannot be told from a coin; PPO would follow noise.",
         "Give more or cleaner pairs, a larger base, or another reward.learning_rate."),
    Rule("reward_length", ("reward",), "end", length,
         "The reward model takes length for worth; PPO would write ever longer replies.",
         "Balance the lengths of chosen and rejected replies, or set ppo.length_penalty."),
    *OF_PPO,
]  # fmt: skip
