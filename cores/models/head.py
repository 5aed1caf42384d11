"""A causal language model in two parts: the body, and the head that makes logits of hidden states.

Between hidden states and logits architectures do more than multiply by a matrix: Gemma 2 caps the
logits, Granite and Cohere scale them, GPT-J adds a bias, adapters may sit in the head. So the head
is the model's own forward pass, its body replaced by the hidden states at hand.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from cores.errors import UserError


class _Hidden(tuple):
    """What a body returns, as far as heads look: hidden states (1, N, d), and None otherwise."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[0] if name == "last_hidden_state" else None


class _Body:
    """Stands where the model's body is; a part of the body (OPT's decoder) is it too."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden

    def __getattr__(self, name: str) -> "_Body":
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Hidden:
        return _Hidden((self.hidden,))


def check_body(model: Any) -> None:
    """UserError if `model` (a plain Hugging Face one) is not made of a body and a head."""
    if model.base_model is model or model.get_output_embeddings() is None:
        raise UserError(
            f"model.path: {type(model).__name__} does not keep its head apart from its body, which "
            "stage 3 needs to make logits a few tokens at a time. Choose another architecture."
        )


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Logits (N, V) of `hidden` (N, d), outputs of the body of `model` (a plain one)."""
    with _body_replaced(model, _Body(hidden.unsqueeze(0))):
        return model().logits.squeeze(0)


@contextmanager
def _body_replaced(model: Any, body: _Body) -> Iterator[None]:
    """The instance's own attribute hides the module of that name, which stays registered: no
    parameter moves, and hooks, wrappers and shards know nothing of it."""
    name = model.base_model_prefix
    vars(model)[name] = body
    try:
        yield
    finally:
        del vars(model)[name]
