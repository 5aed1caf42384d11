"""A stand-in for vLLM as far as `VllmEngine` asks it: fused weights, layers loaded anew, a cache of
prompts, seeds. What it does wrongly when it is used wrongly is what vLLM 0.30 was seen to do."""

import re
import sys
from collections.abc import Iterable, Iterator
from copy import deepcopy
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cores.rollout import push

FUSED = {"[qkv]_proj": "qkv_proj", "(gate|up)_proj": "gate_up_proj"}


def fused(name: str) -> str:
    """The weight of vLLM that a weight is part of."""
    for parts, whole in FUSED.items():
        name = re.sub(rf"\.{parts}\.", f".{whole}.", name)
    return name


class Model:
    """What `apply_model` gives: a Hugging Face model whose weights have vLLM's names."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner.eval()
        self.loaded: set[str] = set()

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        wholes: dict[str, list[Tensor]] = {}
        for name, parameter in self.inner.named_parameters():
            wholes.setdefault(fused(name), []).append(parameter.detach())
        for name, parts in wholes.items():
            yield name, torch.cat(parts)

    def load_weights(self, pairs: Iterable[tuple[str, Tensor]]) -> set[str]:
        own, taken = dict(self.inner.named_parameters()), set()
        for name, tensor in pairs:
            own[name].copy_(tensor)
            self.loaded.add(name)
            taken.add(fused(name))
        return taken

    def finish(self) -> None:
        """Parts that did not come with the rest of their layer are lost."""
        layers = {fused(name) for name in self.loaded}
        for name, parameter in self.inner.named_parameters():
            if name not in self.loaded and fused(name) in layers:
                parameter.zero_()

    def compute_logits(self, ids: list[int]) -> Tensor:
        """(1, V), of the next token."""
        return self.inner(torch.tensor([ids])).logits[:, -1].float()


class LLM:
    """Of random weights, in this process."""

    made: "LLM"
    inner: Any
    """Its model, set by the test."""

    def __init__(self, folder: str, **options: Any) -> None:
        LLM.made, self.options, self.calls = self, options, []
        self.model, self.cached, self.params = Model(deepcopy(LLM.inner)), None, []
        self.pushes = ENGINES[options["weight_transfer_config"]["backend"]](self.model)

    def init_weight_transfer_engine(self, request: Any) -> None: ...

    def apply_model(self, work: Any) -> list[Any]:
        return [work(self.model)]

    def start_weight_update(self) -> None:
        self.calls.append("push")
        self.pushes.start_weight_update()

    def update_weights(self, request: Any) -> None:
        self.pushes.receive_weights(None)

    def finish_weight_update(self) -> None:
        self.pushes.finish_weight_update()

    def reset_prefix_cache(self) -> bool:
        self.cached = None
        return True

    def sleep(self, level: int) -> None:
        self.calls.append(f"sleep {level}")

    def wake_up(self, tags: list[str]) -> None:
        self.calls.append(f"wake {tags[0]}")

    def generate(self, asked: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
        self.calls.append("generate")
        model, self.params = self.cached or self.model, params
        out = [
            self._reply(model, a["prompt_token_ids"], p) for a, p in zip(asked, params, strict=True)
        ]
        self.cached = SimpleNamespace(inner=deepcopy(model.inner), rule=self.model)
        self.cached.compute_logits = lambda ids: self._as(self.cached.inner, ids)
        return out

    def _as(self, inner: Any, ids: list[int]) -> Tensor:
        now, self.model.inner = self.model.inner, inner
        try:
            return self.model.compute_logits(ids)
        finally:
            self.model.inner = now

    def _reply(self, model: Any, prompt: list[int], p: Any) -> Any:
        draw, ids, told = torch.Generator().manual_seed(p.seed), [], []
        while len(ids) < p.max_tokens and not (ids and ids[-1] in p.stop_token_ids):
            logits = model.compute_logits(prompt + ids)[0] / p.temperature
            if len(ids) < p.min_tokens:
                logits[p.stop_token_ids] = -torch.inf
            logprobs = logits.log_softmax(-1)
            token = int(torch.multinomial(logprobs.exp(), 1, generator=draw))
            ids.append(token)
            told.append({token: SimpleNamespace(logprob=logprobs[token].item())})
        reply = SimpleNamespace(token_ids=ids, logprobs=told)
        return SimpleNamespace(outputs=[reply])


ENGINES: dict[str, Any] = {}


class Transfers:
    """The base class of weight transfer engines."""

    def __init__(self, model: Model) -> None:
        self.model, self.model_config = model, None


def stand_in(monkeypatch: pytest.MonkeyPatch, inner: Any, version: str = "0.30.0") -> None:
    """Let `import vllm` be this, on a model of the shape of `inner`."""
    LLM.inner = inner
    parts: dict[str, Any] = {
        "": {
            "LLM": LLM, "SamplingParams": SimpleNamespace, "TokensPrompt": dict,
            "ModelRegistry": SimpleNamespace(
                get_supported_archs=lambda: ["GPT2LMHeadModel", "LlamaForCausalLM"]
            ),
            "__version__": version, "__spec__": ModuleSpec("vllm", None),
        },
        ".model_executor": {}, ".model_executor.layers": {}, ".model_executor.layers.utils": {},
        ".model_executor.model_loader": {},
        ".model_executor.model_loader.reload": {
            "initialize_layerwise_reload": lambda model: model.loaded.clear(),
            "finalize_layerwise_reload": lambda model, config: model.finish(),
        },
        ".distributed": {},
        ".distributed.weight_transfer": {
            "WeightTransferEngine": Transfers,
            "WeightTransferEngineFactory": SimpleNamespace(register_engine=ENGINES.__setitem__),
        },
        ".distributed.weight_transfer.base": {
            "WeightTransferInitInfo": None, "WeightTransferUpdateInfo": None,
        },
    }  # fmt: skip
    for name, inside in parts.items():
        module = ModuleType(f"vllm{name}")
        vars(module).update(inside)
        monkeypatch.setitem(sys.modules, f"vllm{name}", module)
        parent, _, own = f"vllm{name}".rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
    for cached in (push.imported, push.transfer):
        cached.cache_clear()


def forget() -> None:
    """What was imported is not kept for other tests."""
    for cached in (push.imported, push.transfer):
        cached.cache_clear()
