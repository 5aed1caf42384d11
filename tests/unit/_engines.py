"""Both rollout engines for the tests, and plain torch in place of the kernels of decode steps."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from _models import EOS, FAMILIES, KINDS, PAD
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cores.draws import uniforms
from cores.rollout.engine import Rollout, Sampling
from cores.rollout.engine import sample as invert
from cores.rollout.graph import engine as graph
from cores.rollout.graph.buffers import Steps
from cores.rollout.graph.engine import GraphEngine
from cores.rollout.hf import HFEngine
from cores.runtime.captured import Captured, Graph

ENGINES: dict[str, Any] = {"hf": HFEngine, "graph": GraphEngine}
REFUSED = ("bloom", "gptj", "gemma2")
"""Families that GraphEngine does not run."""
CAPTURABLE = tuple(kind for kind in FAMILIES if kind not in REFUSED)
EVERY = [(name, kind) for name in ENGINES for kind in (FAMILIES if name == "hf" else CAPTURABLE)]
"""Each engine with each family that it runs."""
BOTH = [(name, kind) for name in ENGINES for kind in KINDS]
STOPS = [EOS, *range(2, 12)]
"""Many stop ids, so that replies end at different times."""


def engine(name: str, model: Any, temperature: float = 1.0, tokens: int = 8, **more: Any) -> Any:
    """The engine `name` on `model`."""
    stops, pad = more.pop("stop_ids", STOPS), more.pop("pad_id", PAD)
    return ENGINES[name](model, Sampling(pad, stops, tokens, temperature, **more))


def numbers(made: Any, rows: int, seed: int = 0, first: int = 0) -> Tensor:
    """(rows, T) for one rollout of `made`, those of the rows from number `first` on."""
    return uniforms(rows, made.sampling.max_new_tokens, seed, "replies", first=first)


def sample(made: Any, prompts: list[list[int]], seed: int = 0) -> Rollout:
    """One rollout of `made` with the random numbers of `seed`."""
    return made.generate(prompts, numbers(made, len(prompts), seed))


def replies(rollout: Rollout) -> list[list[int]]:
    """Every row's prompt and reply, without padding."""
    return [rollout.row(i) for i in range(len(rollout.ids))]


def decode_attention(
    query: Tensor,
    new_keys: Tensor,
    new_values: Tensor,
    keys: Tensor,
    values: Tensor,
    start: Tensor,
    position: Tensor,
    scale: float,
) -> Tensor:
    """What the kernel of this name says it does."""
    rows = len(query)
    (at,) = set((start + position)[:rows].tolist())
    keys[:rows, :, at] = new_keys[:, :, 0]
    values[:rows, :, at] = new_values[:, :, 0]
    places = torch.arange(at + 1)
    seen = (places >= start[:rows, None])[:, None, None]
    out = scaled_dot_product_attention(
        query.to(keys.dtype),
        keys[:rows, :, : at + 1],
        values[:rows, :, : at + 1],
        attn_mask=seen,
        scale=scale,
        enable_gqa=True,
    )
    return out.transpose(1, 2)


def sample_into(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    tokens: Tensor,
    logprobs: Tensor,
    entropies: Tensor,
    newest: Tensor,
    places: Tensor,
    positions: Tensor,
) -> None:
    """What the kernel of this name says it does."""
    place = places[: len(logits)]
    token, logprob, entropy = invert(logits, uniform.view(-1)[place], temperature)
    newest[: len(logits)] = token
    for buffer, new in ((tokens, token), (logprobs, logprob), (entropies, entropy)):
        buffer.view(-1)[place] = new
    place += 1
    positions[: len(logits)] += 1


class FakeGraph:
    """Stands in for torch.cuda.CUDAGraph: runs again what its engine ran when it was captured."""

    captured: list["FakeGraph"]

    def __init__(self) -> None:
        self.run: Any = None
        self.replays = 0
        FakeGraph.captured.append(self)

    def pool(self) -> int:
        return 1

    def replay(self) -> None:
        self.replays += 1
        self.run()


class _Anything:
    """A stream, or a context that does nothing."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...

    def wait_stream(self, _: Any) -> None: ...


def plain_kernels() -> ModuleType:
    """The kernels' module, without triton."""
    kernels = ModuleType("cores.rollout.graph.kernels")
    vars(kernels).update(decode_attention=decode_attention, sample_into=sample_into)
    return kernels


def as_on_cuda(
    made: Any, monkeypatch: pytest.MonkeyPatch, kernels: ModuleType | None = None
) -> list[FakeGraph]:
    """Let `made` go the way it goes on a GPU: rows in buckets, a graph for each number of them,
    kernels; returns the graphs that it captures."""
    made.capture, FakeGraph.captured = True, []
    monkeypatch.setitem(sys.modules, "cores.rollout.graph.kernels", kernels or plain_kernels())
    room, advance = made._room, made._advance

    def with_kernels(rows: int, wide: int) -> Steps:
        steps = room(rows, wide)
        steps.cache.kernel = True
        return steps

    class Capture:
        """What is asked for within it is noted, not run."""

        def __init__(self, graph: FakeGraph, pool: Any = None, **_: Any) -> None:
            self.graph = graph

        def __enter__(self) -> None:
            made._advance = lambda *asked: setattr(self.graph, "run", lambda: advance(*asked))

        def __exit__(self, *_: Any) -> None:
            made._advance = advance

    class Prefills(Captured):
        """Captures of prefills, which run again when replayed."""

        def _capture(self, inputs: Any, work: Any) -> Graph:
            own, outputs, graph = {n: t.clone() for n, t in inputs.items()}, {}, FakeGraph()
            graph.run = lambda: outputs.update(work(own))
            return Graph(graph, own, outputs)  # type: ignore[arg-type]

    monkeypatch.setattr(graph, "Captured", Prefills)
    made._release()

    monkeypatch.setattr(made, "_room", with_kernels)
    monkeypatch.setattr(torch.cuda, "Stream", _Anything)
    monkeypatch.setattr(torch.cuda, "current_stream", _Anything)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: _Anything())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    return FakeGraph.captured
