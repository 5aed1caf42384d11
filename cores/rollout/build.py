"""Which engine samples."""

from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedTokenizerBase

from cores.config import Config
from cores.errors import UserError
from cores.models.plain import attention_problem
from cores.rollout.engine import RolloutEngine
from cores.rollout.graph import GraphEngine
from cores.rollout.hf import HFEngine
from cores.rollout.stops import stop_ids, text_matcher
from cores.runtime.launch import Launch


def build_engine(
    config: Config,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    launch: Launch,
) -> RolloutEngine:
    """The engine that samples from `model` as stage 3 does, in stage 3 and for calibration.

    Raises UserError if the tokenizer cannot write a stop string, or `rollout.engine: graph` cannot
    run this model. A line on the screen says why where `auto` takes the slow one.
    """
    ppo, wanted = config.ppo, config.rollout.engine
    problem = None if wanted == "hf" else graph_problem(model)
    if problem and wanted == "graph":
        raise UserError(f"rollout.engine: graph cannot run here: {problem}. Set it to auto or hf.")
    if problem:
        launch.say(f"rollouts by Hugging Face generate, which is slow: {problem}")
    pad: Any = tokenizer.pad_token_id
    make = HFEngine if problem or wanted == "hf" else GraphEngine
    return make(
        model,
        pad,
        stop_ids(ppo, tokenizer),
        max_new_tokens,
        ppo.temperature,
        autocast=launch.precision == "bf16",
        min_new_tokens=ppo.min_new_tokens,
        text_matcher=text_matcher(ppo, tokenizer),
    )


def graph_problem(model: Any) -> str | None:
    """What keeps `GraphEngine` from sampling from `model`, if anything."""
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        return "ZeRO-3 moves the weights"
    if model.device.type == "cuda":
        if find_spec("triton") is None:
            return "triton is not installed"
        if any(hasattr(module, "init_8bit_state") for module in model.modules()):
            return "layers in 8 bits look for outliers, which a captured graph cannot"
    return attention_problem(model.config)
