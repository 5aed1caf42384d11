"""Forward and backward passes as CUDA graphs: one launch in place of thousands.

A graph repeats its kernels on the same addresses, so it holds for one shape of micro-batch. A shape
is run as it is until it is clear that it comes again.
"""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cores.errors import UserError

Tensors = dict[str, Tensor]

SEEN = 2
"""Runs of a shape before its capture: compilation and an optimizer's first step are behind it."""
GRAPHS = 64
"""Graphs at most; what comes after them runs as it is."""


@dataclass(frozen=True)
class Graph:
    """A captured pass."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensors
    """What it reads: copied into before each replay."""
    outputs: Tensors
    """What it leaves."""


class Captured:
    """Runs passes, captured where their shape has come before.

    What a pass needs in between lies in one pool of memory for all graphs, since none runs beside
    another. What outlives it must stay where it is: see `KeptGradients`.
    """

    def __init__(self) -> None:
        self.seen: Counter[Hashable] = Counter()
        self.graphs: dict[Hashable, Graph] = {}

    def run(self, key: Hashable, inputs: Tensors, work: Callable[[Tensors], Tensors]) -> Tensors:
        """What `work` returns for `inputs`; `key` names everything about it but their values."""
        key = (key, tuple((name, tuple(x.shape)) for name, x in inputs.items()))
        self.seen[key] += 1
        if key not in self.graphs:
            if self.seen[key] <= SEEN or len(self.graphs) >= GRAPHS:
                return work(inputs)
            self.graphs[key] = self._capture(inputs, work)
        graph = self.graphs[key]
        for name, value in inputs.items():
            graph.inputs[name].copy_(value)
        graph.graph.replay()
        return {name: value.clone() for name, value in graph.outputs.items()}

    def _capture(self, inputs: Tensors, work: Callable[[Tensors], Tensors]) -> Graph:
        """A graph of `work`; nothing runs yet."""
        own = {name: value.clone() for name, value in inputs.items()}
        pool = next(iter(self.graphs.values())).graph.pool() if self.graphs else None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = work(own)
        except RuntimeError as error:
            first = error.__context__ or error  # the end of a broken capture fails as well
            raise UserError(
                f"a CUDA graph could not be captured: {first}. Set ppo.passes to eager; in a "
                "rollout set rollout.engine to hf. If memory ran out, smaller micro-batches may do."
            ) from error
        return Graph(graph, own, outputs)


class KeptGradients:
    """Gradients of a step's passes, at addresses that stay the same from graph to graph.

    A pass that is the whole step needs none: its gradients come and go within its graph.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters
        self.tensors: list[Tensor | None] | None = None
        """What the first pass of all left, None for what has no gradient."""

    def begin(self, first: bool, last: bool) -> None:
        """Before a pass: what the passes before it left, cleared for the first."""
        if self.tensors is None or (first and last):
            return
        for parameter, tensor in zip(self.parameters, self.tensors, strict=True):
            parameter.grad = tensor
        if first:
            torch._foreach_zero_([tensor for tensor in self.tensors if tensor is not None])

    def end(self, first: bool, last: bool) -> None:
        """Behind a pass: the parameters let go."""
        if self.tensors is None and not (first and last):
            self.tensors = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
