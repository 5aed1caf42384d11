"""Planted bugs of what a run's files tell: the doctor's rules, the report."""

Bug = tuple[str, str, str, str]
DOCTOR = ("tests/unit/test_doctor.py", "tests/unit/test_doctor_stages.py")
PAGE = ("tests/integration/test_report.py",)
BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/report/doctor.py": (
        DOCTOR,
        [
            ("noise", "noise is a trend",
             "max(5 * error, least)", "max(0.5 * error, least)"),
            ("scale", "a deviation of the score is always 1",
             "[x for x in self.ends(\"score_std\", FEW) if x > 0]", "[]"),
            ("said-twice", "a rule is told at every row that it holds",
             "self.told.add(rule.name)", "pass"),
            ("few-rows", "one row is a mean of three",
             "if len(self.rows) >= count else math.nan", ""),
        ],
    ),
    "cores/report/rules.py": (
        DOCTOR,
        [
            ("ratio-once", "a first minibatch that is off is passed over",
             'off_policy("first_kl", 1e-5, 2e-3', 'off_policy("first_kl", 1e5, 2e3'),
            ("kl-bound", "KL may be the entropy of the whole reply times ten",
             'float("nan")), 0.5) * tokens', 'float("nan")), 0.5) * tokens * 10'),
            ("kl-price", "a reward eaten by the price of KL is passed over",
             "fallen = kl > 5 and now < before - s.spread()", "fallen = False"),
            ("drowned", "a score that penalties drown is well",
             "abs(reward - score) > 5 * varies", "abs(reward - score) > 5000 * varies"),
            ("drowned-score", "a score that has changed counts as drowned",
             "max(s.spread(), abs(now - before))", "s.spread() / 5"),
            ("critic-flat", "a critic that says 0 foresees something",
             's.last("explained_variance", MANY, largest) < 0.01', "False"),
            ("silent", "a policy that says one thing from the start is well",
             "max(0.01, min(0.2", "max(0.0, min(0.2"),
            ("critic-new", "a new critic is sick at once",
             'len(s.rows) >= 6 and s.last("explained_variance", 5, max) < 0',
             's.last("explained_variance", 1, max) < 0'),
            ("judge-weight", "sources that are learned from count as judges",
             "weight == 0 and gained", "weight != 0 and gained"),
            ("fixed-length", "replies of a fixed length are sick",
             's.ppo.get("min_new_tokens", 0) < s.ppo.get("max_new_tokens", 1)', "True"),
            ("one-step", "an update of one step has something to clip",
             's.last("optimizer_steps", MANY, min) >= 2',
             's.last("optimizer_steps", MANY, min) >= 1'),
            ("few-pairs", "an accuracy of ten pairs is one",
             "if pairs >= PAIRS and (", "if pairs >= 1 and ("),
            ("few-repeated", "a few rows that are alike are many", "least=100", "least=1"),
            ("mixture", "sources of a mixture are not looked at",
             'data.get("sources", [data])', "[data]"),
            ("length-people", "pairs that length decides are well",
             "enough and people >= 0.8", "enough and people >= 1.8"),
            ("converged", "a loss that still falls is converged",
             "<= 0.95 * (was := over(", "<= 0.5 * (was := over("),
        ],
    ),
    "cores/report/record.py": (
        DOCTOR,
        [
            ("older", "of two folders of a stage the finished one",
             'file == "stage.json", told, metrics', "True, told, metrics"),
            ("half-row", "half a row is damage", "enumerate(lines[:-1], start=1)",
             "enumerate(lines if lines[-1] else lines[:-1], start=1)"),
        ],
    ),
    "cores/report/page.py": (
        PAGE,
        [
            ("markup", "a reply may end its block of data",
             '.replace("<", "\\\\u003c")', ""),
            ("twice", "what stands in the data may be a place of the template",
             "lambda found: parts[found[1]], template)",
             "lambda found: parts[found[1]], template).replace('{{script}}', script)"),
            ("private", "replies are shown whatever the configuration says",
             "if ppo and shown else []\n    return", "if ppo else []\n    return"),
        ],
    ),
    "cores/report/replies.py": (
        PAGE,
        [("marks", "what stayed is marked", 'int(kind != "equal")', 'int(kind == "equal")')],
    ),
    "cores/report/curves.py": (
        PAGE,
        [
            ("band", "the deviation for the error of the mean", "/ math.sqrt(count)", "/ 1"),
            ("thin", "long runs are not thinned", "math.ceil(len(rows) / POINTS)", "1"),
        ],
    ),
    "cores/run/beside.py": (
        ("tests/unit/test_run_beside.py",),
        [
            ("anew", "a run that goes on says everything again",
             "self.watch.add(row)\n        found", "pass\n        found"),
            ("often", "a slow report is made each minute",
             "max(EVERY, SHARE * (now - started))", "EVERY"),
            ("ends", "a failing report ends the run", "except Exception as error:",
             "except ZeroDivisionError as error:"),
        ],
    ),
    "cores/rl/masked.py": (
        ("tests/unit/test_rl_losses.py",),
        [
            ("repeats-padding", "padding repeats itself",
             "torch.where(whole, codes, apart)", "codes"),
            ("repeats-order", "the order of the tokens does not count",
             "[1_000_003**i for i in range(size)]", "[1 for i in range(size)]"),
        ],
    ),
    "cores/training/reward.py": (
        ("tests/integration/test_models_training.py",),
        [("prefers", "the shorter reply counts as the longer",
          "(a, b) if x > y else (b, a)", "(a, b) if x < y else (b, a)")],
    ),
    "cores/ppo/trainer.py": (
        ("tests/unit/test_ppo_options.py",),
        [("first", "the last step is told as the first",
          "if len(steps) == 1:", "if len(steps) > 0:")],
    ),
}  # fmt: skip
