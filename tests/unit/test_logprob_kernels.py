"""Log-probs and entropy by kernels against plain torch.

The kernels run on a GPU or by triton's interpreter (TRITON_INTERPRET=1 in the environment); where
there is neither, plain torch stands in for them and what is around them is tested alone.
"""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from _logprobs import plain_kernels
from _models import fixed_rollout, largest_difference, policy_of
from torch import Tensor

from cores import models
from cores.models import Actor, actor
from cores.models.actor import fused_logprobs, logprobs_on, token_logprobs
from cores.models.vocabulary import EXCLUDED_LOGIT

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True, params=["plain", "triton"])
def kernels(request: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What does the work: the stand-in, or triton where it can run."""
    if request.param == "triton":
        pytest.importorskip("triton")
        if DEVICE.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            pytest.skip("no GPU, and TRITON_INTERPRET is not 1")
        made = importlib.import_module("cores.models.kernels")
    else:
        made = plain_kernels()
    monkeypatch.setitem(sys.modules, "cores.models.kernels", made)
    monkeypatch.setattr(models, "kernels", made, raising=False)
    return made


def exact(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    stop_ids: Tensor | None = None,
    early: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """The same in float64, written another way."""
    x = logits.double() / temperature
    if stop_ids is not None and early is not None:
        gone = torch.zeros_like(x).index_fill(1, stop_ids, 1.0).bool() & early[:, None]
        x = torch.where(gone, EXCLUDED_LOGIT / temperature, x)
    logp = x.log_softmax(dim=-1)
    return logp.gather(1, ids[:, None])[:, 0], -(logp.exp() * logp).sum(dim=-1)


Found = tuple[Tensor, Tensor, Tensor]
"""Log-probs, entropy and the gradient of sums with weights."""


def found_by(way: Any, logits: Tensor, ids: Tensor, temperature: float, *more: Any) -> Found:
    """By `token_logprobs`, `fused_logprobs` or `exact`."""
    weights = torch.randn(2, len(ids), generator=torch.Generator().manual_seed(1)).to(ids.device)
    x = logits.detach().requires_grad_()
    logprobs, entropy = way(x, ids, temperature, *more, entropy_grad=True)
    (gradient,) = torch.autograd.grad((weights[0] * logprobs + weights[1] * entropy).sum(), x)
    assert gradient.dtype == logits.dtype
    assert gradient.shape == logits.shape
    return logprobs.detach(), entropy.detach(), gradient


def misfit(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    *more: Any,
    gradients: float = 5e-6,
    plain: bool = True,
) -> float:
    """The largest error over what float32 allows, NaN where one is NaN; `plain`: of torch as well,
    whose entropy has more roundings."""
    expected = found_by(exact, logits, ids, temperature, *more)
    ways = [(found_by(fused_logprobs, logits, ids, temperature, *more), 1.0)]
    if plain:
        ways.append((found_by(token_logprobs, logits, ids, temperature, *more), 10.0))
    errors = []
    for found, gap in ways:
        limits = [(4e-6, 1e-6), (4e-6, 1e-6), (gradients / temperature, gradients)]
        for ours, true, (atol, rtol) in zip(found, expected, limits, strict=True):
            assert ours.shape == true.shape
            allowed = gap * (atol + rtol * true.double().abs())
            errors.append(((ours.double() - true.double()).abs() / allowed).max())
    return torch.stack(errors).max().item()


def random_logits(rows: int, vocabulary: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits and ids, the first and the last id among them."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(rows, vocabulary, generator=generator)
    ids = torch.randint(vocabulary, (rows,), generator=generator)
    ids[0], ids[-1] = 0, vocabulary - 1
    return logits.to(DEVICE), ids.to(DEVICE)


@pytest.mark.parametrize("vocabulary", [31, 4096, 9001])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_values_and_gradients(vocabulary: int, temperature: float) -> None:
    """Invariants 2, 6, 24: in float32, over one block, one that is full, and several."""
    logits, ids = random_logits(4, vocabulary)
    assert misfit(logits, ids, temperature) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(kernels: Any, dtype: torch.dtype) -> None:
    """Invariant 2: read as float32, so that values differ by its rounding alone; the gradient is
    rounded once, and never made in float32."""
    logits, ids = random_logits(4, 5000)
    assert misfit(logits.to(dtype), ids, 0.7, gradients=2**-7) <= 1
    ones, logits = torch.ones(4, device=DEVICE), logits.to(dtype)
    saved = (logits, ids, None, None, *kernels.forward(logits, ids, 0.7, None, None)[1:])
    assert kernels.backward(ones, ones, 0.7, *saved).dtype == dtype


@pytest.mark.parametrize("slice_of", ["vocabulary", "rows", "transposed"])
def test_views(slice_of: str) -> None:
    """Logits that lie apart: strides of rows and columns are followed, and the rest not read."""
    logits, ids = random_logits(6, 200)
    whole = torch.full((12, 300), 50.0, device=DEVICE)
    views = {
        "vocabulary": whole[:6, :200],
        "rows": whole[::2, 50:250],
        "transposed": torch.full((200, 7), 50.0, device=DEVICE).t()[:6],
    }
    view = views[slice_of]
    view.copy_(logits)
    assert not view.is_contiguous()
    assert misfit(view, ids, 0.7) <= 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 5e3])
def test_early_stop_ids(temperature: float) -> None:
    """Invariant 3: stop ids are excluded in the rows that are early, chosen or not, and have no
    gradient there, even at a temperature that leaves them a share; the logits stay as they are."""
    logits, ids = random_logits(6, 4500)
    stop_ids = torch.tensor([1, 4400, 7], device=DEVICE)
    early = torch.tensor([True, False, True, False, True, False], device=DEVICE)
    ids[1:3] = 4400
    before = logits.clone()
    assert misfit(logits, ids, temperature, stop_ids, early) <= 1
    _, _, gradient = found_by(fused_logprobs, logits, ids, temperature, stop_ids, early)
    assert (gradient[early][:, stop_ids] == 0).all()
    assert (gradient[~early][:, stop_ids] != 0).all()
    assert torch.equal(logits, before)
    assert misfit(logits, ids, temperature, stop_ids, None) <= 1


@pytest.mark.parametrize("excluded", [slice(0, 4200), slice(4000, 9001)])
def test_excluded_logits(excluded: slice) -> None:
    """Invariant 3: a vocabulary whose first or last block is excluded as a whole."""
    logits, ids = random_logits(4, 9001)
    ids[:] = 3999 if excluded.start else 4200
    logits[:, excluded] = EXCLUDED_LOGIT
    assert misfit(logits, ids, 0.7) <= 1
    _, _, gradient = found_by(fused_logprobs, logits, ids, 0.7)
    assert (gradient[:, excluded] == 0).all()


def test_large_logits() -> None:
    """Numbers whose exponential is infinite, and a choice that is certain: entropy 0."""
    logits, ids = random_logits(4, 9001, scale=1e4)
    logits[:, 8500] = 5e5
    ids[1] = 8500
    assert misfit(logits, ids, 1.0, plain=False) <= 1
    logprobs, entropy, gradient = found_by(fused_logprobs, logits, ids, 1.0)
    assert logprobs[1] == 0
    assert (entropy == 0).all()
    assert torch.isfinite(gradient).all()


def test_entropy_by_hand() -> None:
    """Probabilities (1/2, 1/4, 1/4): entropy 1.5 ln 2, gradient -p (log p + H)."""
    logits = torch.tensor([[0.5, 0.25, 0.25]], device=DEVICE).log().requires_grad_()
    logprobs, entropy = fused_logprobs(
        logits, torch.tensor([1], device=DEVICE), 1.0, entropy_grad=True
    )
    assert entropy is not None
    ln2 = torch.tensor(2.0).log().item()
    assert logprobs.item() == pytest.approx(-2 * ln2, abs=1e-6)
    assert entropy.item() == pytest.approx(1.5 * ln2, abs=1e-6)
    (gradient,) = torch.autograd.grad(entropy.sum(), logits)
    expected = torch.tensor([[-0.25, 0.125, 0.125]]) * ln2
    torch.testing.assert_close(gradient.cpu(), expected)


def test_what_is_asked_for() -> None:
    """Without `entropy` None; without `entropy_grad`, and under no_grad, none has a gradient; a
    second derivative is refused rather than wrong."""
    logits, ids = random_logits(3, 50)
    logits.requires_grad_()
    assert fused_logprobs(logits, ids, 1.0, entropy=False)[1] is None
    logprobs, entropy = fused_logprobs(logits, ids, 1.0)
    assert entropy is not None
    assert logprobs.requires_grad
    assert not entropy.requires_grad
    with torch.no_grad():
        assert not fused_logprobs(logits, ids, 1.0)[0].requires_grad
    (first,) = torch.autograd.grad(logprobs.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError):
        first.sum().backward()


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("kind", ["gpt2", "gemma2"])
def test_an_actor_by_kernels(monkeypatch: pytest.MonkeyPatch, kind: str, few: bool) -> None:
    """Invariants 3, 6: an actor as on CUDA has the log-probs, entropy and gradients of one in plain
    torch, whatever stands behind the head, with its logits kept or made again."""
    made, found = fixed_rollout(5), []
    monkeypatch.setattr(actor, "CHUNK_LOGITS", 2**20 if few else 7 * 64)
    for way in (fused_logprobs, token_logprobs):
        monkeypatch.setattr(actor, "logprobs_on", lambda _, way=way: way)
        model = policy_of(kind).to(DEVICE)
        policy = Actor(model, 0.7, [1, 9], 2, entropy_grad=True).to(DEVICE)
        logprobs, entropy = policy(made.ids.to(DEVICE), made.mask.to(DEVICE), 6)
        (logprobs.sum() - entropy.square().sum()).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        found.append((logprobs.detach(), entropy.detach(), gradients))
    for ours, plain in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-6)
    scale = max(g.abs().max().item() for g in found[1][2].values())
    assert largest_difference(found[0][2], found[1][2]) < 4e-6 * scale


def test_a_head_that_needs_its_logits() -> None:
    """The gradient is a tensor of its own: tanh's backward pass reads the logits that it made."""
    logits, ids = random_logits(3, 50, scale=1.0)
    gradients = []
    for way in (fused_logprobs, token_logprobs):
        x = logits.clone().requires_grad_()
        capped = x.tanh()
        way(capped, ids, 0.1)[0].sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-5)


def test_who_takes_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA where triton is installed; an actor asks for its own device."""
    for installed in (None, object()):
        monkeypatch.setattr(actor, "find_spec", lambda _, found=installed: found)
        logprobs_on.cache_clear()
        assert logprobs_on(torch.device("cpu")) is token_logprobs
        best = logprobs_on(torch.device("cuda:0"))
        assert best is (token_logprobs if installed is None else fused_logprobs)
    logprobs_on.cache_clear()
    asked: list[torch.device] = []
    monkeypatch.setattr(actor, "logprobs_on", lambda d: (asked.append(d), token_logprobs)[1])
    made, model = fixed_rollout(), policy_of("gpt2")
    Actor(model, 1.0)(made.ids, made.mask, 6)
    assert asked == [torch.device("cpu")]
