"""From models to folders in ordinary Hugging Face form, adapters merged where that is asked for."""

import json
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from cores.errors import ANEW, UserError
from cores.models.actor import plain_model
from cores.models.adapters import ADAPTER
from cores.models.folders import CLASSIFIER, SHOWN, nonfinite, reading
from cores.models.images import Images, image_ids
from cores.models.loading import load_as, load_config, load_tokenizer
from cores.models.vocabulary import NEW_PAD, as_saved, excluded_ids, saved_rows

SAMPLING = "temperature top_k top_p min_p top_h typical_p epsilon_cutoff eta_cutoff".split()


def save_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    merge: bool = True,
    images: Images = None,
) -> None:
    """Write weights (safetensors), config, generation config, tokenizer and what reads `images`, if
    anything does, to `folder`.

    Of a model with adapters: `folder`/adapter, and (if `merge`, and it can be) the weights of its
    base with the adapter merged into them. The base is read again, in fp32 whatever it was trained
    in.
    """
    if bad := nonfinite(model):
        raise UserError(
            f"{folder}: not written: NaN or infinite values in {len(bad)} tensors "
            f"({', '.join(bad[:SHOWN])}). Lower the learning rate, {ANEW}."
        )
    _settle_generation(plain_model(model), tokenizer)
    _settle_pad_row(plain_model(model), tokenizer)
    save_tokenizer(tokenizer, folder)
    if plain_model(model) is not model:
        model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)
        (folder / ADAPTER / "README.md").unlink()  # peft's empty model card
        _save_configs(plain_model(model), folder)
        if merge and not model.active_peft_config.is_prompt_learning:
            merge_adapter(folder, folder)
    else:
        with as_saved(model) as state:
            model.save_pretrained(str(folder), state_dict=state)
    if images is not None:
        images.save(folder)
    mode = (folder / "config.json").stat().st_mode
    for weights in folder.rglob("*.safetensors"):  # written for their owner alone
        weights.chmod(mode)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer's files so that transformers 4 reads them too: version 5 has other names
    for the class of plain tokenizer.json files and for the list of further special tokens, and says
    where it read them from. It knows the old names."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    for key in ("is_local", "local_files_only", "backend"):
        told.pop(key, None)
    if told.get("tokenizer_class") == "TokenizersBackend":
        told["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(told.get("extra_special_tokens"), list):
        told["additional_special_tokens"] = told.pop("extra_special_tokens")
    path.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_saving(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """UserError if `save_model` would fail after the training: all is tried now, the weights by
    their names, in a temporary folder."""
    inner: Any = plain_model(model)
    generation = inner.generation_config if inner.can_generate() else None
    _settle_generation(inner, tokenizer)
    one: dict[int, torch.Tensor] = {}  # tied tensors stay one
    state = inner.state_dict(keep_vars=True)
    names = {name: one.setdefault(id(t), torch.zeros(1)) for name, t in state.items()}
    with TemporaryDirectory() as folder, reading(inner.name_or_path, "model", "saved"):
        tokenizer.save_pretrained(folder)
        if plain_model(model) is not model:
            _save_configs(inner, Path(folder))
        else:
            inner.save_pretrained(folder, state_dict=names, save_original_format=False)
    if generation is not None:
        inner.generation_config = generation


def merge_adapter(folder: Path, out: Path) -> None:
    """Write the model that `folder`/adapter and its base make together to `out`, merged."""
    unset_hf_deepspeed_config()  # else ZeRO-3 would load the base as shards, on this rank alone
    scalar = CLASSIFIER in "".join(load_config(folder).architectures or [])
    save_model(load_as(folder, scalar, dropout=True), load_tokenizer(folder), out)


def _save_configs(model: Any, folder: Path) -> None:
    """What `save_pretrained` writes beside the weights, of the model as it is without adapters."""
    config = deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.get_text_config().vocab_size = saved_rows(model)
    config.save_pretrained(str(folder))
    if model.can_generate():
        model.generation_config.save_pretrained(str(folder))


@torch.no_grad()
def _settle_pad_row(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """In the head, the row of a pad token that we added is the mean of the rows as they are now: no
    training moves it, and an engine that does not know `suppress_tokens` sees it at the mean logit,
    which is below 1/V in probability."""
    row = tokenizer.pad_token_id
    added = tokenizer.pad_token == NEW_PAD and row >= tokenizer.vocab_size
    if added and model.can_generate():
        head = model.get_output_embeddings()
        for table in (head.weight, getattr(head, "bias", None)):
            if table is not None and table.shape[0] > row:
                table[row] = table[:row].mean(dim=0)


def _settle_generation(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """A causal model's generation config suppresses the ids that were excluded in training, so
    that other tools do not sample them either."""
    if model.can_generate():
        generation = GenerationConfig.from_dict(model.generation_config.to_dict())
        generation.pad_token_id = tokenizer.pad_token_id
        others, first = generation.eos_token_id, tokenizer.eos_token_id
        listed = others if isinstance(others, list) else [others] if others is not None else []
        if not all(isinstance(i, int) for i in listed):
            raise UserError(
                f"model.path: eos_token_id in its generation_config.json is {others!r}."
            )
        rest = [i for i in listed if i != first]
        generation.eos_token_id = [first, *rest] if rest else first
        images = sorted(image_ids(model.config, tokenizer))
        generation.suppress_tokens = excluded_ids(tokenizer, saved_rows(model)) + images
        if not generation.do_sample:
            # Some parents have sampling settings beside greedy decoding. They mean nothing there,
            # and the library refuses to save them.
            for name in SAMPLING:
                setattr(generation, name, None)
        model.generation_config = generation
