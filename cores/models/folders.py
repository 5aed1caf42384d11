"""Folders and hub ids of models: judged before a library reads them, its errors put in words; and
whether the weights read are all there, of the model's shapes, and numbers."""

import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from cores.errors import UserError
from cores.files import impostor, read_json

READ = (".json", ".safetensors", ".bin", ".model")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
OBJECTS = ("config.json", "generation_config.json", "tokenizer_config.json", *INDEXES)
"""Files that hold a JSON object. A broken generation_config.json transformers would pass over."""
MOST = {"layer": 1000, "position": 2**24, "num_labels": 2**16}
"""More of them no model has, and building such a one would take all time or memory."""
LAYERDROP = "layerdrop"
DROPOUTS = ("dropout", "dropout_rate", "_pdrop", LAYERDROP)
COUNTS = (
    "n_head", "num_heads", "num_attention_heads", "num_key_value_heads", "n_positions",
    "max_position_embeddings",
)  # fmt: skip
WHOLE = (
    "Give a whole model in Hugging Face form (config.json, *.safetensors, tokenizer.json); if this "
    "one should be whole, download or copy it again."
)
REMEDIES = {
    "ImportError": "Install what it names, or take out of config.json what asks for it.",
    "custom code": "No code of a folder is run: take a model that transformers has a class of.",
    "Weights only": "Its .bin holds more than weights, and is not run: convert it to safetensors.",
}
SHOWN = 3
"""Names that an error gives before it counts."""
CLASSIFIER = "SequenceClassification"
STALE = re.compile(
    r"(^|\.)(attn|attention)\.(masked_)?bias$|\.rotary_emb\.inv_freq$|(^|\.)position_ids$"
)
"""Buffers that old checkpoints hold and that today's classes compute."""
OLD_HEAD = re.compile(r"^(lm_head|embed_out)\.")


def place(path: str | Path) -> str:
    """The folder, `~` written out, or the hub id; UserError if it is neither, or if its files are
    none that a library should be let read."""
    looks_local = str(path).startswith((".", "/", "~")) or str(path).count("/") > 1
    folder = Path(path).expanduser()
    try:
        if folder.is_dir():
            _check_files(folder)
        elif looks_local or folder.exists():
            raise UserError(
                f"model.path: there is no folder {path}. Give a folder in Hugging Face form, or a "
                "hub id."
            )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). {WHOLE}") from None
    return str(folder)


def check_numbers(path: str | Path) -> None:
    """UserError if weights in a folder's safetensors files are whole numbers: an unsaid
    quantisation, which libraries read as if they were the weights themselves."""
    for file in sorted(Path(path).expanduser().glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # it is no dict
                kind = tensors.get_slice(name).get_dtype()
                if name.endswith(".weight") and kind[0] in "IU":
                    raise UserError(
                        f"{file}: {name} holds {kind}, and whole numbers cannot be trained: "
                        "quantised weights, perhaps, of which config.json says nothing. Give the "
                        "model that it was made from; model.quantization holds it in few bits."
                    )


def _check_files(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        if file.suffix in READ and not (file.is_file() and os.access(file, os.R_OK)):
            raise UserError(f"{file}: no file that can be read. {WHOLE}")
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder}: has an adapter (adapter_config.json), and stages start from whole models. "
            "Merge it into its base first (peft's merge_and_unload) and give that folder."
        )
    if (folder / "state.json").exists() and not (folder / "config.json").exists():
        raise UserError(
            f"{folder}: is of an unfinished run, and no model. scripts/export.py makes a model of "
            "any checkpoint (docs/reliability.md): give that folder."
        )
    found = {n: read_json(folder / n, WHOLE, False) for n in OBJECTS if (folder / n).exists()}
    for index in found.keys() & set(INDEXES):
        shards = found[index].get("weight_map")
        names = set(map(str, shards.values())) if isinstance(shards, dict) else {""}
        for name in sorted(names):
            if Path(name).name != name or not (folder / name).is_file():
                raise UserError(f"{folder / index}: there is no file {name!r} beside it. {WHOLE}")


def check_config(path: str | Path, raw: dict[str, Any]) -> None:
    """UserError for a config.json that must not be built, however well it might load."""
    if raw.get("quantization_config"):
        raise UserError(
            f"{path}: its weights are quantised (quantization_config in config.json), and those "
            "cannot be trained. Give the model that it was made from; model.quantization holds it "
            "in few bits."
        )
    names = raw.get("architectures") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{path}: architectures in config.json is no list of names. {WHOLE}")
    families, kind = _families(), str(raw.get("model_type"))
    others = [name for name in names if kind not in families.get(name, {kind})]
    if others and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(
            f"{path}: model_type {kind} and architectures {', '.join(others)} in config.json are "
            f"of two families. {WHOLE}"
        )
    inner = [part for part in raw.values() if isinstance(part, dict)]
    for key, value in (item for part in (raw, *inner) for item in part.items()):
        most = next((most for word, most in MOST.items() if word in key), math.inf)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        wrong = number and (value > most or (key in COUNTS and value < 1))
        wrong |= number and key.endswith(DROPOUTS) and not 0 <= value < 1
        wrong |= key.endswith("dtype") and not isinstance(value, str | None)
        if wrong:
            raise UserError(f"{path}: no model has {key} = {value} (config.json). {WHOLE}")


