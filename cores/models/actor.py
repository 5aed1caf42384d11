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
from cores.models.logprobs import logprobs_on

CHUNK_LOGITS = 2**26
"""Logits that exist at a time: 256 MiB in fp32, of 1,335 tokens with GPT-2's vocabulary and 441
with Qwen's. Fewer would make narrow matrix products, more would cost memory: the backward pass
holds about four tensors of this size, or three in the logits' dtype where kernels do it."""


def plain_model(model: Any) -> Any:
    """The Hugging Face model itself, its adapters active, where peft wraps it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


class Actor(nn.Module):
    """A causal language model seen as a policy over response tokens.

    In the first `min_new_tokens` tokens of a response `stop_ids` have probability 0, as in the
    sampling. Logits are made of `CHUNK_LOGITS` at a time, of response positions alone, and made
    again in the backward pass: nothing of shape (B, T, V) ever exists, but where it is small.
    """

    stop_ids: Tensor

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        temperature: float,
        stop_ids: Sequence[int] = (),
        min_new_tokens: int = 0,
        entropy_grad: bool = False,
    ) -> None:
        super().__init__()
        check_body(plain_model(model))
        self.model = model
        self.vocabulary: int = plain_model(model).config.get_text_config().vocab_size
        self.temperature = temperature
        self.register_buffer("stop_ids", torch.tensor(list(stop_ids)).long(), persistent=False)
        self.min_new_tokens = min_new_tokens
        self.entropy_grad = entropy_grad

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
        logits = self._most(len(states), ids.device) * self.vocabulary
        parts = max(1, -(-logits // CHUNK_LOGITS))
        # Few are kept for the backward pass: they take little memory, and time to make again.
        part_of = self._chunk if logits <= CHUNK_LOGITS // 8 else self._chunk_again
        found = [
            part_of(*part, plain, entropy)
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

    def _chunk_again(self, *args: Any) -> tuple[Tensor, Tensor | None]:
        """`_chunk`, which keeps nothing and is run again in the backward pass."""
        return checkpoint(self._chunk, *args, use_reentrant=False, preserve_rng_state=False)

    def _chunk(
        self, states: Tensor, ids: Tensor, early: Tensor, plain: bool, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs and entropy (N,) of ids (N,) from hidden states (N, d)."""
        logits = head_logits(plain_model(self.model), states)
        logprobs_of = logprobs_on(logits.device)
        if plain:
            return logprobs_of(logits, ids, temperature=1.0, entropy=entropy)
        return logprobs_of(
            logits,
            ids,
            self.temperature,
            self.stop_ids,
            early if self.min_new_tokens else None,
            entropy,
            self.entropy_grad,
        )

    def _most(self, tokens: int, device: torch.device) -> int:
        """`tokens`; of shards (ZeRO-3), which are put together for each part by all ranks or
        never, the most that a rank has."""
        if not hasattr(next(self.model.parameters()), "ds_id"):
            return tokens
        most = torch.tensor(tokens, device=device)
        torch.distributed.all_reduce(most, op=torch.distributed.ReduceOp.MAX)
        return int(most)
