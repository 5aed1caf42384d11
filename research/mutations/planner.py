"""Bugs in what is counted before a run; see rl.py for the form."""

from research.mutations.rl import Bug

MEMORY = ("tests/unit/test_memory.py", "tests/unit/test_plan.py")
PLAN = ("tests/unit/test_plan.py",)

BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/shapes.py": (
        MEMORY,
        [
            ("shape-tied", "a tied head counts twice",
             "0 if scalar or self.tied else self.head", "0 if scalar else self.head"),
            ("shape-adapters", "adapters have one of their two matrices",
             "rank * (inputs + outputs)", "rank * inputs"),
            ("shape-bf16-embeddings", "embeddings are held in bf16, too",
             "+ 4.0 * (shape.head + shape.rest)\n", "+ 2.0 * (shape.head + shape.rest)\n"),
            ("shape-kept", "norms keep nothing", "return 8 * d + half", "return half"),
            ("shape-casts", "each map of ours casts its input",
             "(shape.ours and not lora)", "False"),
            ("texts-mean", "replies are longer than their mean",
             "/ p > self.mean", "/ p < self.mean"),
        ],
    ),
    "cores/memory.py": (
        MEMORY,
        [
            ("memory-moments", "one moment in place of two", '"adamw": 8.0', '"adamw": 4.0'),
            ("memory-shares", "shards are whole", "return 1 / self.world if", "return 1.0 if"),
            ("memory-cache", "values are not cached",
             '"cache", 2.0 * shape.layers', '"cache", 1.0 * shape.layers'),
            ("memory-kept", "a rollout's buffers always stay",
             "> KEPT * layout.card", "> layout.card"),
            ("memory-copies", "nothing that autocast rounds is kept",
             "rounded = copies(case, shape, scalar, lora, how)", "rounded = 0.0"),
            ("memory-checkpointing", "checkpointed layers keep all",
             "tokens * 4.0 * shape.width * shape.layers", "layer * shape.layers"),
            ("memory-pool", "graphs hold nothing",
             "graphs = max(graphs, POOL", "graphs = max(0.0, 0"),
        ],
    ),
    "cores/forecast.py": (
        PLAN,
        [
            ("forecast-refusal", "what cannot fit begins",
             "least(case, stage)) > card", "least(case, stage)) > 99 * card"),
        ],
    ),
    "cores/ppo/experience.py": (
        ("tests/unit/test_many_ranks.py",),
        [
            ("ranks-narrow", "replies of other ranks are cut to the first one's",
             "_fitted(part, prompt, max(widths))", "_fitted(part, prompt, widths[0])"),
        ],
    ),
}  # fmt: skip
