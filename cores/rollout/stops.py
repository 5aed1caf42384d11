"""What ends a reply before its last position: stop ids, and texts.

Shapes: B rows, T response tokens so far.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StopStringCriteria

from cores.config import PPOSection
from cores.errors import UserError


def stop_ids(ppo: PPOSection, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a reply: the end-of-sequence token and `ppo.stop_token_ids`."""
    eos: Any = tokenizer.eos_token_id
    return list(dict.fromkeys([eos, *ppo.stop_token_ids]))  # each once: gradients pass through


def text_matcher(ppo: PPOSection, tokenizer: PreTrainedTokenizerBase) -> StopStringCriteria | None:
    """Finds `ppo.stop_strings` where a row's newest token completes one; None without any.

    It knows every token's text or bytes, so a string may start and end within tokens. Raises
    UserError if no token of the vocabulary has a character of the strings.
    """
    if not ppo.stop_strings:
        return None
    try:
        return StopStringCriteria(tokenizer, ppo.stop_strings)
    except ValueError as error:
        raise UserError(
            f"ppo.stop_strings: {ppo.stop_strings} cannot be found in replies of this tokenizer "
            f"({error}). Choose texts that it can write, or name ids in ppo.stop_token_ids."
        ) from error


class TextStops(StoppingCriteria):
    """Ends each row of one `generate` at the token that completes a stop string; keeps where.

    Only the text of the reply counts: a string in the prompt, or one that begins there, ends
    nothing. Neither does one that is complete within the first `min_new_tokens` tokens, where stop
    ids cannot be sampled either; the reply goes on and the next one counts.
    """

    def __init__(
        self, matcher: StopStringCriteria, prompt_length: int, min_new_tokens: int
    ) -> None:
        self.matcher = matcher
        self.prompt_length = prompt_length
        self.min_new_tokens = min_new_tokens
        self.met: list[Tensor] = []
        """(B,) bool for each response token: whether it completed a string. Behind the end of a
        row it means nothing."""

    def __call__(self, input_ids: Tensor, scores: Any, **unused: Any) -> Tensor:
        """(B,) bool, at the newest token of `input_ids` (B, P + T)."""
        response = input_ids[:, self.prompt_length :]
        met = self.matcher(response, scores)
        if response.shape[1] <= self.min_new_tokens:
            met = torch.zeros_like(met)
        self.met.append(met)
        return met
