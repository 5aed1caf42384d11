"""The model of memory against the models themselves, the planner against what GPUs measured, and
its command line."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from cores import forecast
from cores.config import Config, parse_config
from cores.errors import UserError
from cores.memory import Case, Layout, Phases, micro_batches, needed, peak, total
from cores.models.adapters import hold_linears_in_bf16
from cores.models.layers import fuse_layers
from cores.shapes import Texts, kept, shape_from, weights
from scripts.bench import plan_error
from scripts.plan.layouts import best_of, largest, plan, ways
from scripts.plan.text import launch_file
from scripts.plan.times import card_of

ROOT = Path(__file__).resolve().parents[2]
NUMBERS: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 4, "pad_token_id": 0,
}  # fmt: skip
GROUPS = {**NUMBERS, "num_key_value_heads": 2}
BASES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 320, "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 96},
    "opt": {**NUMBERS, "ffn_dim": 160, "word_embed_proj_dim": 32, "max_position_embeddings": 96},
    "gpt_neox": NUMBERS,
    "bloom": {"vocab_size": 320, "hidden_size": 64, "n_layer": 3, "n_head": 4},
    "llama": GROUPS,
    "mistral": {**GROUPS, "sliding_window": None},
    "qwen2": {**GROUPS, "tie_word_embeddings": True},
    "qwen3": {**GROUPS, "head_dim": 16},
    "gemma": {**GROUPS, "head_dim": 16},
}
SEVEN = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000,
    "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False,
}  # fmt: skip
H100 = card_of(80)


def numbers_of(family: str) -> dict[str, Any]:
    """What a config.json of the family holds."""
    return AutoConfig.for_model(family, **BASES[family]).to_dict()


def made(family: str, auto: Any = AutoModelForCausalLM, **more: Any) -> Any:
    """A random model."""
    config = AutoConfig.for_model(family, **BASES[family], **more)
    return auto.from_config(config)


def case_of(*words: str, numbers: Any = None, layout: Layout | None = None) -> Case:
    """Of a 7B Llama in every role, or other numbers."""
    config = parse_config(list(words), "", "")
    shape = shape_from(numbers or SEVEN, "config.json")
    ppo = config.ppo
    texts = Texts(ppo.max_prompt_length, ppo.max_new_tokens, ppo.max_new_tokens)
    return Case(config, shape, shape, layout or Layout(), texts)


def held(phases: Phases, role: str, what: str) -> float:
    """Bytes in any phase."""
    return max(total([h for h in p if (h.role, h.what) == (role, what)]) for p in phases.values())


@pytest.mark.parametrize("family", BASES)
def test_weights_are_counted(family: str) -> None:
    """All parameters, as a language model, as a classifier, and of adapters on every layer."""
    shape = shape_from(numbers_of(family), family)
    with torch.device("meta"):
        policy, scalar = (
            made(family),
            made(family, AutoModelForSequenceClassification, num_labels=1),
        )
        lora = LoraConfig(task_type=TaskType.CAUSAL_LM, r=3, target_modules="all-linear")
        adapted = get_peft_model(made(family), lora)
    assert shape.parameters() == policy.num_parameters()
    assert shape.parameters(scalar=True) == scalar.num_parameters()
    ours = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    between = 0 if family != "opt" else 2 * 3 * (64 + 32)  # the maps around OPT's layers
    assert ours == shape.adapters(3, None) + between


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_bytes_of_weights_held_in_bf16(family: str) -> None:
    model = hold_linears_in_bf16(made(family))
    sizes = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters()}
    assert weights(shape_from(numbers_of(family), family), False, "bf16") == sum(sizes.values())


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_what_a_layer_keeps_is_counted(family: str, precision: str) -> None:
    """A layer more of a model of 3 keeps as much more as is counted, by what autograd saves: each
    storage once."""
    sizes = []
    for layers in (3, 4):
        key = {"gpt2": "n_layer", "bloom": "n_layer"}.get(family, "num_hidden_layers")
        numbers = {**BASES[family], key: layers, "num_key_value_heads": 4}
        model = fuse_layers(
            AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **numbers))
        )
        model.eval()  # no dropout
        found: dict[int, int] = {}
        alive: list[torch.Tensor] = []  # so that no address comes twice

        def note(x: torch.Tensor, found: Any = found, alive: Any = alive) -> torch.Tensor:
            if x.numel() % 53 == 0 and x.numel() > 212 * 8:  # no weight, and no row's statistic
                found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
                alive.append(x)
            return x

        ids = torch.randint(1, 300, (4, 53))
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x), autocast:
            model.base_model(input_ids=ids, use_cache=False)
        sizes.append(sum(found.values()))
    shape = shape_from({**numbers_of(family), "num_key_value_heads": 4}, family)
    each = kept(shape, 2 if precision == "bf16" else 4, lora=False)
    if shape.gated:  # on a CPU norms keep what they have divided, gates their SiLU
        each += 2 * 4 * shape.width + (2 if precision == "bf16" else 4) * shape.inner
    assert (sizes[1] - sizes[0]) / (4 * 53) == pytest.approx(each, rel=0.05)


@pytest.mark.parametrize("file", plan_error.measured(), ids=lambda file: file.stem)
def test_plans_are_as_near_to_what_was_measured_as_said(file: Path) -> None:
    size, most, time, took = plan_error.compared(json.loads(file.read_text(encoding="utf-8")))
    assert size / most == pytest.approx(1, abs=plan_error.PEAK)
    assert time / took == pytest.approx(1, abs=plan_error.SECONDS)


def test_sixteen_bytes_a_trained_weight_however_they_are_spread() -> None:
    """Weights, gradients and two moments; each way of sharding divides its part by 8."""
    words = ("--model.precision", "bf16", "--ppo.minibatch_size", "64")
    count = case_of().policy.parameters()
    for shards, whole in {"none": (4, 4, 8), "zero3": (4 / 8, 4 / 8, 12 / 8)}.items():
        layout = Layout(8, shards)
        phases = needed(case_of(*words, "--ppo.microbatch_size", "1", layout=layout), "ppo")
        kinds = ("weights", "gradients", "optimizer")
        assert [held(phases, "actor", kind) / count for kind in kinds] == pytest.approx(whole)


def test_checkpointing_adapters_and_few_bits_each_need_less() -> None:
    more: list[str] = ["--model.precision", "bf16"]
    sizes = []
    for words in (
        [], ["--model.gradient_checkpointing", "true"], ["--ppo.lora.rank", "8"],
        ["--model.quantization", "bf16"],
    ):  # fmt: skip
        more += words
        sizes.append(peak(needed(case_of(*more), "ppo"))[1])
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_buffers_of_a_rollout_stay_where_they_are_small() -> None:
    """At 5% of the GPU or less they are there in an update, too."""
    case = case_of(
        "--model.precision", "bf16", "--ppo.lora.rank", "8", "--model.quantization", "bf16"
    )
    cache = held(needed(case, "ppo"), "engine", "cache")
    assert cache == 2 * 32 * 128 * 384 * 4096 * 2  # layers, rows, positions, width, bytes
    small, large = (replace(case, layout=Layout(card=cache * n)) for n in (15, 30))
    assert not [h for h in needed(small, "ppo")["scoring"] if h.what == "cache"]
    assert [h for h in needed(large, "ppo")["scoring"] if h.what == "cache"]


def test_lengths_have_their_mean() -> None:
    texts = Texts(prompt=10, longest=256, mean=61)
    lengths = texts.lengths(512)
    assert sum(lengths) / 512 == pytest.approx(61, rel=0.02)
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) <= 256
    assert Texts(10, 256, 256).lengths(3) == [256] * 3


def test_micro_batches_are_cut_as_the_trainer_does() -> None:
    case = case_of("--ppo.microbatch_size", "8")
    assert micro_batches(case, 32) == (8 * (256 + 128), 8 * 128, 4)
    by_tokens = case_of("--ppo.microbatch_tokens", "800")
    assert micro_batches(by_tokens, 5) == (2 * 384, 2 * 128, 3)
    assert micro_batches(by_tokens, 16, factor=4)[2] == 2  # 8 of 384 are 3,072 of 3,200


def test_the_configuration_is_kept_where_it_fits_and_the_same_training_comes_next() -> None:
    case = case_of("--model.precision", "bf16", layout=Layout(1, card=80e9))
    small = replace(case, **dict.fromkeys(("policy", "judge"), shape_from(numbers_of("llama"), "")))
    assert best_of(ways("ppo", small, H100, 1)).options == {}  # type: ignore[union-attr]
    eight = replace(case, layout=Layout(8, card=80e9))
    found = best_of(ways("ppo", eight, H100, 1))
    assert found is not None
    assert found.case.layout.shards in ("zero3", "fsdp2")
    assert "ppo.lora.rank" not in found.options
    alone = best_of(ways("ppo", replace(case, layout=Layout(1, card=80e9)), H100, 1))
    assert alone is not None
    assert alone.case.layout.offload
    assert best_of(ways("ppo", replace(case, layout=Layout(1, card=1e9)), H100, 1)) is None


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    words = ("--model.precision", "bf16", "--ppo.lora.rank", "8", "--model.quantization", "bf16")
    chosen = plan("ppo", case_of(*words, layout=Layout(card=75e9)), H100, 1, {})
    size = largest(chosen, H100, 1)
    assert 1 < size < 32
    for rows, fits in ((size, True), (2 * size, False)):
        again = plan("ppo", chosen.case, H100, 1, {"ppo.microbatch_size": rows})
        assert again.fits is fits


def run(*words: str) -> Any:
    """The command."""
    command = [sys.executable, "scripts/plan.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the config.json of a 7B model alone, and a configuration that names it."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "config.json").write_text(json.dumps(SEVEN), encoding="utf-8")
    text = f"model: {{path: {folder}, precision: bf16}}\noutput_dir: {folder}/run\n"
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    return folder


def test_a_config_json_is_enough(base: Path, tmp_path: Path) -> None:
    """All stages, figures and a launch file for two hosts; nothing else is written."""
    out, launch = tmp_path / "plan.json", tmp_path / "launch.yaml"
    words = ["--config", f"{base}/c.yaml", "--gpus", "8", "--gpu-memory", "80", "--nodes", "2"]
    done = run(*words, "--json", str(out), "--launch", str(launch), "--ppo.batch_size", "64")
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert list(found) == ["sft", "reward", "ppo"]
    for stage in found.values():
        assert 0 < stage["peak_gb"] <= 80
        assert stage["seconds"] == pytest.approx(sum(stage["parts"].values()))
        sums = [sum(row[2] for row in phase) for phase in stage["memory_gb"].values()]
        assert stage["peak_gb"] == pytest.approx(max(sums))
    assert "num_processes: 16" in launch.read_text(encoding="utf-8")
    assert "num_machines: 2" in launch.read_text(encoding="utf-8")
    assert sorted(path.name for path in base.iterdir()) == ["c.yaml", "config.json"]


def test_nothing_fits(base: Path, tmp_path: Path) -> None:
    """Exit status 1, the figures of the configuration as it is, and what each way would take."""
    out = tmp_path / "plan.json"
    words = ["--config", f"{base}/c.yaml", "--gpus", "1", "--gpu-memory", "4"]
    done = run(*words, "--stage", "sft", "--json", str(out))
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(out.read_text(encoding="utf-8"))["sft"]["peak_gb"] > 100
    assert "4bit" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "0"], "--gpus is 0"),
        (["--gpu-memory", "-5"], "--gpu-memory is -5"),
        (["--gpus", "three"], "invalid int value"),
        (["--gpus", "3"], "do not divide over 3 processes"),
        (["--model.path", "/nowhere/at/all"], "there is no /nowhere/at/all/config.json"),
        (["--ppo.batch_sise", "8"], "Did you mean ppo.batch_size"),
        (["--gpu", "GTX"], "--gpu GTX is not known"),
    ],
)
def test_wrong_words_are_a_paragraph(base: Path, words: list[str], said: str) -> None:
    given = ["--config", f"{base}/c.yaml", "--gpus", "1", "--gpu-memory", "80", *words]
    done = run(*given)
    assert done.returncode == 1
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_unknown_models_are_named() -> None:
    with pytest.raises(UserError, match="model_type t5 is none"):
        shape_from({"model_type": "t5"}, "config.json")
    with pytest.raises(UserError, match="hidden_size or n_embd"):
        shape_from({**SEVEN, "hidden_size": "wide"}, "config.json")


def test_torch_is_not_needed(base: Path) -> None:
    code = (
        "import sys; sys.argv = ['plan.py']; import scripts.plan.times, scripts.plan.text;"
        "import cores.forecast; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def told(monkeypatch: pytest.MonkeyPatch, config: Config, card: float, kind: str) -> list[str]:
    """What a stage says on a GPU of so many bytes, or on a CPU."""
    facts = SimpleNamespace(total_memory=card)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    said: list[str] = []
    held = SimpleNamespace(name="DDP", offload=False)
    launch = SimpleNamespace(device=torch.device(kind), world=1, sharding=held, say=said.append)
    forecast.forecast(config, "ppo", launch)
    return said


def test_stages_say_what_they_will_hold(monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    config = parse_config(["--config", f"{base}/c.yaml"], "", "")
    adapted = replace(config, ppo=replace(config.ppo, lora=replace(config.ppo.lora, rank=8)))
    assert told(monkeypatch, config, 80e9, "cpu") == []
    (line,) = told(monkeypatch, adapted, 80e9, "cuda")
    assert "of 80.0 GB a GPU, in the " in line
    with pytest.raises(UserError, match=r"alone are \d+ GB a GPU, and it has 80.*zero3.yaml"):
        told(monkeypatch, config, 80e9, "cuda")
    t5 = replace(config, model=replace(config.model, path="/nowhere"))
    (line,) = told(monkeypatch, t5, 80e9, "cuda")
    assert line.startswith("memory is not counted beforehand: model.path: there is no")


def test_launch_files_are_those_of_the_folder() -> None:
    for shards in ("none", "zero2", "zero3"):
        layout = Layout(4, shards)
        text = launch_file(plan("sft", case_of(layout=layout), H100, 1, {}), 1)
        assert "num_processes: 4 " in text
