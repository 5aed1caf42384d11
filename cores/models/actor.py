"""What models say of rows: log-probs of the response (`Actor`), a number a token (`ScalarModel`).

Shapes: B rows, L = P + T tokens a row (prompt then response), N tokens, V vocabulary, d width of
the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from cores.errors import UserError
from cores.models.body import body_of, hidden_states
from cores.models.heads import expected_rating
from cores.models.rows import Packing, Rows, last_attended
from cores.models.vocabulary import EXCLUDED_LOGIT

CHUNK_LOGITS = 2**26
"""Logits that exist at a time: 256 MiB in fp32, of 1,335 tokens with GPT-2's vocabulary and 441
with Qwen's. Fewer would make narrow matrix products, more would cost memory: the backward pass
holds about four tensors of this size, or three in the logits' dtype where kernels do it."""


def plain_model(model: Any) -> Any:
    """The Hugging Face model itself, its adapters active, where peft wraps it: what only peft's
    models have tells, as an import of peft takes seconds."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class Actor(nn.Module):
    """A language model seen as a policy over response tokens.

    In the first `min_new_tokens` tokens of a response `stop_ids` have probability 0, as in the
    sampling. Logits are made of `CHUNK_LOGITS` at a time, of response positions alone, and made
    again in the backward pass: nothing of shape (B, T, V) ever exists, but where it is small.
    """

    stop_ids: Tensor

    def __init__(
        self,
        model: Any,
        temperature: float,
        stop_ids: Sequence[int] = (),
        min_new_tokens: int = 0,
        entropy_grad: bool = False,
        prefix: bool = False,
    ) -> None:
        """`prefix`: prompts are read both ways. UserError if `model` is not made of a body and a
        head."""
        super().__init__()
        plain = plain_model(model)
        if not body_of(plain) or plain.get_output_embeddings() is None:
            raise UserError(
                f"model.path: {type(plain).__name__} does not keep its head apart from its body, "
                "which stage 3 needs to make logits a few tokens at a time. Choose another "
                "architecture."
            )
        self.model = model
        self.vocabulary: int = plain.config.get_text_config().vocab_size
        self.temperature = temperature
        self.register_buffer("stop_ids", torch.tensor(list(stop_ids)).long(), persistent=False)
        self.min_new_tokens = min_new_tokens
        self.entropy_grad = entropy_grad
        self.prefix = prefix

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None,
        response_length: int,
        plain: bool = False,
        entropy: bool = True,
        images: Tensor | None = None,
        packing: Packing | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs and entropy (B, T) of the last `response_length` of ids (B, L), mask (B, L).

        mask: None where no row has padding. images, packing: see `Rows`. Column t
        is response token t in every row. `plain`: the language model's own distribution, for texts
        that were not sampled: temperature 1, stop ids anywhere, entropy without a gradient.
        `entropy`: else None stands in its place, which saves a pass or two over the logits.
        """
        rows = Rows(ids, mask, response_length, images, packing)
        states = hidden_states(plain_model(self.model).base_model, rows, self.prefix)
        states = rows.before_replies(states)
        chosen, numbers = rows.reply_tokens()
        early = numbers < self.min_new_tokens
        tokens = len(states)
        if hasattr(next(self.model.parameters()), "ds_id"):
            # Shards (ZeRO-3) are put together for each part by all ranks or never, so the parts are
            # those of the most tokens that a rank has.
            most = torch.tensor(tokens, device=ids.device)
            torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
            tokens = int(most)
        logits = tokens * self.vocabulary
        parts = max(1, -(-logits // CHUNK_LOGITS))

        def chunk(states: Tensor, ids: Tensor, early: Tensor) -> tuple[Tensor, Tensor | None]:
            logits = head_logits(plain_model(self.model), states)
            logprobs_of = logprobs_on(logits.device)
            if plain:
                return logprobs_of(logits, ids, temperature=1.0, entropy=entropy)
            where = early if self.min_new_tokens else None
            own = (self.temperature, self.stop_ids, where, entropy, self.entropy_grad)
            return logprobs_of(logits, ids, *own)

        again = partial(checkpoint, chunk, use_reentrant=False, preserve_rng_state=False)
        # Few are kept for the backward pass: they take little memory, and time to make again.
        part_of: Any = chunk if logits <= CHUNK_LOGITS // 8 else again
        each = (each.tensor_split(parts) for each in (states, chosen, early))
        found = [part_of(*part) for part in zip(*each, strict=True)]
        logprobs, nats = zip(*found, strict=True)
        told = rows.spread(torch.cat(nats)) if entropy else None
        return rows.spread(torch.cat(logprobs)), told


class _Hidden(tuple):
    """What a body returns, as far as heads look: hidden states (1, N, d), and None otherwise."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


@dataclass(frozen=True)
class _Body:
    """Stands where the model's body is; a part of the body (OPT's decoder) is it too."""

    hidden: Tensor

    def __getattr__(self, name: str) -> "_Body":
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Hidden:
        return _Hidden((self.hidden,))


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits (N, V) of `hidden` (N, d), outputs of the body of `model` (a plain one).

    Between the two architectures do more than multiply by a matrix: Gemma 2 caps the logits,
    Granite and Cohere scale them, GPT-J adds a bias, adapters may sit in the head. So this is the
    model's own forward pass, its body replaced by the hidden states at hand.
    """
    # The instance's own attributes hide the modules of these names, which stay registered: no
    # parameter moves, and hooks, wrappers and shards know nothing of it.
    body = dict.fromkeys(body_of(model), _Body(hidden.unsqueeze(0)))
    vars(model).update(body)
    try:
        return model().logits.squeeze(0)
    finally:
        for name in body:
            del vars(model)[name]


@cache
def logprobs_on(device: torch.device) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The faster of `token_logprobs` and `fused_logprobs` for logits on `device`."""
    fused = device.type == "cuda" and find_spec("triton") is not None
    return fused_logprobs if fused else token_logprobs


def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    stop_ids: Tensor | None = None,
    early: Tensor | None = None,
    entropy: bool = True,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of `ids` (...) and entropy (...), in nats, from logits (..., V).

    The distribution is softmax(logits / temperature), without `stop_ids` (S,) where `early` (which
    broadcasts to ids) is True; logits[t] predicts ids[t]. Without `entropy` None stands in its
    place. It carries a gradient only with `entropy_grad`: it keeps two tensors of the logits' size
    for the backward pass.
    """
    scaled = logits.float()
    if temperature != 1 or early is not None:
        scaled = scaled / temperature
    if stop_ids is not None and early is not None:
        stops = scaled.index_select(-1, stop_ids)
        stops = stops.masked_fill(early.unsqueeze(-1), EXCLUDED_LOGIT / temperature)
        # In place: the backward pass of a division by a number needs no output.
        scaled = scaled.index_copy_(-1, stop_ids, stops)
    # One pass over the logits, and one back; logsumexp and the logits' own gradient take several.
    logprobs = scaled.log_softmax(dim=-1)
    chosen = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    if not entropy:
        return chosen, None
    with torch.set_grad_enabled(entropy_grad):
        nats = -(logprobs.exp() * logprobs).sum(dim=-1)
    return chosen, nats


def fused_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    stop_ids: Tensor | None = None,
    early: Tensor | None = None,
    entropy: bool = True,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `token_logprobs` returns for logits (N, V), ids (N,) and early (N,), by kernels: the
    logits are read once in each direction, and nothing of their size is made but their gradient."""
    logprobs, nats = _Fused.apply(logits, ids, temperature, stop_ids, early)
    return logprobs, (nats if entropy_grad else nats.detach()) if entropy else None


class _Fused(torch.autograd.Function):
    """Log-probs and entropies (N,) of one distribution a row, both with gradients."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        from cores.models import kernels  # triton is not everywhere

        logits, ids, ctx.temperature, stop_ids, early = given
        logprobs, normalizers, entropies = kernels.forward(*given)
        ctx.save_for_backward(logits, ids, stop_ids, early, normalizers, entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logprob: Tensor, by_entropy: Tensor) -> tuple[Tensor | None, ...]:
        from cores.models import kernels

        # A tensor of its own: a head may need its logits, say behind a tanh, for its own gradient.
        slope = kernels.backward(by_logprob, by_entropy, ctx.temperature, *ctx.saved_tensors)
        return slope, None, None, None, None


class ScalarModel(nn.Module):
    """A stock `AutoModelForSequenceClassification` with one label, read at every token.

    The number at a token is the stock logit there minus `reward_mean` of the model's config, so
    that the score of a row is what any other tool computes from the saved folder, less that
    constant. With several labels, which are ratings 1 to so many, it is their expectation times
    `reward_scale`, minus `reward_mean`.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def mean(self) -> float:
        """`reward_mean` of the config as it is now: 0 where it has none."""
        return float(getattr(self.model.config, "reward_mean", 0.0))

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None,
        response_length: int = 0,
        images: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Values (B, L) in float32 of rows whose fields these are: see `Rows`."""
        inner: Any = plain_model(self.model)
        rows = Rows(ids, mask, response_length, images, packing)
        hidden = hidden_states(inner.base_model, rows)
        # In fp32 whatever the autocast: bf16 has 8 bits, and scores that close would tie.
        with torch.autocast(hidden.device.type, enabled=False):
            logits = inner.score(hidden.float())
            values = logits.squeeze(-1)
            if logits.shape[-1] > 1:
                values = getattr(inner.config, "reward_scale", 1.0) * expected_rating(logits)
            return rows.spread(values - self.mean)

    def scores(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Values at the last attended token of each row, (B,)."""
        return last_attended(self(ids, mask), mask)


@torch.no_grad()
def rescale(model: Any, mean: float, std: float) -> None:
    """Make scores of the stock `model` with this mean and deviation have 0 and 1: 1/std goes into
    the head, or for ratings into `config.reward_scale`, and what is then left of the mean into
    `config.reward_mean`."""
    if model.config.num_labels == 1:
        for name, parameter in model.score.named_parameters():  # peft keeps a copy
            if ".0." not in f".{name}":  # the first of two layers
                parameter.mul_(1.0 / std)
    else:
        model.config.reward_scale = getattr(model.config, "reward_scale", 1.0) * (1.0 / std)
    before = float(getattr(model.config, "reward_mean", 0.0))
    model.config.reward_mean = (before + mean) * (1.0 / std)
