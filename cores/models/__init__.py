"""Thin wrappers over Hugging Face classes: a policy, and a scalar head for reward and critic."""

from cores.models.actor import Actor, ScalarModel
from cores.models.adapters import add_lora
from cores.models.loading import load_policy, load_scalar, load_tokenizer
from cores.models.saving import check_saving, save_model
from cores.models.vocabulary import settle_pad_token, settle_tokens

__all__ = [
    "Actor",
    "ScalarModel",
    "add_lora",
    "check_saving",
    "load_policy",
    "load_scalar",
    "load_tokenizer",
    "save_model",
    "settle_pad_token",
    "settle_tokens",
]
