"""An evaluation as a table for the terminal."""

from collections.abc import Iterator
from typing import Any

FIGURES = {
    "score": "score",
    "judge": "score by the second judge",
    "kl": "KL from SFT, nats a reply",
    "kl_token": "KL from SFT, nats a token",
    "length": "tokens a reply",
    "ended": "replies that end by themselves",
    "repetition": "replies that say 4 words twice",
    "refused": "replies that the gate refuses",
    "distinct_1": "different words of all",
    "distinct_2": "different word pairs of all",
}
WIDTH, COLUMN = 34, 26


def table(found: dict[str, Any]) -> str:
    """The whole of it."""
    parts = [
        _reward(found),
        _benchmark(found),
        _policies(found),
        _comparisons(found),
        _curves(found),
    ]
    left = [f"left out: {name}: {why}" for name, why in found.get("left_out", {}).items()]
    return "\n\n".join("\n".join(part) for part in [*map(list, parts), left] if part)


def interval(figure: dict[str, float | None] | None, form: str = ".3f") -> str:
    """`0.895 [0.88, 0.91]`, or what of it is there."""
    if figure is None:
        return "-"
    low, high = (figure[name] for name in ("low", "high"))
    mean = f"{figure['mean']:{form}}"
    return mean if low is None or high is None else f"{mean} [{low:{form}}, {high:{form}}]"


def _line(name: str, *cells: str) -> str:
    return f"{name:{WIDTH}}" + "".join(f" {cell:>{COLUMN}}" for cell in cells)


def _reward(found: dict[str, Any]) -> Iterator[str]:
    reward = found.get("reward_model", {})
    if "mse" in reward:
        related = reward["correlation"]
        yield f"Reward model on {reward['rows']} held-out ratings"
        yield _line("mean squared error", f"{reward['mse']:.4f}")
        yield _line("  of their mean alone", f"{reward['variance']:.4f}")
        yield _line("correlation", "-" if related is None else f"{related:.3f}")
    if "pairs" not in reward:
        return
    yield f"Reward model: accuracy on {reward['pairs']} pairs of {reward['prompts']} prompts"
    yield _line("reward model", interval(reward["accuracy"]))
    for name, label in (
        ("longer", "the longer reply wins (characters)"),
        ("tfidf", "words alone (TF-IDF)"),
    ):
        if name in reward:
            yield _line(label, interval(reward[name]))
    for key in ("by_source", "by_difference", "by_length"):
        for group in reward[key] if len(reward[key]) > 1 else ():
            yield _line(
                f"  {group['name']} ({group['pairs']})"[:WIDTH], interval(group["accuracy"])
            )
    error = reward["calibration"]["expected_error"]
    yield _line("expected calibration error", f"{error:.3f}")


def _benchmark(found: dict[str, Any]) -> Iterator[str]:
    benchmark = found.get("benchmark")
    if benchmark is None:
        return
    yield f"RewardBench 2: {benchmark['rows']} prompts of {benchmark['file']}"
    if benchmark["cut"]:
        yield (
            f"{benchmark['cut']} replies are longer than reward.max_length: they are cut and "
            "scored without their end token, as rows of stage 2 are"
        )
    for name, figure in benchmark["subsets"].items():
        yield _line(f"{name} ({figure['rows']})", interval(figure))
    yield _line("mean of the subsets", f"{benchmark['mean']:.3f}")


def _policies(found: dict[str, Any]) -> Iterator[str]:
    policies, language = found.get("policies", {}), found.get("language", {})
    names = [name for name in ("base", "sft", "ppo") if name in policies or name in language]
    if not names:
        return
    yield _line("", *names)
    if language:
        cells = (interval(language.get(n, {}).get("perplexity"), ".2f") for n in names)
        yield _line(f"perplexity of {language['rows']} rows", *cells)
    told = {key for name in policies for key in policies[name]} - {"rows"}
    labels = FIGURES | {k: k.replace("_", " ", 1) for k in sorted(told - FIGURES.keys())}
    for key, label in labels.items():
        if key in told:
            form = ".1f" if key == "length" else ".2f"
            yield _line(label, *(interval(policies.get(n, {}).get(key), form) for n in names))


def _comparisons(found: dict[str, Any]) -> Iterator[str]:
    if not found.get("comparisons"):
        return
    yield _line("", "win rate", "at equal length", "reply is longer")
    for row in found["comparisons"]:
        name = f"{row['of']} over {row['over']}, by {row['by']}"
        cells = (interval(row[key], ".2f") for key in ("win_rate", "length_controlled", "longer"))
        yield _line(name, *cells)


def _curves(found: dict[str, Any]) -> Iterator[str]:
    points = [(p["name"], interval(p["kl"], ".2f"), p["score"]) for p in found.get("frontier", ())]
    points += [
        (f"best of {p['n']}", f"{p['kl']:.2f}", p["score"]) for p in found.get("best_of_n", ())
    ]
    if not points:
        return
    yield _line("", "KL", "score")
    for name, kl, score in points:
        yield _line(name, kl, interval(score, ".2f"))
