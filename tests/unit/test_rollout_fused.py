"""Parts of the twin that do several layers' work in one kernel: the numbers of the plain model.
Plain torch stands in for the kernels."""

import sys
from importlib import import_module
from typing import Any

import pytest
import torch
from _engines import engine, plain_kernels, sample
from _models import LORA, PROMPTS, policy_of
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import dropout
from transformers.pytorch_utils import Conv1D

from cores.models import Actor
from cores.models.lora import add_lora
from cores.models.precision import hold_linears_in_bf16
from cores.rollout.adapted import Adapted, fuse_adapters
from cores.rollout.cache import StaticCache
from cores.rollout.layers import Activated, Joint, Part, fuse_layers
from cores.rollout.residual import Branch, Sum, delay_sums
from cores.rollout.twin import Twin

KINDS = ("gpt2", "opt", "gpt_neox", "llama", "qwen2", "qwen3")
IDS = torch.tensor([[5, 9, 13, 20], [7, 8, 9, 10]])


@pytest.fixture
def norms(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module with the fused norm, over plain torch; the branches that were added by it."""
    kernels, name = plain_kernels(), "cores.rollout.norms"
    monkeypatch.setitem(sys.modules, "cores.rollout.kernels", kernels)
    monkeypatch.setitem(sys.modules, name, kernels)  # put back what was there, or nothing
    del sys.modules[name]
    norms = import_module(name)
    added: list[Tensor] = []
    plain = kernels.norm

    def noted(*args: Any) -> Tensor:
        added.extend(args[5:6])
        return plain(*args)

    monkeypatch.setattr(norms, "norm", noted)
    vars(norms)["added"] = added
    return norms


def logits_of(model: Any) -> Tensor:
    """Of IDS, without the excluded, under autocast."""
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        return model(IDS).logits[..., 1:60].float()


def last_logits(twin: Twin) -> Tensor:
    """Behind the last of IDS."""
    cache = StaticCache(twin.model.config, 2, 8, torch.bfloat16, IDS.device)
    cache.prefill(0, None)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        return twin(IDS, torch.arange(4)[None], cache)[..., 1:60].float()


@pytest.mark.parametrize("kind", KINDS)
def test_sums_by_the_norms(kind: str, norms: Any) -> None:
    """The logits of a model whose norms add to the residual stream are, bit for bit, those of one
    with the same norms that does not; every sum but the two of GPT-NeoX is added so."""
    model = policy_of(kind)
    norms.fuse_norms(model)
    expected = logits_of(model)
    assert norms.added == []
    delay_sums(model)
    found = logits_of(model)
    assert len(norms.added) == (0 if kind == "gpt_neox" else 4)
    assert type(found) is Tensor
    assert torch.equal(found, expected)


def halves() -> tuple[Tensor, Branch, Tensor]:
    """A residual, a branch, and their sum."""
    torch.manual_seed(0)
    residual, branch = torch.randn(2, 1, 8), torch.randn(2, 1, 8).bfloat16()
    return residual, branch.as_subclass(Branch), residual + branch


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x * 2,
        lambda x: 1 + x,
        lambda x: x.mT,
        lambda x: x.tolist(),
        lambda x: x[0],
        lambda x: x.add_(1).sum(),
        lambda x: torch.cat([torch.ones(1, 1, 8), x]),
        lambda x: torch.cat(tensors=[x, x]),
        lambda x: nn.functional.layer_norm(x, (8,)),
        lambda x: x.view(-1, 8).reshape(16)[3:],
        lambda x: x.reshape(-1, x.size(-1)) * x.shape[0],
        lambda x: x.view(torch.int32),
    ],
)
def test_whoever_asks_for_numbers_has_them(use: Any) -> None:
    residual, branch, expected = halves()
    wanted = use(expected.clone())
    for made in (residual + branch, branch + residual, torch.add(residual, branch)):
        assert type(made) is Sum
        assert made.waits
        made.total.fill_(9.0)  # what memory holds before it is written
        found = use(made)
        assert type(found) is type(wanted)
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(wanted))


def test_what_a_sum_is_added_to() -> None:
    """A sum that was not asked for is added before the next branch is; sums of other kinds are
    plain."""
    residual, branch, once = halves()
    again = (residual + branch) + branch
    assert type(again) is Sum
    assert torch.equal(again * 1, once + branch)
    for other in (branch, residual.bfloat16(), residual.double(), residual[:1], 1.0):
        plain = torch.add(other, torch.Tensor.float(branch).bfloat16()) if other is branch else None
        found = other + branch
        assert not isinstance(found, Sum), type(other)
        assert plain is None or torch.equal(found, plain)


def test_dropout_of_a_branch() -> None:
    """That which does nothing lets it pass; that of training does not."""
    _, branch, _ = halves()
    assert dropout(branch, 0.5, training=False) is branch
    assert nn.Dropout(0.5).eval()(branch) is branch
    assert type(dropout(branch, 0.5, training=True)) is Tensor


@pytest.mark.parametrize(
    ("kind", "joined", "activated"),
    [("gpt2", 0, 2), ("opt", 6, 2), ("gpt_neox", 0, 0)]
    + [(kind, 10, 0) for kind in ("llama", "qwen2", "qwen3")],
)
def test_fused_layers(kind: str, joined: int, activated: int) -> None:
    """Invariant 29: the logits of a twin whose layers are joined are those of one whose are not,
    and follow the weights when they change; no weight is held twice."""
    model = policy_of(kind)
    plain, twin = Twin(model, autocast=True), Twin(model, autocast=True)
    fuse_layers(twin.model, twin.copies)
    for name, wanted in (("Part", joined), ("Activated", activated)):
        assert sum(type(m).__name__ == name for m in twin.model.modules()) == wanted
    for _ in range(2):
        plain.refresh()
        twin.refresh()
        found, expected = (last_logits(each) for each in (twin, plain))
        assert (found - expected).abs().max() < 0.1
        assert (found - expected).abs().mean() < 0.01
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
    joints = {id(m.joint): m.joint for m in twin.model.modules() if isinstance(m, Part)}
    for joint in joints.values():
        assert joint.input is None
        assert joint.parts == [None] * len(joint.parts)
    assert held(twin) == sum(c.nbytes for c in twin.copies)
    twin.release()
    twin.release()
    assert held(twin) == 0
    for each in (plain, twin):
        each.refresh()
    assert held(twin) == sum(c.nbytes for c in twin.copies)
    assert (last_logits(twin) - last_logits(plain)).abs().max() < 0.1


def held(twin: Twin) -> int:
    """Bytes of its own weights."""
    storages = [c.untyped_storage() for c in twin.copies]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_fused_adapters(kind: str) -> None:
    """Invariants 10, 29: the logits of peft's own layers, with weights of B that are not 0; none of
    a model whose adapters are off, or that has two in use."""
    model = get_peft_model(
        policy_of(kind), LoraConfig(r=4, lora_alpha=12, target_modules="all-linear")
    )
    plain, twin = (Twin(model.get_base_model(), autocast=True) for _ in range(2))
    layers = sum(isinstance(m, LoraLayer) for m in model.modules())
    fuse_adapters(twin.model)
    assert count(twin) == layers > 0
    for _ in range(2):
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_" in name:
                    p.add_(0.2 * torch.randn_like(p))
        for each in (plain, twin):
            each.refresh()
        found, expected = (last_logits(each) for each in (twin, plain))
        assert (found - expected).abs().mean() < 0.05
    with model.disable_adapter():
        off = Twin(model.get_base_model(), autocast=True)
        fuse_adapters(off.model)
        off.refresh()
        assert (last_logits(off) - last_logits(plain)).abs().mean() > 0.3
    model.add_adapter("other", LoraConfig(r=2, target_modules="all-linear"))
    model.base_model.set_adapter(["default", "other"])
    several = Twin(model.get_base_model(), autocast=True)
    fuse_adapters(several.model)
    assert count(off) == count(several) == 0


def count(twin: Twin) -> int:
    """Fused adapters."""
    return sum(isinstance(m, Adapted) for m in twin.model.modules())


@pytest.mark.usefixtures("norms")
@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_of_a_fused_twin(kind: str) -> None:
    """Invariant 29: prefill and steps of every part at once; recorded log-probs are the actor's."""
    model = policy_of(kind)
    made = engine("graph", model, autocast=True)
    made.twin.fuse()
    rollout = sample(made, PROMPTS * 4)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, _ = Actor(model, 1.0)(rollout.ids, rollout.mask, rollout.logprobs.shape[1])
    gap = (logprobs - rollout.logprobs)[rollout.response_mask].abs()
    assert gap.mean() < 0.05
    assert gap.max() < 0.5


def test_layers_of_others_are_not_joined() -> None:
    """Not those with adapters, and not those whose weights are frozen and the trainer's own."""
    adapted = add_lora(policy_of("llama"), LORA, TaskType.CAUSAL_LM, "ppo.lora").get_base_model()
    frozen = hold_linears_in_bf16(policy_of("opt"))
    for model in (adapted, frozen):
        twin = Twin(model, autocast=True)
        fuse_layers(twin.model, twin.copies)
        assert not [m for m in twin.model.modules() if isinstance(m, Part | Activated)]


def test_parts_in_any_order() -> None:
    """Of each input its own, asked for once or again."""
    torch.manual_seed(0)
    layers = [nn.Linear(8, wide) for wide in (4, 2, 6)]
    joint = Joint(layers)
    a, b = torch.randn(3, 8), torch.randn(3, 8)
    for i, x in ((2, a), (0, a), (0, a), (1, b), (2, b), (0, a), (1, a), (2, a)):
        torch.testing.assert_close(joint.take(i, x), layers[i](x))


def test_activations_by_hand() -> None:
    """Both kinds of layer; x in float32 is rounded as the layer would."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8)
    for layer in (nn.Linear(8, 5).bfloat16(), Conv1D(5, 8).bfloat16()):
        before = layer(x.bfloat16()).float()
        for gelu, activation in ((True, nn.GELU(approximate="tanh")), (False, nn.ReLU())):
            found = Activated(layer, gelu)(x)
            assert found.shape == (2, 3, 5)
            torch.testing.assert_close(found.float(), activation(before), atol=2e-2, rtol=1e-2)
