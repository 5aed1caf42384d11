"""Sizes of models, by their config.json: widths, weights, what a layer keeps; lengths of rows. No
torch.

Shapes: d width of the model, f inner width of its feed-forward layers, V rows of the vocabulary.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from cores.config import LoraSection
from cores.errors import UserError, readable

ROWS = 64
"""Rows of the vocabulary in memory are a multiple of it (cores/models/vocabulary.py)."""
LLAMA = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
OPT = "q_proj k_proj v_proj out_proj fc1 fc2"
NEOX = "query_key_value dense dense_h_to_4h dense_4h_to_h"


@dataclass(frozen=True)
class Kind:
    """What model types differ in."""

    linears: str
    """Names of a layer's linear maps: query, key and value or the three in one, output, then two of
    the feed-forward part, or three of a gated one."""
    tied: bool
    """Whether the head is the embedding, where config.json does not say."""
    biases: str = ""
    """Letters of what has a bias: q (query, key, value), o (output), m (feed-forward)."""
    activation: str = "gelu"
    norm: int = 2
    """Vectors of a norm: weight, and bias where there is one."""


KINDS = {
    "gpt2": Kind("c_attn c_proj c_fc c_proj", True, "qom"),
    "opt": Kind(OPT, True, "qom", "relu"),
    "gpt_neox": Kind(NEOX, False, "qom"),
    "bloom": Kind(NEOX, True, "qom"),
    **dict.fromkeys(("llama", "mistral", "qwen3"), Kind(LLAMA, False, "", "silu", 1)),
    "qwen2": Kind(LLAMA, False, "q", "silu", 1),
    "gemma": Kind(LLAMA, True, "", "silu", 1),
}
LIKE_LLAMA = ("granite", "cohere", "olmo", "olmo2", "stablelm", "gemma2", "phi3", "glm", "glm4")
"""Taken for a Llama of their numbers, which a line says."""
BYTES = {"bf16": 2.0, "8bit": 1.01, "4bit": 0.516}
"""Of a frozen linear weight: 4 bits have a scale of 8 bits for 64 weights, and one for 256 of
those (Dettmers et al. 2023)."""
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
NAMES = {
    "layers": ("num_hidden_layers", "n_layer"),
    "width": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
}


@dataclass(frozen=True)
class Shape:
    """A decoder's numbers."""

    family: str
    """model_type."""
    kind: Kind
    layers: int
    width: int
    heads: int
    queries: int
    """Width of all queries of a layer."""
    keys: int
    """Width of all keys of a layer."""
    inner: int
    vocabulary: int
    """Rows in memory."""
    embedded: int
    """Width of embeddings and head; another than d in OPT-350M alone."""
    positions: int
    """Rows of learned positions; 0 for others."""
    tied: bool
    assumed: bool = False
    """Whether it is only taken for a Llama."""

    @cached_property
    def linears(self) -> list[tuple[str, int, int]]:
        """Name, inputs and outputs of each linear map of a layer."""
        d, q, k, f = self.width, self.queries, self.keys, self.inner
        attention = [(d, q), (d, k), (d, k)] if self.separate else [(d, q + 2 * k)]
        ups = [(d, f)] * (2 if self.gated else 1)
        sizes = [*attention, (q, d), *ups, (f, d)]
        return [(n, *size) for n, size in zip(self.kind.linears.split(), sizes, strict=True)]

    @property
    def separate(self) -> bool:
        """Whether query, key and value are three maps."""
        return self.kind.linears.startswith("q_proj")

    @property
    def gated(self) -> bool:
        """Whether the feed-forward part has a gate."""
        return self.kind.activation == "silu"

    @property
    def ours(self) -> bool:
        """Whether norms and gates are ours: `cores.models.layers.FAMILIES`."""
        return self.family in ("llama", "mistral", "qwen2", "qwen3")

    @property
    def layer(self) -> int:
        """Weights of a layer's linear maps."""
        return sum(inputs * outputs for _, inputs, outputs in self.linears)

    @property
    def body(self) -> int:
        """Weights of all linear maps but the head."""
        between = 2 * self.width * self.embedded if self.embedded != self.width else 0
        return self.layers * self.layer + between

    @property
    def head(self) -> int:
        """Weights of the output layer, which may be the embedding's."""
        return self.vocabulary * self.embedded

    @property
    def rest(self) -> int:
        """Positions, norms and biases."""
        d, where = self.width, self.kind.biases
        biases = (self.queries + 2 * self.keys) * ("q" in where) + d * ("o" in where)
        biases += (self.inner + d) * ("m" in where)
        if self.family == "qwen3":
            biases += 2 * self.queries // self.heads  # norms of queries and keys
        norms = self.kind.norm * d
        last = 2 * norms if self.family == "bloom" else norms  # one behind its embeddings, too
        return self.positions * d + self.layers * (2 * norms + biases) + last

    def parameters(self, scalar: bool = False) -> int:
        """All of them, each once; `scalar`: with a head of one number in place of the logits'."""
        untied = 0 if scalar or self.tied else self.head
        return self.body + self.head + self.rest + untied + (self.embedded if scalar else 0)

    def adapters(self, rank: int, targets: list[str] | None) -> int:
        """Weights of adapters of this rank on the maps of these names; None: on all."""
        chosen = [m for m in self.linears if targets is None or m[0] in targets]
        return self.layers * sum(rank * (inputs + outputs) for _, inputs, outputs in chosen)


