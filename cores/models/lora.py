"""Low-rank adapters through peft: adding them, and leaving both merged weights and the adapter."""

from pathlib import Path

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from cores.config import LoraSection
from cores.errors import UserError

ADAPTER = "adapter"


def lora_config(section: LoraSection, task: TaskType) -> LoraConfig:
    """peft's configuration of `section`; peft trains a classification head in full."""
    return LoraConfig(
        task_type=task,
        r=section.rank,
        lora_alpha=section.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=section.dropout,
        target_modules=section.target_modules or "all-linear",
    )


def add_lora(model: PreTrainedModel, section: LoraSection, task: TaskType, key: str) -> PeftModel:
    """Wrap `model` in adapters; UserError naming `key` if no layer has the names given."""
    try:
        return get_peft_model(model, lora_config(section, task))
    except ValueError as error:
        if "target" not in str(error).lower():
            raise
        raise UserError(
            f"{key}.target_modules: {section.target_modules} names no layer of "
            f"{type(model).__name__}; leave the key out to adapt every linear layer."
        ) from None


def merge_and_keep_adapter(model: PeftModel, folder: Path, write: bool) -> PreTrainedModel:
    """Save the adapter under `folder`/adapter (if `write`) and return the merged model."""
    if write:
        model.save_pretrained(str(folder / ADAPTER), save_embedding_layers=False)
        (folder / ADAPTER / "README.md").unlink()  # peft's empty model card
    return model.merge_and_unload()
