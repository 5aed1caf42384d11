"""Low-rank adapters through peft: adding them, leaving them in peft's own form, reading them back.

A stage's folder has its adapter under adapter/, and unless `lora.merge` is off the merged model
beside it. Without that the adapter's base, which adapter_config.json names, is needed to load it.
"""

from pathlib import Path

from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from cores.config import LoraSection
from cores.errors import UserError
from cores.models.folders import WHOLE, reading

ADAPTER = "adapter"
MOST_RANK = 2**14


def add_lora(model: PreTrainedModel, section: LoraSection, task: TaskType, key: str) -> PeftModel:
    """Wrap `model` in adapters; UserError naming `key` if no layer has the names given.

    peft leaves the head out of "all-linear", and trains that of a classification model in full.
    """
    config = LoraConfig(
        task_type=task,
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=section.dropout,
        target_modules=section.target_modules or "all-linear",
        # GPT-2's linear layer has a weight (in, out); a quantised one knows that it was one.
        fan_in_fan_out=any(
            isinstance(module, Conv1D) or getattr(module, "source_cls", None) is Conv1D
            for module in model.modules()
        ),
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        if "target" not in str(error).lower():
            raise
        raise UserError(
            f"{key}.target_modules: {section.target_modules} names no layer of "
            f"{type(model).__name__}; leave the key out to adapt every linear layer."
        ) from None


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter, and a classification model's head, to `folder`/adapter."""
    model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)
    (folder / ADAPTER / "README.md").unlink()  # peft's empty model card


def lone_adapter(folder: str | Path) -> LoraConfig | None:
    """The adapter's configuration, where `folder` has an adapter and no weights; else None."""
    place = Path(folder) / ADAPTER
    if not (place / "adapter_config.json").is_file() or any(Path(folder).glob("*.safetensors")):
        return None
    with reading(place, "adapter"):
        config = LoraConfig.from_pretrained(str(place))
    if not isinstance(config, LoraConfig) or not 0 < config.r <= MOST_RANK:
        raise UserError(f"{place}: no LoRA adapter of a rank from 1 to {MOST_RANK}. {WHOLE}")
    return config


def base_of(folder: str | Path, adapter: LoraConfig) -> str:
    """The folder or hub id of the model that an adapter belongs to; UserError if it is gone."""
    base = str(adapter.base_model_name_or_path)
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise UserError(
            f"{folder}: it holds an adapter alone, to the model in {base}, and there is no such "
            "folder any more. Put the model back there, or train the stage again with its "
            "lora.merge at true, which needs no base afterwards."
        )
    return base


def merged(model: PreTrainedModel, folder: str | Path) -> PreTrainedModel:
    """`model` with `folder`/adapter merged into its weights.

    An adapter of a causal model goes onto a classification model too: layers have the same names.
    """
    place = str(Path(folder) / ADAPTER)
    with reading(place, "adapter"):
        config = LoraConfig.from_pretrained(place)
        config.task_type = None  # or peft wants the class it was trained on
        both = PeftModel.from_pretrained(model, place, config=config)
        theirs = load_peft_weights(place, device="cpu").keys()
        ours = get_peft_model_state_dict(both, save_embedding_layers=False).keys()
    if theirs ^ ours:  # peft would start what is missing at random
        raise UserError(f"{place}: its weights are not those of its adapter_config.json. {WHOLE}")
    return both.merge_and_unload().requires_grad_(True)  # peft froze it
