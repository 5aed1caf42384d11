"""How good a run's reward model is: on held-out pairs or ratings, and on RewardBench 2's rows."""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.config import Config
from cores.config.data import OneSource, SourceSection
from cores.data import preference_data
from cores.data.encode import encode_rows
from cores.data.files import READERS, kind_of
from cores.data.template import Template, control_tokens, leading_ids
from cores.draws import permutation
from cores.errors import UserError, readable
from cores.models import ScalarModel, load_tokenizer, settle_pad_token
from cores.models.images import reads_images
from cores.models.loading import load_config
from cores.training.calibration import score_rows
from cores.training.reward import figures
from scripts.evaluation.baselines import length_margins, replies, tfidf_margins
from scripts.evaluation.benchmark import Item, is_benchmark, result
from scripts.evaluation.preferences import by_difference, by_length, calibration, grouped
from scripts.evaluation.runs import Judged, Row, reward_model
from scripts.evaluation.stats import average, share, wins

TRAIN_PAIRS = 20_000
"""That TF-IDF learns from at most, drawn at random; more take minutes and give it little."""
SIDES = ("chosen_ids", "rejected_ids")


@dataclass(frozen=True)
class Reader:
    """A reward model with the tokenizer and the template that its rows are written in."""

    model: ScalarModel
    tokenizer: PreTrainedTokenizerBase
    config: Config
    """With that template."""
    judged: Judged
    deviation: float
    """Of the scores that its loss was in, in units of its scores."""

    def scores(self, ids: list[list[int]], prompts: list[int]) -> list[float]:
        """Of rows of tokens, whose first so many are the prompt's."""
        size = 4 * self.config.reward.microbatch_size  # nothing is kept for a backward pass
        about = [{"prompt_length": length} for length in prompts]
        return score_rows(self.model, ids, size, self.judged.launch, about)


def reader_of(judged: Judged) -> Reader:
    """The run's reward model as it reads texts."""
    parent, config = judged.stages["reward"], judged.config
    if not parent.elsewhere:
        tokenizer = load_tokenizer(parent.folder)
        deviation = parent.record["metrics"]["calibration"]["raw_std"]
        return Reader(reward_model(judged, tokenizer), tokenizer, config, judged, deviation)
    tokenizer = load_tokenizer(parent.folder)
    if tokenizer.eos_token is not None:
        settle_pad_token(tokenizer, None)
    if parent.record["chat"]:
        config = replace(config, template=replace(config.template, kind="chat"))
    return Reader(reward_model(judged, tokenizer), tokenizer, config, judged, 1.0)


def judge_reward(judged: Judged, pairs: str | None) -> None:
    """Adds `accuracy`, `reward_model` and `benchmark` to what is found."""
    if "reward" not in judged.stages and pairs is not None:
        raise UserError(
            f"--pairs {pairs}: there is no reward model to score them; run stage2_rm.py first."
        )
    if "reward" not in judged.stages:
        return judged.leave_out("accuracy", "no reward model: stage 2 is not finished")
    if reads_images(load_config(judged.stages["reward"].folder)):
        return judged.leave_out("accuracy", "it reads images, which this script hands to none")
    rows = benchmark_rows(pairs) if pairs is not None else []
    reader = reader_of(judged)
    if rows:
        judged.found["benchmark"] = {"file": pairs, **benchmark(reader, rows, str(pairs))}
        pairs = None
    section = judged.config.data.preference
    if pairs is None and section.path is None and not section.sources:
        return judged.leave_out("accuracy", "data.preference.path is not set, nor --pairs given")
    held_out(reader, pairs)


def held_out(reader: Reader, pairs: str | None) -> None:
    """Figures on the pairs or ratings of the file `pairs`, or on those held out."""
    judged, config = reader.judged, reader.config
    parts = named_sources(config.data.preference)
    if pairs is not None:
        parts = {pairs: SourceSection(path=pairs)}
        config = replace(config, data=replace(config.data, test_fraction=0.0))
    train: list[Row] = []
    test: list[tuple[str, Row]] = []
    for name, section in parts.items():
        data = _read(config, reader.tokenizer, section, pairs)
        judged.launch.say(f"pairs: {data.report.lines()[-1]}")
        train += [] if pairs is not None else data.train
        test += [(name, row) for row in (data.test if pairs is None else data.train)]
    if not test:
        return judged.leave_out("accuracy", "no rows are held out (data.test_fraction is 0)")
    if "score" in test[0][1]:
        rows = [row for _, row in test]
        found = figures(reader.model, rows, config.reward.microbatch_size, judged.launch)
        judged.found["reward_model"] = found
        return judged.leave_out("accuracy", f"reward.kind {config.reward.kind} reads no pairs")
    judged.found["reward_model"] = on_pairs(reader, train, test)
    judged.found["accuracy"] = judged.found["reward_model"]["accuracy"]


def named_sources(section: SourceSection) -> dict[str, SourceSection]:
    """Each source of a stage as a section of its own, by its path; where several have one path,
    such as subsets of a data set, by subset, split and place too."""
    names = [field.name for field in fields(OneSource)]
    items = [source for _, source in section.items("data.preference")]
    found: dict[str, SourceSection] = {}
    for i, one in enumerate(items, 1):
        label = str(one.path)
        if sum(other.path == one.path for other in items) > 1:
            label = " ".join(filter(None, (label, one.name, one.split, f"({i})")))
        found[label] = SourceSection(**{name: getattr(one, name) for name in names})
    return found


