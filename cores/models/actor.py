"""The policy: log-probs of response tokens under a causal language model.

Shapes: B rows, L = P + T tokens a row (prompt then response), V vocabulary, d width of the model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from cores.models.body import hidden_states
from cores.models.head import check_body, head_logits
from cores.models.vocabulary import EXCLUDED_LOGIT

CHUNK_LOGITS = 2**26
"""Logits that exist at a time: 256 MiB in fp32, of 1,335 tokens with GPT-2's vocabulary and 441
with Qwen's. Fewer would make narrow matrix products, more would cost memory: the backward pass
holds about four tensors of this size."""


def plain_model(model: Any) -> Any:
    """The Hugging Face model itself, its adapters active, where peft wraps it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


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


class Actor(nn.Module):
    """A causal language model seen as a policy over response tokens.

    In the first `min_new_tokens` tokens of a response `stop_ids` have probability 0, as in the
    sampling. Logits are made of `CHUNK_LOGITS` at a time, of response positions alone, and made
    again in the backward pass: nothing of shape (B, T, V) ever exists.
    """

    stop_ids: Tensor

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        temperature: float,
        stop_ids: Sequence[int] = (),
        min_new_tokens: int = 0,
        entropy_grad: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__()
        check_body(plain_model(model))
        self.model = model
        self.temperature = temperature
        self.register_buffer("stop_ids", torch.tensor(list(stop_ids)).long(), persistent=False)
        self.min_new_tokens = min_new_tokens
        self.entropy_grad = entropy_grad
        self.token_logprobs = torch.compile(token_logprobs) if compiled else token_logprobs

    def forward(
        self,
        ids: Tensor,
        mask: Tensor | None,
        response_length: int,
        plain: bool = False,
        entropy: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs and entropy (B, T) of the last `response_length` of ids (B, L), mask (B, L).

        mask: None where no row has padding.

        Responses begin at the same column in every row (prompts are padded on the left), so column
        t is response token t. `plain`: the language model's own distribution, for texts that were
        not sampled: temperature 1, stop ids anywhere, entropy without a gradient. `entropy`: else
        None stands in its place, which saves a pass or two over the logits.
        """
        body: Any = plain_model(self.model).base_model
        states = hidden_states(body, ids, mask)
        states = states[:, -response_length - 1 : -1].flatten(0, 1)
        chosen = ids[:, -response_length:]
        columns = torch.arange(response_length, device=ids.device)
        early = (columns < self.min_new_tokens).expand_as(chosen).flatten()
        parts = self._chunks(states.shape[0], ids.device)
        found = [
            checkpoint(
                self._chunk, *part, plain, entropy, use_reentrant=False, preserve_rng_state=False
            )
            for part in zip(
                states.tensor_split(parts),
                chosen.flatten().tensor_split(parts),
                early.tensor_split(parts),
                strict=True,
            )
        ]
        logprobs, nats = zip(*found, strict=True)
        return torch.cat(logprobs).view_as(chosen), (
            torch.cat(nats).view_as(chosen) if entropy else None
        )

    def _chunk(
        self, states: Tensor, ids: Tensor, early: Tensor, plain: bool, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs and entropy (N,) of ids (N,) from hidden states (N, d)."""
        logits = head_logits(plain_model(self.model), states)
        if plain:
            return self.token_logprobs(logits, ids, temperature=1.0, entropy=entropy)
        return self.token_logprobs(
            logits,
            ids,
            self.temperature,
            self.stop_ids,
            early if self.min_new_tokens else None,
            entropy,
            self.entropy_grad,
        )

    def _chunks(self, tokens: int, device: torch.device) -> int:
        """Number of parts of `tokens` tokens."""
        config = plain_model(self.model).config.get_text_config()
        parts = max(1, -(-tokens * config.vocab_size // CHUNK_LOGITS))
        if not hasattr(next(self.model.parameters()), "ds_id"):
            return parts
        # Shards (ZeRO-3) are put together for each part, by all ranks or never.
        most = torch.tensor(parts, device=device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return int(most)
