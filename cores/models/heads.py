"""Reward models that no stock class gives: of families that transformers has no classification
class for, with a head of two layers, with ratings in bins.

Shapes: d width of the model, K numbers that the head gives.
"""

import inspect
from copy import deepcopy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from cores.models.folders import OLD_HEAD
from cores.models.images import reads_images

JUDGES_IMAGES = ("llava",)
"""Model types of bases that read images, whose body is one model for a head to stand behind."""
LAYERS = "reward_head_layers"
"""In config.json of a model with another head than the stock one."""


def expected_rating(logits: Tensor) -> Tensor:
    """The mean of the ratings 1 .. K under softmax(logits), (...) of logits (..., K)."""
    ratings = torch.arange(1, logits.shape[-1] + 1, device=logits.device, dtype=logits.dtype)
    return (logits.softmax(dim=-1) * ratings).sum(dim=-1)


def class_of(config: PretrainedConfig, scalar: bool) -> Any:
    """What loads a model of `config`: a language model, or where `scalar` a reward model."""
    if scalar:  # without any transformers' own, whose error names the configuration
        return scalar_class(config) or AutoModelForSequenceClassification
    if reads_images(config):
        return AutoModelForImageTextToText
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def scalar_class(config: PretrainedConfig) -> Any:
    """What loads a reward model of `config`: transformers' own, or where that has no class with the
    head that the config tells, a class of ours; None where there can be none."""
    auto: Any = AutoModelForSequenceClassification
    family: Any = type(config)
    stock, two = _stock(config), getattr(config, LAYERS, 1) > 1
    if stock and not two:
        return auto
    made = judge_of if config.is_encoder_decoder else classifier_of
    found = auto._model_mapping[family] if stock else made(family)
    return two_layered(found) if two and found is not None else found


def _stock(config: PretrainedConfig) -> bool:
    """Whether transformers has a class that reads the last token."""
    known = type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    return known and not config.is_encoder_decoder


def built(kind: Any, config: PretrainedConfig, **options: Any) -> Any:
    """A model of `config`, of the class that loads it, with weights that its family begins with."""
    if issubclass(kind, PreTrainedModel):
        return kind._from_config(deepcopy(config), **options)
    return kind.from_config(deepcopy(config), trust_remote_code=False, **options)


@cache
def classifier_of(family: type[PretrainedConfig]) -> Any:
    """A sequence-classification class for `family`, a causal one without a stock class, or one that
    reads images: its body under its own name, and `score`. None where that is one of several, keeps
    a state from token to token, which padding would enter, takes no mask or no positions, or where
    a stock class of another family has the name."""
    sees = family.model_type in JUDGES_IMAGES
    models = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if sees else MODEL_FOR_CAUSAL_LM_MAPPING
    if family not in models or family not in MODEL_MAPPING:
        return None
    causal: Any = models[family]
    body: Any = MODEL_MAPPING[family]
    task = "ForConditionalGeneration" if sees else "ForCausalLM"
    name = causal.__name__.replace(task, "ForSequenceClassification")
    if name in (causal.__name__, *MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.values()):
        return None
    takes = inspect.signature(body.forward).parameters.keys()
    parts = not sees and family.sub_configs
    unfit = parts or getattr(causal, "_is_stateful", False)
    if unfit or not {"attention_mask", "position_ids"} <= takes:
        return None
    parents = [kind for kind in body.__mro__ if issubclass(kind, PreTrainedModel)]
    names = {"base_model_prefix": causal.base_model_prefix, "__module__": causal.__module__}
    return type(name, (GenericForSequenceClassification, parents[-2]), names)


@cache
def judge_of(family: type[PretrainedConfig]) -> Any:
    """A sequence-classification class for an encoder-decoder `family`: its body, and `score` over
    the decoder's states. The stock ones give the decoder the prompt once more, and read it where
    that has its end-of-sequence tokens, none of which is the reply's."""
    body: Any = MODEL_MAPPING[family]

    def init(self: Any, config: Any) -> None:
        body.__init__(self, config)
        self.num_labels = config.num_labels
        self.score = nn.Linear(self.shared.embedding_dim, config.num_labels, bias=False)
        self.post_init()

    def forward(self: Any, decoder_attention_mask: torch.Tensor, **inputs: Any) -> Any:
        """Logits (B, K) behind the last token that `decoder_attention_mask` (B, T + 1) shows."""
        states = body.forward(self, decoder_attention_mask=decoder_attention_mask, **inputs)
        last = decoder_attention_mask.sum(dim=1) - 1
        own = states.last_hidden_state[torch.arange(len(last), device=last.device), last]
        return SequenceClassifierOutput(logits=self.score(own))

    name = body.__name__.replace("Model", "DecoderForSequenceClassification")
    return type(name, (body,), {"__init__": init, "forward": forward, "__module__": __name__})


def has_classifier(config: PretrainedConfig) -> bool:
    """Whether there is a classification class with the head `score`, of transformers or of ours,
    into which the language model's weights go by their names; reads and makes no weights."""
    if (kind := scalar_class(config)) is None:
        return False
    with torch.device("meta"):  # shapes alone: no memory, no time
        model = built(kind, config)
        if not hasattr(model, "score"):
            return False
        if _stock(config):
            return True
        policy = built(class_of(config, scalar=False), config)
    theirs = {n: t.shape for n, t in policy.state_dict().items() if not OLD_HEAD.search(n)}
    ours = {n: t.shape for n, t in model.state_dict().items() if not n.startswith("score.")}
    return ours == theirs


@cache
def two_layered(stock: type) -> type:
    """The classification class `stock` with linear, ReLU, linear in the place of its head."""

    def init(self: Any, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        stock.__init__(self, config, *args, **kwargs)  # type: ignore[misc]
        width = self.score.in_features
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), self.score)
        self.post_init()

    return type(stock.__name__, (stock,), {"__init__": init, "__module__": stock.__module__})
