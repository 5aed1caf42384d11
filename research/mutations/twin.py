"""Bugs in the copy of the model that rollouts run; see rl.py for the form."""

from research.mutations.ppo import Bug

BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/rollout/graph/engine.py": (
        ("tests/unit/test_rollout_twin.py", "tests/unit/test_rollout_graph.py"),
        [
            (
                "twin-never-lent",
                "rounded weights stay in the update's way",
                "            copy.untyped_storage().resize_(0)\n",
                "            pass\n",
            ),
            (
                "twin-dropout",
                "dropout while sampling",
                "        self.model.eval()\n",
                "        self.model.train()\n",
            ),
            (
                "twin-old-memory",
                "weights read where they were at the start",
                "self.sources.append(source)",
                "self.sources.append(source.detach())",
            ),
            (
                "twin-never-rounded",
                "the rounded weights are never written",
                "foreach_copy_(self.copies, self.sources)",
                "foreach_copy_(self.copies, self.copies)",
            ),
            (
                "twin-rounds-bf16",
                "frozen weights in bf16 copied too",
                "source is None or source.dtype != torch.float32",
                "source is None",
            ),
        ],
    ),
}
