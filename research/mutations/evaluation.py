"""Planted bugs of the evaluation: intervals, win rates, RewardBench 2, best of n."""

Bug = tuple[str, str, str, str]
TESTS = ("tests/unit/test_evaluation.py", "tests/integration/test_evidence.py")
BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/evaluate/held_out.py": (
        TESTS,
        [("tie-win", "a tie counts as won", "0.5 * (a == b)", "1.0 * (a == b)")],
    ),
    "scripts/evaluation/stats.py": (
        TESTS,
        [
            ("clusters", "rows of one prompt count as independent",
             "sums[cluster] +=", "sums[len(sums)] +="),
            ("one-cluster", "one prompt alone has an interval", "if count < 2:", "if count < 1:"),
            ("ratio-weights", "a ratio's deviations without the weights",
             "+= value - ratio * weight", "+= value - ratio"),
            ("bootstrap-rows", "the bootstrap draws rows, not prompts",
             "groups[cluster].append(row)", "groups[len(groups)].append(row)"),
            ("bootstrap-quantile", "an 80% interval", "[0.025, 0.975]", "[0.1, 0.9]"),
        ],
    ),
    "scripts/evaluation/comparisons.py": (
        TESTS,
        [
            ("length-control", "length control is the plain win rate",
             "both = (mean(shorter) + mean(longer_ones)) / 2",
             "both = mean(shorter + longer_ones)"),
            ("length-rest", "rows beyond the last group are left out",
             "part += rest", "part += rest[:0]"),
            ("orders", "a judge that goes by the place wins half",
             "a != -b", "a != b and a != -b"),
        ],
    ),
    "scripts/evaluation/endpoint.py": (
        ("tests/unit/test_endpoint_judge.py",),
        [
            ("judge-again", "a refusal is asked again",
             "passes = error.code in PASSING or error.code >= 500", "passes = True"),
        ],
    ),
    "scripts/evaluation/judges.py": (
        ("tests/unit/test_endpoint_judge.py",),
        [
            ("judge-once", "what passes is not asked again", "(*WAITS, None)", "(None,)"),
            ("judge-gone", "a server that is gone is asked to the end",
             "list(self.lost)) >= LOST", "list(self.lost)) >= 100 * LOST"),
            ("judge-recovers", "failures that others part add up", "self.lost.clear()", "pass"),
        ],
    ),
    "scripts/evaluation/reward.py": (
        ("tests/unit/test_endpoint_judge.py",),
        [
            ("words-first", "words are learned from the first pairs",
             "sorted(order[:TRAIN_PAIRS])", "range(min(len(train), TRAIN_PAIRS))"),
        ],
    ),
    "scripts/evaluation/runs.py": (
        ("tests/integration/test_chat.py",),
        [
            ("units-raw", "a reward model from elsewhere is never scaled",
             "if scale is None:", "if True:"),
        ],
    ),
    "scripts/push.py": (
        ("tests/unit/test_card.py",),
        [
            ("push-command", "commands are pushed as they were given",
             'key in ("command", "resume")', "False"),
            ("push-hash", "hashes are those of other files than are pushed",
             "hashlib.sha256(data)", "hashlib.sha256(b'')"),
            ("push-template", "texts of a template are taken for places",
             'v if k == "template" else', "v if False else"),
        ],
    ),
    "scripts/evaluation/benchmark.py": (
        TESTS,
        [
            ("tied-maximum", "a shared highest score is won",
             "/ (item.right + item.wrong).count(best)", "/ max(1, item.right.count(best))"),
            ("ties-gap", "the best right reply against the best wrong one",
             "min(item.right) - max(item.wrong)", "max(item.right) - max(item.wrong)"),
            ("ties-harder", "the reference's gap is not looked at",
             "least > spread for _, least, spread", "least > spread for least, _, spread"),
            ("ties-drawn", "the interval of Ties is one of rows",
             "bootstrap(ties, by_prompt(part))",
             "bootstrap(lambda some: ties(by_prompt(some)), part)"),
        ],
    ),
    "scripts/evaluation/preferences.py": (
        TESTS,
        [
            ("calibration-sign", "sure of the chosen side", "abs(margin)", "margin"),
        ],
    ),
    "scripts/evaluation/texts.py": (
        TESTS,
        [
            ("best-choices", "choices that count the best itself",
             "math.comb(i, n - 1)", "math.comb(i + 1, n)"),
        ],
    ),
}  # fmt: skip
