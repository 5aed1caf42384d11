"""How fast a step could be: bytes that must move and operations that must be done, phase by phase.

Pure formulas; every term is a lower bound of what any implementation does:
- Operations: 2 a weight and token forward (a multiplication and an addition), 4 backward, of which
  2 for the gradient of the weight, where it is trained; attention 4 * width a pair of positions
  and layer forward, counted over the causal half, twice that backward (as Chowdhery et al. 2022,
  appendix B, but for the half). The output layer at response positions alone. No recomputation.
- Bytes: a decode step reads the weights and the filled part of the cache, and writes its own
  tokens' part; a forward pass reads the weights once for all rows; a backward pass reads them again
  and writes fp32 gradients; AdamW reads parameter, gradient and two moments and writes parameter
  and moments in fp32, and the copy to compute with. Activations, embeddings and logits count
  nothing.
A phase is a series of such works. `overlapped`: bytes and operations of a work at the same time,
the slower counts: no machine of these rates is faster. `in_turn`: one after the other.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

GPU_BYTES, GPU_OPERATIONS = 3e12, 450e12
"""Rates that an H100 SXM reaches in practice, a second: HBM3 bytes, dense bf16 operations."""
GPU_PEAK = 989e12
"""Its dense bf16 operations a second by the data sheet, for the utilisation."""
ADAM_BYTES = 28
"""Read: parameter, gradient, two moments; written: parameter, two moments; fp32 each."""


@dataclass(frozen=True)
class Shape:
    """What the formulas need to know of a model."""

    layers: int
    width: int
    """Of all queries of a layer."""
    kv_width: int
    """Of all keys of a layer."""
    body: int
    """Weights of the layers' linear maps, adapters included."""
    head: int
    """Weights of the output layer."""
    trained: int
    """Parameters that are trained, of any kind."""
    trained_linear: int
    """Those of `body` and `head`."""


@dataclass(frozen=True)
class Work:
    """Something that is done at one go."""

    bytes: float
    operations: float


@dataclass(frozen=True)
class Rates:
    """What a machine does in a second."""

    bytes: float
    operations: float


def shape_of(model: Any) -> Shape:
    """Of a Hugging Face model as it is, adapters included."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    config = model.config
    output = model.get_output_embeddings() if model.can_generate() else model.score
    inside = set(output.modules())  # peft wraps a classifier's head
    linear = [m for m in model.modules() if isinstance(m, (nn.Linear, Conv1D)) and m not in inside]
    per_head = config.hidden_size // config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = [p for p in output.parameters() if p.dim() == 2]
    trained = [w for w in (*(m.weight for m in linear), *head) if w.requires_grad]
    return Shape(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        kv_width=per_head * kv_heads,
        body=sum(m.weight.numel() for m in linear),
        head=sum(p.numel() for p in head),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        trained_linear=sum(w.numel() for w in trained),
    )


def forward(shape: Shape, prompt: int, lengths: Sequence[int], at_head: Sequence[int]) -> float:
    """Operations of rows of prompt + length tokens, the output layer at `at_head` of each."""
    rows = [prompt + length for length in lengths]
    pairs = sum(n * (n + 1) // 2 for n in rows)
    linear = 2 * shape.body * sum(rows) + 2 * shape.head * sum(at_head)
    return linear + 4 * shape.layers * shape.width * pairs


def rollout(shape: Shape, prompt: int, lengths: Sequence[int], size: int) -> list[Work]:
    """The prompts, then one decode step a token, of the rows that have not stopped.

    `size`: bytes of a number. The prompts' pass gives the first token.
    """
    weights = (shape.body + shape.head) * size
    token = 2 * shape.layers * shape.kv_width * size  # a token's keys and values
    rows = len(lengths)
    prompts = forward(shape, prompt, [0] * rows, [1] * rows)
    works = [Work(weights + rows * prompt * token, prompts)]
    for t in range(1, max(lengths)):
        alive = sum(length > t for length in lengths)
        context = prompt + t  # the token that goes in is the last of it
        works.append(
            Work(
                weights + alive * context * token,  # of it one token is written, the rest read
                alive * (2 * (shape.body + shape.head) + 4 * shape.layers * shape.width * context),
            )
        )
    return works


def scoring(
    shape: Shape, prompt: int, lengths: Sequence[int], size: int, scalar: bool
) -> list[Work]:
    """One forward pass over all rows; the scalar head is too small to count."""
    at_head = [0] * len(lengths) if scalar else lengths
    weights = shape.body + (0 if scalar else shape.head)
    return [Work(weights * size, forward(shape, prompt, lengths, at_head))]


def training(
    shape: Shape, prompt: int, lengths: Sequence[int], size: int, scalar: bool, steps: int
) -> list[Work]:
    """Forward and backward of `steps` equal parts of the rows."""
    at_head = [0] * len(lengths) if scalar else lengths
    ahead = forward(shape, prompt, lengths, at_head)
    tokens = sum(prompt + length for length in lengths)
    head = 0 if scalar else shape.head
    linear = 2 * shape.body * tokens + 2 * head * sum(at_head)
    share = shape.trained_linear / (shape.body + shape.head)
    # Attention's backward is twice its forward; a frozen weight has no gradient to compute.
    behind = linear * (1 + share) + 2 * (ahead - linear)
    moved = 2 * (shape.body + head) * size + 4 * shape.trained
    return [Work(moved, (ahead + behind) / steps) for _ in range(steps)]


def optimizer(shape: Shape, size: int, steps: int) -> list[Work]:
    """AdamW, and where compute is not in fp32 the copy that it reads."""
    copy = size if size < 4 else 0
    return [Work(shape.trained * (ADAM_BYTES + copy), 0.0) for _ in range(steps)]


def overlapped(works: Iterable[Work], rates: Rates) -> float:
    """Seconds where bytes and operations of each work overlap."""
    return sum(max(w.bytes / rates.bytes, w.operations / rates.operations) for w in works)


def in_turn(works: Iterable[Work], rates: Rates) -> float:
    """Seconds where they do not."""
    return sum(w.bytes / rates.bytes + w.operations / rates.operations for w in works)


def step(
    policy: Shape,
    critic: Shape,
    reward: Shape,
    workload: Any,
    lengths: Sequence[int],
    actor: bool,
    whole: Collection[str] = (),
) -> dict[str, list[Work]]:
    """Works of each phase of a `Workload` step; `actor`: whether it scores its own replies too.

    The reference has the actor's shape. `whole`: roles whose passes take the optimizer's step too.
    """
    size = 2 if workload.precision == "bf16" else 4
    rows = (workload.prompt, lengths, size)
    parts = workload.steps // workload.epochs
    scored = {
        "actor": scoring(policy, *rows, scalar=False) if actor else [],
        "reference": scoring(policy, *rows, scalar=False),
        "critic": scoring(critic, *rows, scalar=True),
        "reward": scoring(reward, *rows, scalar=True),
    }
    trained = {
        "actor": training(policy, *rows, scalar=False, steps=parts) * workload.epochs,
        "critic": training(critic, *rows, scalar=True, steps=parts) * workload.epochs,
        "optimizer": [],
    }
    for name, shape in (("actor", policy), ("critic", critic)):
        where = name if name in whole else "optimizer"
        trained[where] = trained[where] + optimizer(shape, size, workload.steps)
    return {
        "rollout": rollout(policy, *rows),
        **{f"score/{name}": works for name, works in scored.items()},
        **{f"update/{name}": works for name, works in trained.items()},
    }
