"""What a reward model must beat: pairwise accuracy of two baselines on stage 2's own split.

- tfidf: logistic regression on the difference of the two replies' TF-IDF vectors (words and word
  pairs), trained on the pairs that stage 2 trains on;
- longer: the reply with more characters wins.

Ties count one half. The arguments are those of the stages; needs scikit-learn.

    python scripts/baselines.py --config configs/smollm2.yaml --data.preference.path pairs.jsonl \
        --out baselines.json
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.config import Config, parse_config
from cores.errors import UserError
from cores.runtime.cli import guarded

Pair = tuple[str, str]
"""Chosen and rejected reply."""

REGULARIZATION = 1.0
"""scikit-learn's default C; not tuned."""


def read_pairs(config: Config) -> tuple[list[Pair], list[Pair]]:
    """Train and test pairs exactly as stage 2 uses them: split, truncated and filtered alike.

    They are decoded from stage 2's rows, read with the tokenizer of stage 1 if it has run.
    """
    from cores.data import preference_data
    from cores.models.loading import load_tokenizer
    from cores.runtime.launch import quiet

    quiet()
    stage1 = Path(config.output_dir) / "sft"
    tokenizer = load_tokenizer(stage1 if stage1.is_dir() else config.model.path)
    data = preference_data(config, tokenizer)
    if not data.test:
        raise UserError("data.test_fraction holds no pair out: nothing to measure on; raise it.")

    def texts(row: dict[str, Any]) -> Pair:
        sides = (row[side][row["prompt_length"] :] for side in ("chosen_ids", "rejected_ids"))
        chosen, rejected = (str(tokenizer.decode(i, skip_special_tokens=True)) for i in sides)
        return chosen, rejected

    return [texts(row) for row in data.train], [texts(row) for row in data.test]


def tfidf_margins(train: list[Pair], test: list[Pair]) -> list[float]:
    """Score of chosen minus score of rejected for each test pair.

    The model is antisymmetric: no intercept, and every pair is shown in both orders.
    """
    import numpy as np
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    vectorizer.fit([reply for pair in train for reply in pair])

    def difference(pairs: list[Pair]) -> Any:
        chosen, rejected = zip(*pairs, strict=True)
        return vectorizer.transform(chosen) - vectorizer.transform(rejected)

    seen = difference(train)
    labels = np.repeat([1, 0], len(train))
    model = LogisticRegression(C=REGULARIZATION, fit_intercept=False, max_iter=1000)
    model.fit(vstack([seen, -seen]), labels)
    return model.decision_function(difference(test)).tolist()


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's (1927) score interval of a share of n trials, 95% at z = 1.96."""
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (centre - half) / scale, (centre + half) / scale


def accuracy(margins: Sequence[float]) -> dict[str, float]:
    """Share of positive margins, ties one half, with its 95% interval."""
    share = sum(0.5 if m == 0 else float(m > 0) for m in margins) / len(margins)
    low, high = wilson(share, len(margins))
    return {"accuracy": share, "low": low, "high": high}


def main(argv: list[str]) -> None:
    """Command line: `--out FILE` and the stages' own arguments."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", type=Path)
    args, rest = parser.parse_known_args(argv)
    config = parse_config(rest, prog="scripts/baselines.py", description=__doc__ or "")
    train, test = read_pairs(config)
    result = {
        "pairs": len(test),
        "train_pairs": len(train),
        "tfidf": accuracy(tfidf_margins(train, test)),
        "longer": accuracy([len(chosen) - len(rejected) for chosen, rejected in test]),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    guarded(main)
