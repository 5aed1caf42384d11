"""What a reward model must beat, on the rows that it trains on and is judged on.

- tfidf: logistic regression on the difference of the two replies' TF-IDF vectors (words and word
  pairs), trained on the pairs that stage 2 trains on;
- longer: the reply with more characters wins.

Needs scikit-learn.
"""

from typing import Any

Pair = tuple[str, str]
"""Chosen and rejected reply."""

REGULARIZATION = 1.0
"""scikit-learn's default C, of pairs in both orders; not tuned."""


def replies(rows: list[dict[str, Any]], tokenizer: Any) -> list[Pair]:
    """The replies of stage 2's rows as text, truncated and filtered as they are."""

    def text(row: dict[str, Any], side: str) -> str:
        return str(tokenizer.decode(row[side][row["prompt_length"] :], skip_special_tokens=True))

    return [(text(row, "chosen_ids"), text(row, "rejected_ids")) for row in rows]


def tfidf_margins(train: list[Pair], test: list[Pair]) -> list[float]:
    """Score of chosen minus score of rejected for each test pair.

    The model is antisymmetric: no intercept, and every second pair is shown in the other order.
    Shown in both, each would count twice and the solution be that of C / 2, so C is doubled.
    """
    import numpy as np
    from scipy.sparse import diags
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectorizer = TfidfVectorizer(ngram_range=(1, 2))
    vectorizer.fit([reply for pair in train for reply in pair])

    def difference(pairs: list[Pair]) -> Any:
        chosen, rejected = zip(*pairs, strict=True)
        return vectorizer.transform(chosen) - vectorizer.transform(rejected)

    seen = difference(train)
    signs = np.where(np.arange(len(train)) % 2, -1.0, 1.0)
    model = LogisticRegression(C=2 * REGULARIZATION, fit_intercept=False, max_iter=1000)
    model.fit(diags(signs) @ seen, signs > 0)
    return list(model.decision_function(difference(test)).tolist())


def length_margins(test: list[Pair]) -> list[float]:
    """Characters of chosen minus characters of rejected for each test pair."""
    return [float(len(chosen) - len(rejected)) for chosen, rejected in test]
