"""Bugs in the copy of the model that rollouts run; see rl.py for the form."""

from scripts.mutations.ppo import Bug

BUGS: dict[str, tuple[tuple[str, ...], list[Bug]]] = {
    "cores/rollout/residual.py": (
        ("tests/unit/test_rollout_fused.py",),
        [
            (
                "sum-unwritten",
                "a sum's numbers read before they are written",
                "                each.add_now()\n",
                "                pass\n",
            ),
            (
                "sum-on-sum",
                "a branch added to a sum that is not written",
                "residual = residual.add_now()",
                "residual = residual.total",
            ),
            (
                "sum-rounded",
                "a sum of other types taken for one of float32",
                "residual.dtype == torch.float32",
                "residual.dtype != torch.float64",
            ),
            (
                "sum-broadcast",
                "a residual of another shape added as it lies",
                "and residual.shape == branch.shape",
                "and True",
            ),
            (
                "branch-dropout",
                "dropout that is on passes a branch by",
                'and not kwargs["training"]',
                "and True",
            ),
            (
                "sums-plain",
                "sums are never left to the norms",
                "module.register_forward_hook(_as_branch)",
                "pass",
            ),
        ],
    ),
    "cores/rollout/layers.py": (
        ("tests/unit/test_rollout_fused.py",),
        [
            (
                "joint-stale",
                "a layer hands out what it made of another input",
                "if self.input is x else None",
                "if self.input is not None else None",
            ),
            (
                "joint-kept",
                "inputs of layers are held on to",
                "            self.input = None\n        return part",
                "            pass\n        return part",
            ),
            (
                "joint-copies",
                "joined weights stay as they were at the start",
                "            parameter.data = part\n",
                "            pass\n",
            ),
            (
                "joint-others",
                "weights that are the trainer's are joined",
                "{id(p) for p in layer.parameters()} <= theirs",
                "bool(theirs)",
            ),
            (
                "activation-other",
                "every activation is a GELU",
                "use_gelu=self.gelu",
                "use_gelu=True",
            ),
            (
                "activation-twice",
                "the activation runs once more behind the layer",
                "                setattr(module, follower, nn.Identity())\n",
                "",
            ),
        ],
    ),
    "cores/rollout/twin.py": (
        ("tests/unit/test_rollout_twin.py", "tests/unit/test_rollout_fused.py"),
        [
            (
                "twin-copies",
                "the twin has weights of its own",
                "deepcopy(model, _shared(model))",
                "deepcopy(model)",
            ),
            (
                "twin-never-lent",
                "rounded weights stay in the update's way",
                "                storage.resize_(0)\n",
                "                pass\n",
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
            (
                "twin-8bit",
                "8-bit layers and their twins take each other's weights",
                "            shared[id(module.state)] = module.state\n",
                "            pass\n",
            ),
        ],
    ),
    "cores/rollout/adapted.py": (
        ("tests/unit/test_rollout_fused.py",),
        [
            ("adapter-scale", "adapters' scale forgotten", "alpha=self.scaling", "alpha=1.0"),
            (
                "adapter-two",
                "one adapter of several",
                "plain = len(child.active_adapters) == 1 and",
                "plain =",
            ),
            (
                "adapter-off",
                "adapters that are off",
                "child.disable_adapters or child.merged",
                "child.merged",
            ),
        ],
    ),
}
