"""Planted bugs of what a run's files tell: the doctor's rules, the report."""

Bug = tuple[str, str, str, str]
DOCTOR = ("tests/unit/test_doctor.py", "tests/unit/test_doctor_stages.py")
PAGE = ("tests/integration/test_report.py",)
BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/report/rules_ppo.py": (
        DOCTOR,
        [
            ("ratio-once", "a first minibatch that is off is passed over",
             'found, limit = rows[-1].get("first_kl"), 1e-5 if _exact(facts) else 2e-3',
             'found, limit = rows[-1].get("first_kl"), 1e5'),
            ("kl-bound", "KL may be the entropy of the whole reply times ten",
             "max(2 * entropy, 0.5) * length", "max(2 * entropy, 0.5) * 10 * length"),
            ("kl-price", "a reward eaten by the price of KL is passed over",
             "reward[1] < reward[0] - 1", "reward[1] < reward[0] - 100"),
            ("noise", "noise is a trend",
             "max(5 * error, least)", "max(0.5 * error, least)"),
            ("critic-new", "a new critic is sick at once",
             "len(rows) < 2 * FEW or not found or max(found) >= 0",
             "not found or max(found) >= 0.5"),
            ("judge-weight", "sources that are learned from count as judges",
             "weight == 0 and gained", "weight != 0 and gained"),
            ("fixed-length", "replies of a fixed length are sick",
             "if fixed or found is None", "if found is None"),
            ("one-step", "an update of one step has something to clip",
             "min(steps) < 2", "min(steps) < 1"),
        ],
    ),
    "cores/report/rules_stages.py": (
        DOCTOR,
        [
            ("few-pairs", "an accuracy of ten pairs is one", "pairs >= PAIRS:", "pairs >= 1:"),
            ("mixture", "sources of a mixture are not looked at",
             'data.get("sources", [data])', "[data]"),
            ("length-people", "pairs that length decides are well",
             "if people >= 0.8:", "if people >= 1.8:"),
            ("converged", "a loss that still falls is converged",
             "now > 0.95 * before", "now > 0.5 * before"),
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
