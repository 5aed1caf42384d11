"""`gelu_new` and norms in one kernel: the same functions, and not in what is saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from _models import causal, policy_of, scalar_of, sft_folder, toy_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.activations import NewGELUActivation

from cores.config import ModelSection
from cores.models import load_policy, save_model
from cores.models.layers import MLPS, NORMS, FusedRMSNorm, GatedMLP, TanhGELU, fuse_layers


def kinds_of(model: Any) -> set[type]:
    """Classes of the modules of `model`."""
    return {type(module) for module in model.modules()}


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize(("dtype", "gap"), [(torch.float32, 3e-6), (torch.float64, 1e-12)])
def test_the_same_function(
    dtype: torch.dtype, gap: float, compiling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients but for rounding, from -8 to 8 and at the ends of its range, in the form
    for the compiler too."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    fused = fuse_layers(nn.Sequential(NewGELUActivation()))
    assert kinds_of(fused) == {nn.Sequential, TanhGELU}
    found, gradients = [], []
    for function in (NewGELUActivation(), fused):
        x = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor([-1e4, 0.0, 1e4])])
        x = x.to(dtype).requires_grad_()
        out = function(x)
        out.sum().backward()
        found.append(out.detach())
        gradients.append(x.grad)
    torch.testing.assert_close(found[1], found[0], atol=gap, rtol=0)
    torch.testing.assert_close(gradients[1], gradients[0], atol=gap, rtol=0)


@pytest.mark.parametrize("load", [policy_of, scalar_of])
def test_loaded_models_have_it(load: Any) -> None:
    """All of GPT-2's, in both classes; the stock model as loaded by others has its own."""
    assert TanhGELU in kinds_of(load("gpt2"))
    assert NewGELUActivation not in kinds_of(load("gpt2"))
    assert NewGELUActivation in kinds_of(AutoModelForCausalLM.from_pretrained(sft_folder("gpt2")))


@pytest.mark.parametrize("how", ["8bit", "4bit", "bf16"])
def test_frozen_bases_have_it(how: Any, tmp_path: Path) -> None:
    """Although one in 8 or 4 bits is made anew."""
    if how != "bf16":
        pytest.importorskip("bitsandbytes")
    save_model(causal("gpt2", n_embd=64), toy_tokenizer(), tmp_path)
    model = load_policy(tmp_path, dropout=False, frozen=ModelSection(quantization=how))
    assert TanhGELU in kinds_of(model)
    assert NewGELUActivation not in kinds_of(model)


def test_other_activations_stay() -> None:
    """OPT's ReLU, Llama's SiLU and NeoX's exact GELU are what they were."""
    for kind in ("opt", "llama", "gpt_neox"):
        before = {type(m) for m in causal(kind).modules() if type(m).__name__ not in NORMS + MLPS}
        assert kinds_of(fuse_layers(causal(kind))) - {FusedRMSNorm, GatedMLP} == before


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("half", [False, True])
def test_norms_are_the_stock_ones(kind: str, half: bool) -> None:
    """Values and gradients, for inputs of the weight's type and of a smaller one; names stay."""
    stock, ours = causal(kind), fuse_layers(causal(kind))
    names = [name for name, m in stock.named_modules() if type(m).__name__ in NORMS]
    assert names == [name for name, m in ours.named_modules() if isinstance(m, FusedRMSNorm)]
    assert stock.state_dict().keys() == ours.state_dict().keys()
    torch.manual_seed(0)
    for name in names[:2] + names[-1:]:
        found = []
        for model in (stock, ours):
            norm = model.get_submodule(name)
            with torch.no_grad():
                norm.weight.copy_(torch.linspace(0.5, 2, len(norm.weight)))
            x = torch.linspace(-3, 4, 5 * len(norm.weight)).view(5, -1)
            x = (x.bfloat16() if half else x).requires_grad_()
            out = norm(x)
            out.square().sum().backward()
            found.append((out, x.grad, norm.weight.grad))
        gap = 2e-2 if half else 1e-5
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, atol=gap, rtol=gap)


def test_saved_models_say_gelu_new(tmp_path: Path) -> None:
    """Invariant 30: config.json names the activation that the base names, and transformers' own
    model computes the same logits from the folder."""
    model = policy_of("gpt2")
    save_model(model, toy_tokenizer(), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["activation_function"] == "gelu_new"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[5, 9, 13, 20]])
    with torch.no_grad():
        expected, found = theirs(ids).logits[..., 1:60], model(ids).logits[..., 1:60]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
