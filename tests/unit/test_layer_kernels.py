"""Gates and rotary embeddings by kernels against what transformers writes out.

The kernels run on a GPU or by triton's interpreter (TRITON_INTERPRET=1 in the environment); where
there is neither, plain torch stands in for them and what is around them is tested alone.
"""

import importlib
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from _models import causal
from torch import Tensor
from torch.nn.functional import silu
from transformers.models.llama import modeling_llama

from cores import models
from cores.models import layers
from cores.models.layers import FusedRMSNorm, GatedMLP, Rotary, fuse_layers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, L, D) rotated, its halves as real and imaginary parts."""
    half = x.shape[-1] // 2
    angles = torch.complex(cos[..., :half], sin[..., :half]).unsqueeze(1)
    both = torch.complex(x[..., :half], x[..., half:]) * angles
    return torch.cat([both.real, both.imag], dim=-1)


def plain() -> Any:
    """The kernels by formulas of their own."""

    def rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Any:
        return tuple(turned(x, cos, -sin if back else sin) for x in (q, k))

    def gate_backward(slope: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        s = gate.sigmoid()
        return slope * up * s * (1 + gate * (1 - s)), slope * silu(gate)

    gate = lambda gate, up: silu(gate) * up  # noqa: E731
    return SimpleNamespace(rotate=rotate, gate=gate, gate_backward=gate_backward)


@pytest.fixture(autouse=True, params=["plain", "triton"])
def kernels(request: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What does the work: the stand-in, or triton where it can run."""
    if request.param == "triton":
        pytest.importorskip("triton")
        if DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("no GPU, and TRITON_INTERPRET is not 1")
        made = importlib.import_module("cores.models.layer_kernels")
    else:
        made = plain()
    monkeypatch.setitem(sys.modules, "cores.models.layer_kernels", made)
    monkeypatch.setattr(models, "layer_kernels", made, raising=False)
    monkeypatch.setattr(layers, "by_kernels", lambda *tensors: True)
    return made


def results(function: Any, *inputs: Tensor) -> list[Tensor]:
    """What it returns, and the gradients of a sum that weighs each number of it differently."""
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    found = function(*inputs)
    found = found if isinstance(found, tuple) else (found,)
    torch.manual_seed(1)
    sum((x * torch.randn(x.shape, device=DEVICE)).sum() for x in found).backward()
    return [*found, *(x.grad for x in inputs)]


@pytest.mark.parametrize("shape", [(2, 9, 3, 5, 64), (3, 4, 4, 7, 16), (1, 14, 2, 11, 64)])
@pytest.mark.parametrize("shared", [False, True])
def test_rotary(shape: tuple[int, ...], shared: bool) -> None:
    """Values and gradients: heads in other numbers than powers of 2, as views and not, positions of
    their own in each row and the same in all."""
    rows, heads, groups, length, width = shape
    torch.manual_seed(0)
    q = torch.randn(rows, length, heads, width, device=DEVICE).transpose(1, 2)
    k = torch.randn(rows, groups, length, width, device=DEVICE)
    angles = torch.randn(1 if shared else rows, length, width // 2, device=DEVICE)
    cos, sin = (torch.cat([x, x], dim=-1) for x in (angles.cos(), angles.sin()))
    stock = modeling_llama.apply_rotary_pos_emb
    stock = stock.stock if isinstance(stock, Rotary) else stock
    expected = results(lambda q, k: stock(q, k, cos, sin), q, k)
    found = results(lambda q, k: Rotary(stock)(q, k, cos, sin), q, k)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gates() -> None:
    """Values and gradients, also of numbers at the ends of the sigmoid."""
    torch.manual_seed(0)
    gate, up = 8 * torch.randn(7, 300, device=DEVICE), torch.randn(7, 300, device=DEVICE)
    gate[0, :3] = torch.tensor([-90.0, 0.0, 90.0])
    expected = results(lambda g, u: silu(g) * u, gate, up)
    torch.testing.assert_close(results(layers._Gate.apply, gate, up), expected)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral"])
def test_models(kind: str) -> None:
    """Logits and every gradient are the stock model's, and each layer has all of it."""
    stock, ours = causal(kind).to(DEVICE), fuse_layers(causal(kind)).to(DEVICE)
    ours.load_state_dict(stock.state_dict())
    assert sum(isinstance(m, GatedMLP) for m in ours.modules()) == len(ours.model.layers)
    home = sys.modules[type(stock.model.layers[0].self_attn).__module__]
    assert isinstance(home.apply_rotary_pos_emb, Rotary)
    ids = torch.tensor([[5, 9, 13, 20, 7]], device=DEVICE)
    found = []
    for model in (stock, ours):
        logits = model(ids).logits
        (logits.square().mean()).backward()
        found.append([logits, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_norms_before_linear_layers_are_rounded_once() -> None:
    """Under autocast: the numbers that each layer behind them would have made of them."""
    model = fuse_layers(causal("llama")).to(DEVICE)
    norms = {name: m for name, m in model.named_modules() if isinstance(m, FusedRMSNorm)}
    assert {name for name, m in norms.items() if not m.narrow} == {"model.norm"}
    x = torch.linspace(-3, 4, 5 * model.config.hidden_size, device=DEVICE).view(5, -1)
    norm = model.model.layers[0].input_layernorm
    whole = norm(x)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert norm(x).dtype == torch.bfloat16
        assert model.model.norm(x).dtype == torch.float32
        assert norm(x).equal(whole.bfloat16())