@cache
def _families() -> dict[str, set[str]]:
    """Names of transformers' classes to the model types that have them."""
    found: dict[str, set[str]] = {}
    for mapping in (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ):
        for kind, names in mapping.items():
            for name in names if isinstance(names, tuple) else (names,):
                found.setdefault(name, set()).add(kind)
    return found


@contextmanager
def reading(path: str | Path, what: str, done: str = "loaded") -> Iterator[None]:
    """A library's own work on the folder or hub id `path`: whatever it raises becomes a UserError.

    Only calls of libraries belong inside: an error of ours must keep its traceback.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # by file and library anything from KeyError to RecursionError
        first = " ".join(" ".join(str(error).split("\n")[:2]).split())[:300]
        folder = Path(path).expanduser()
        if isinstance(error, OSError) and done == "loaded" and not folder.is_dir():
            raise UserError(
                f"model.path: {str(path)!r} is no local folder, and its {what} could not be "
                "fetched from the Hugging Face hub. Check the name and the network, or download "
                "the model elsewhere and give its folder: --model.path FOLDER."
            ) from None
        reason = (folder.is_dir() and _culprit(folder)) or f"{type(error).__name__}: {first}"
        said = next((words for words in REMEDIES if words in f"{reason} {error}"), "")
        remedy = REMEDIES.get(said, WHOLE if done == "loaded" else "Take another model.")
        raise UserError(
            f"{path}: its {what} cannot be {done}: {reason.rstrip('. ')}. {remedy}"
        ) from None


def _culprit(folder: Path) -> str | None:
    """The first file that is no file of a model, and what it is instead."""
    for file in sorted(f for f in folder.iterdir() if f.suffix in READ):
        if other := impostor(file):
            return f"{file.name} is {other}"
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt"):
                    pass
            except SafetensorError as error:
                return f"{file.name} is cut off or no safetensors file ({error})"
    return None


@torch.no_grad()
def nonfinite(model: nn.Module) -> list[str]:
    """Names of the parameters with NaN or infinite values; of shards (ZeRO-3) this rank's part."""
    names = []
    for name, parameter in model.named_parameters():
        values = getattr(parameter, "ds_tensor", parameter)
        if values.is_floating_point() and values.numel() and not values.is_meta:
            low, high = torch.aminmax(values)  # NaN is the extreme of whatever it is among
            if not (math.isfinite(low) and math.isfinite(high)):
                names.append(name)
    return names


def check_finite(path: Any, model: nn.Module) -> None:
    """UserError if weights that were just read from `path` are no numbers."""
    bad = nonfinite(model)
    mean = getattr(model.config, "reward_mean", 0.0)
    if not (isinstance(mean, (int, float)) and math.isfinite(mean)):
        bad.append("reward_mean (config.json)")
    if bad:
        raise UserError(
            f"{path}: NaN or infinite values in {_some(bad)}. The model was bad before this run: "
            "give another checkpoint, or train this one again with a lower learning rate."
        )


def check_tensors(path: Any, kind: type, info: dict[str, Any], trained_as: list[str]) -> None:
    """UserError unless the checkpoint `path` has every tensor of the class `kind`, and no other.

    `info` is transformers' loading info. `trained_as`: config.json's architectures. A classifier
    that starts from a causal model takes a new head for the old one.
    """
    new_head = CLASSIFIER in kind.__name__ and CLASSIFIER not in "".join(trained_as)
    missing = {n for n in info["missing_keys"] if not (new_head and n.startswith("score."))}
    surplus = {n for n in info["unexpected_keys"] if not STALE.search(n)}
    if new_head:
        surplus = {n for n in surplus if not OLD_HEAD.search(n)}
    shapes = [f"{n} ({list(a)}, not {list(b)})" for n, a, b in sorted(info["mismatched_keys"])]
    parts = [f"without {_some(missing)}"] if missing else []
    parts += [f"with {_some(surplus)}, of which it has no use"] if surplus else []
    parts += [f"with {_some(shapes)}"] if shapes else []
    if not parts:
        return
    what = f"its weights do not fit the {kind.__name__} of its config.json"
    remedy = "Give the config.json that belongs to the weights, or download the model again."
    if trained_as and not new_head and kind.__name__ not in trained_as:
        judge = ", a reward model perhaps," if CLASSIFIER in "".join(trained_as) else ""
        what = f"it is a {', '.join(trained_as)}{judge} and no {kind.__name__}"
        remedy = f"Give a {kind.__name__}."
    if wrapped := _prefix(missing, surplus):
        remedy = (
            f"Every name begins with `{wrapped}`: it was saved from a wrapped model "
            "(torch.compile, DDP). Take the prefix from the names, or save the inner model."
        )
    raise UserError(f"{path}: {what}: {' and '.join(parts)}. {remedy}")


def _some(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def _prefix(missing: set[str], surplus: set[str]) -> str:
    """What stands before every name of the checkpoint, if that is all that is wrong."""
    found = (o.removesuffix(n) for n in sorted(missing) for o in surplus if o.endswith("." + n))
    return next((prefix for prefix in found if all(o.startswith(prefix) for o in surplus)), "")