def _read(config: Config, tokenizer: Any, section: SourceSection, pairs: str | None) -> Any:
    data = replace(config.data, preference=section)
    try:
        return preference_data(replace(config, data=data), tokenizer)
    except UserError as error:
        if pairs is None:
            raise
        text = str(error).replace("data.preference.path", "--pairs")
        raise UserError(text.replace("--data.preference", "--pairs")) from None


def on_pairs(reader: Reader, train: list[Row], test: list[tuple[str, Row]]) -> dict[str, Any]:
    """Accuracy with its interval, beside both baselines, by source and length, and calibration."""
    rows = [row for _, row in test]
    prompts = [row["prompt_length"] for row in rows for _ in SIDES]
    scores = reader.scores([row[side] for row in rows for side in SIDES], prompts)
    margins = [c - r for c, r in zip(scores[::2], scores[1::2], strict=True)]
    outcomes = wins(margins)
    clusters = [tuple(row["chosen_ids"][: row["prompt_length"]]) for row in rows]
    texts = replies(rows, reader.tokenizer)
    own = {"longer": wins(length_margins(texts))}
    if find_spec("sklearn") is None:
        reader.judged.leave_out("tfidf", "scikit-learn is not installed (pip install scikit-learn)")
    elif len(train) > 1:
        learnt = replies(drawn(train, reader.config.seed), reader.tokenizer)
        own["tfidf"] = wins(tfidf_margins(learnt, texts))
    gains = {k: [a - b for a, b in zip(outcomes, v, strict=True)] for k, v in own.items()}
    tokens = [tuple(float(len(r[s]) - r["prompt_length"]) for s in SIDES) for r in rows]
    lengths: Any = tokens
    raw = [margin * reader.deviation for margin in margins]
    return {
        "pairs": len(rows),
        "prompts": len(set(clusters)),
        "accuracy": share(outcomes, clusters).to_json(),
        **{name: share(values, clusters).to_json() for name, values in own.items()},
        "gain": {name: average(values, clusters).to_json() for name, values in gains.items()},
        "by_source": grouped(outcomes, [name for name, _ in test], clusters),
        "by_difference": by_difference(outcomes, lengths, clusters),
        "by_length": by_length(outcomes, lengths, clusters),
        "calibration": calibration(raw),
    }


def drawn(train: list[Row], seed: int) -> list[Row]:
    """At most TRAIN_PAIRS, at random over all sources, in their order."""
    order = permutation(len(train), seed, "pairs of TF-IDF")
    return [train[i] for i in sorted(order[:TRAIN_PAIRS])]


def benchmark_rows(path: str) -> list[tuple[str, Row]]:
    """Rows with their places of a file of RewardBench 2's form; none of another."""
    file = Path(path).expanduser()
    read = READERS.get(kind_of(file))
    if read is None or not file.is_file():
        return []
    with readable(f"--pairs {path}"):
        rows = list(read(file))
    if not (rows and is_benchmark(rows[0][1])):
        return []
    for where, row in rows:
        if not is_benchmark(row) or not isinstance(row["prompt"], str):
            raise UserError(
                f"{where}: a row of RewardBench 2 has prompt, a text, and chosen and rejected, "
                "lists of texts; correct the row, or leave it out."
            )
    return rows


def benchmark(reader: Reader, rows: Iterable[tuple[str, Row]], path: str) -> dict[str, Any]:
    """Scores of RewardBench 2 (scripts/evaluation/benchmark.py); rows are cut to the model's
    `reward.max_length` and lose their end token, as those of stage 2; they are counted."""
    listed = list(rows)
    said = [
        (where, row, reply) for where, row in listed for reply in row["chosen"] + row["rejected"]
    ]
    ids = conversations(reader, [(where, row["prompt"], reply) for where, row, reply in said])
    limit = reader.config.reward.max_length
    cut = sum(len(one) > limit for one, _ in ids)
    reader.judged.launch.say(f"RewardBench 2: {len(listed)} prompts, {len(ids)} replies of {path}")
    # A prompt that fills all of it leaves one token to score.
    prompts = [min(length, limit - 1) for _, length in ids]
    scores = iter(reader.scores([one[:limit] for one, _ in ids], prompts))
    items = [
        Item(
            id=str(row.get("id", where)),
            subset=str(row.get("subset", "all")),
            right=[next(scores) for _ in row["chosen"]],
            wrong=[next(scores) for _ in row["rejected"]],
        )
        for where, row in listed
    ]
    return {"rows": len(items), "cut": cut, **result(items)}


def conversations(reader: Reader, rows: list[tuple[str, str, str]]) -> list[tuple[list[int], int]]:
    """Ids of (where, prompt, reply), ended as stage 2's rows are, and how many are the prompt's;
    what would be read as a control token becomes a space."""
    section, tokenizer = reader.config.template, reader.tokenizer
    template, controls = Template(section, tokenizer), control_tokens(tokenizer)

    def plain(text: str) -> str:
        return controls.sub(" ", text) if controls else text

    segments = []
    for where, prompt, reply in rows:
        turns: Any = [
            {"role": "user", "content": plain(prompt)},
            {"role": "assistant", "content": plain(reply)},
        ]
        segments.append(template.segments(turns, where))
    bare = section.kind == "chat" or not section.bos
    leading = [] if bare else leading_ids(tokenizer)
    encoded = encode_rows(segments, tokenizer, leading)
    return [(row.ids[: row.reply_end], row.prompt_length) for row in encoded]
