"""Bugs in what presets of `format` make of rows; see rl.py for the form."""

Bug = tuple[str, str, str, str]

TESTS = ("tests/unit/test_data_presets.py", "tests/unit/test_data_presets_refused.py")

BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/data/comparisons.py": (
        TESTS,
        [
            ("worse-chosen", "the worse reply of a pair chosen",
             "(a, b) if lead > 0", "(a, b) if lead < 0"),
            ("tie-paired", "two replies of one score made a pair", "if not lead:", "if False:"),
            ("margin-signed", "a margin below 0", "abs(lead)", "lead"),
            ("neighbours", "every reply against the next one alone",
             "combinations(judged, 2)", "zip(judged, judged[1:])"),
            ("first-taken", "the first of the best replies alone demonstrated",
             "reply.score >= best", "reply is max(one.replies, key=lambda r: r.score or 0.0)"),
            ("all-taken", "worse replies demonstrated", "reply.score >= best", "True"),
            ("unwanted-taken", "an unwanted reply demonstrated where no other is there",
             "max([*scores, least])", "max([*scores])"),
            ("bins-shifted", "ratings from 1 moved up as those from 0 are",
             "1 - one.lowest", "1 + one.lowest"),
            ("ranks-rated", "ranks learned as ratings", "if one.lowest is None:", "if False:"),
            ("columns-lost", "columns that the preset does not read dropped without a word",
             "if k not in uses.split()}", "if False}"),
            ("answer-lost", "reward functions do not get the row's columns",
             'job.stage == "ppo" else rest', 'job.stage == "none" else rest'),
            ("null-is-0", "a reply that nobody judged is the worst",
             'if value is None or value == "":\n        return None',
             'if value is None or value == "":\n        return 0.0'),
        ],
    ),
    "cores/data/preset_readers.py": (
        TESTS,
        [
            ("pick-reversed", "the other reply picked", "if value == first", "if value != first"),
            ("rank-as-score", "the last of a ranking is the best", "sign * value", "value"),
            ("strength-reversed", "HelpSteer2's strength read the other way",
             "(None if strength is None else 0.0, strength)",
             "(strength, None if strength is None else 0.0)"),
            ("turns-in-a-text", "turns of a HelpSteer2 prompt in one text",
             "return turns if further else text", 'return row.columns["prompt"]'),
            ("rated-against", "a pair that its ratings contradict exchanged",
             "< (ratings[1] or 0.0):", "< -1 and ratings[1]:"),
            ("system-apart", "replies under two system turns compared",
             "json.dumps([prompt, *before]", "json.dumps([prompt]"),
            ("skipped-counts", "annotations that were skipped count",
             'if annotation.columns.get("was_cancelled")', "if False"),
            ("sides-exchanged", "left and right exchanged",
             '(float(votes["left"]), float(votes["right"]))',
             '(float(votes["right"]), float(votes["left"]))'),
            ("input-lost", "the input of an instruction lost",
             ", row.columns.get(\"input\") and need(row, \"input\", str)]", "]"),
        ],
    ),
    "cores/data/trees.py": (
        TESTS,
        [
            ("worst-path", "the worst reply at every turn", "best = min(", "best = max("),
            ("deleted-kept", "deleted messages learned",
             'if not number(row, "deleted", missing=True)', "if True"),
            ("rank-reversed", "rank 0 is the worst", "else -rank, reply", "else rank, reply"),
            ("path-lost", "a question without what stood before it",
             "[*path, _turn(node[0])]", "[_turn(node[0])]"),
            ("question-last", "a conversation ends with a question",
             'while turns and turns[-1]["role"] != "assistant":', "while False:"),
        ],
    ),
    "cores/data/presets.py": (
        TESTS,
        [
            ("labels-reversed", "SHP's label read the other way",
             'picked("labels", 1)', 'picked("labels", 0)'),
            ("verbatim-parsed", "transcripts parsed where there are no turns",
             'config.template.kind != "none"', "True"),
            ("nothing-left", "a stage that gets nothing goes on", "if not made:", "if False:"),
        ],
    ),
}  # fmt: skip
"""File: (tests that run first, its bugs)."""
