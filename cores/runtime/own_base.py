"""A base of the reward model's own (`reward.base`), checked before it is used."""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cores.config import Config
from cores.errors import UserError
from cores.models import load_tokenizer
from cores.models.bases import check_base
from cores.models.images import reads_images
from cores.models.loading import check_length, check_scalar, load_config
from cores.runtime.elsewhere import fetched, source_of
from cores.runtime.parents import Parent, parent_facts

KEY = "reward.base"


def first_model(
    config: Config, parents: dict[str, Parent], tokenizer: PreTrainedTokenizerBase, hashed: bool
) -> tuple[Path, PretrainedConfig, dict[str, Any]]:
    """Folder and configuration of what stage 2 starts from, stage 1's model or `reward.base`, and
    the parents for stage.json; UserError if it can be no reward model."""
    folder, key, about = parents["sft"].folder, parents["sft"].key, parent_facts(parents)
    if config.reward.base is not None:
        key, (folder, about["base"]) = KEY, own_base(config.reward.base, tokenizer, hashed)
    check_scalar(model := load_config(folder), key)
    check_length(model, config.reward.max_length, "reward.max_length")
    return folder, model, about


def own_base(
    path: str, tokenizer: PreTrainedTokenizerBase, hashed: bool
) -> tuple[Path, dict[str, Any]]:
    """Folder of the model that `path` names, and its files or commit for stage.json; UserError if
    it is no language model whose tokenizer gives the ids of the policy's, `tokenizer`."""
    try:
        folder = fetched(path, None, KEY)
        theirs = load_tokenizer(folder)
        check_base(folder, base := load_config(folder), tokenizer)
        if base.is_encoder_decoder or reads_images(base):
            raise UserError(
                f"model.path: {path} reads more than one text (an encoder's, or images), and "
                "cannot judge replies of a policy that does not. Give a model that reads prompt "
                "and reply as one text."
            )
    except UserError as error:  # it names the key of stage 1's base
        raise UserError(str(error).replace("model.path", KEY)) from None
    ours, added = tokenizer.get_vocab(), tokenizer.get_added_vocab()
    known = theirs.get_vocab()
    unlike = [token for token, number in known.items() if ours.get(token) != number]
    unlike += [token for token in ours if token not in known and token not in added]
    if unlike:
        raise UserError(
            f"{KEY}: {path} has another tokenizer than the stage-1 model ({len(unlike)} tokens "
            f"differ, such as {min(unlike)!r}), and stage 3 hands the reward model the policy's "
            f"ids. Give a model of the same tokenizer, or train a reward model apart and set "
            "reward.path."
        )
    return folder, source_of(path, folder, hashed)