def shape_from(config: Mapping[str, Any], where: str) -> Shape:
    """Of the content of a config.json; UserError naming `where` if its family is not known."""
    family = str(config.get("model_type", "(missing)"))
    if family not in KINDS and family not in LIKE_LLAMA:
        raise UserError(
            f"{where}: model_type {family} is none that memory and time are counted for: "
            f"{', '.join(KINDS)}, and taken for Llamas of their numbers {', '.join(LIKE_LLAMA)}. "
            "The stages themselves may run it (docs/models.md)."
        )
    kind = KINDS.get(family, KINDS["llama"])

    def number(name: str, *keys: str, default: int | None = None) -> int:
        value = next((config[key] for key in keys if config.get(key) is not None), default)
        if type(value) is not int or value < 1:
            raise UserError(
                f"{where}: {' or '.join(keys)} ({name}) is {value!r}; it must be a whole number "
                "above 0. Give the config.json that belongs to the model."
            )
        return value

    found = {name: number(name, *keys) for name, keys in NAMES.items()}
    width, heads = found["width"], found["heads"]
    head = number("head_dim", "head_dim", default=max(1, width // heads))
    groups = number("num_key_value_heads", "num_key_value_heads", default=heads)
    if heads % groups or (config.get("head_dim") is None and width % heads):
        what = f"{heads} heads do not fit a width of {width} and {groups} heads of keys"
        raise UserError(f"{where}: {what}. Give the config.json that belongs to the model.")
    positions = {"gpt2": config.get("n_positions", 1024)}.get(family, 0)
    if family == "opt":
        positions = config.get("max_position_embeddings", 2048) + 2  # two rows before the first
    inner = number("inner", "intermediate_size", "ffn_dim", "n_inner", default=4 * width)
    tied = config.get("tie_word_embeddings")
    return Shape(
        family=family,
        kind=kind,
        layers=found["layers"],
        width=width,
        heads=heads,
        queries=heads * head,
        keys=groups * head,
        inner=inner,
        vocabulary=-(-found["vocabulary"] // ROWS) * ROWS,
        embedded=number("embeddings", "word_embed_proj_dim", default=width),
        positions=positions,
        tied=kind.tied if tied is None else bool(tied),
        assumed=family in LIKE_LLAMA,
    )


def read_shape(path: str, key: str) -> Shape:
    """Of the model in a folder, or of a hub id that is in the local cache; `key` gave it."""
    file = Path(path).expanduser() / "config.json"
    if not file.is_file():
        from huggingface_hub import try_to_load_from_cache

        hub = HUB_ID.fullmatch(path) and not file.parent.exists()
        cached = try_to_load_from_cache(path, "config.json") if hub else None
        if not isinstance(cached, str):
            raise UserError(
                f"{key}: there is no {file}, and no model {path} in the local cache of the hub. "
                "Name a folder with the model's config.json; it needs nothing else."
            )
        file = Path(cached)
    with readable(str(file)):
        text = file.read_bytes()
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); copy it again.") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: must be an object with the numbers of a model; copy it again.")
    return shape_from(config, str(file))


def weights(shape: Shape, scalar: bool, how: str) -> float:
    """Bytes of a model's weights, frozen ones held in bf16, 8bit or 4bit; `none`: fp32. Linear maps
    alone are held in fewer bits, and in bf16 the head too, with a weight of its own."""
    if how == "none":
        return 4.0 * shape.parameters(scalar)
    head = 0 if scalar else shape.head
    if how == "bf16":
        return 2.0 * (shape.body + head) + 4.0 * (shape.head + shape.rest)
    untied = 0 if shape.tied else head
    return BYTES[how] * shape.body + 4.0 * (shape.head + untied + shape.rest)


def kept(shape: Shape, half: int, lora: bool) -> float:
    """Bytes that a layer keeps of a token for its backward pass, on a GPU.

    Norms keep their fp32 inputs. Under autocast each map casts its input for itself, where our own
    norms have not (`cores/models/layers.py`); attention keeps queries, keys, values and outputs;
    GELU its input and output, ReLU its output, a gate its two inputs and their product. Adapters
    cast their inputs again, each for itself.
    """
    d, q, k, f = shape.width, shape.queries, shape.keys, shape.inner
    casts = (3 if shape.separate else 1) + (2 if shape.gated else 1)
    if half == 4 or (shape.ours and not lora):  # one of each norm
        casts = 2
    inner = {"silu": 3, "gelu": 2, "relu": 1}[shape.kind.activation] * f
    copies = q + (f if inner == f else 0) if lora and half == 2 else 0
    own = 6 * (q + k) if shape.family == "qwen3" else 0  # norms of queries and keys
    return 8 * d + half * (casts * d + 2 * (q + k) + inner + copies) + own


def passing(shape: Shape, half: int) -> float:
    """Bytes of a token on its way through a layer, where nothing is kept: states in fp32, and the
    wider of attention and feed-forward part."""
    d, q, f = shape.width, shape.queries, shape.inner
    return 20 * d + half * max(4 * q, d + (3 if shape.gated else 2) * f)


def trained(shape: Shape, scalar: bool, lora: LoraSection) -> int:
    """Weights that a role trains."""
    if lora.rank:
        return shape.adapters(lora.rank, lora.target_modules) + scalar * shape.embedded
    return shape.parameters(scalar)


@dataclass(frozen=True)
class Texts:
    """Tokens of rows."""

    prompt: int
    longest: int
    """Reply at most."""
    mean: float
    """Reply on average, stopped by chance at each token up to the longest."""

    @property
    def stops(self) -> float:
        """Chance at each token to be the last, by halving: sum of (1 - p)^t for t < longest."""
        if self.mean >= self.longest:
            return 0.0
        low, high = 0.0, 1.0
        for _ in range(60):
            p = (low + high) / 2
            longer = (1 - (1 - p) ** self.longest) / p > self.mean
            low, high = (p, high) if longer else (low, p)
        return low

    @cache  # noqa: B019 - a plan asks for few
    def lengths(self, count: int) -> list[int]:
        """Of so many replies, the longest first: the middles of equal shares of all."""
        if not (p := self.stops):
            return [self.longest] * count
        ends = (math.ceil(math.log((i + 0.5) / count) / math.log(1 - p)) for i in range(count))
        return [max(1, min(self.longest, end)) for end in ends]
