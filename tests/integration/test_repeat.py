"""A finished run again: refused, replaced, repeated, looked at. On configs/colossalai.yaml."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from _helpers import (
    ACCELERATE,
    FEW_STEPS,
    ROOT,
    SCRIPTS,
    in_process,
    record,
    run,
    sha256,
    sources,
    tree,
)


@dataclass
class Chain:
    """A finished run of all stages."""

    out: Path
    arguments: list[str]


@pytest.fixture(scope="module")
def chain(tmp_path_factory, gpt2: Path, files: dict[str, Path]) -> Chain:
    """colossalai.yaml with local files: the test splits that the hub alone has are taken away."""
    out = tmp_path_factory.mktemp("runs") / "colossalai"
    words = ["--config", str(ROOT / "configs" / "colossalai.yaml"), *sources(files), *FEW_STEPS]
    words += ["--data.preference.test_split", "null", "--data.prompts.test_split", "null"]
    words += ["--model.path", str(gpt2), "--output_dir", str(out)]
    for stage in SCRIPTS:
        in_process(stage, words)
    return Chain(out, words)


def test_colossalai_runs(chain: Chain) -> None:
    """Its own values where the short run did not replace them."""
    facts = record(chain.out / "ppo")
    assert facts["metrics"]["optimizer_steps"] == 4
    assert (facts["config"]["ppo"]["kl_kind"], facts["config"]["ppo"]["lam"]) == ("k3", 1.0)


def test_existing_folder_needs_overwrite(chain: Chain, refused) -> None:
    """Invariant 31: without --overwrite an error; with it the same seed gives the same bytes, in a
    process of its own too."""
    before = tree(chain.out)
    message = refused("ppo", chain.arguments, chain.out)
    assert message.startswith(f"error: {chain.out / 'ppo'}: exists already.")
    assert "--overwrite" in message
    again = run("ppo", [*chain.arguments, "--overwrite"])
    assert (again.returncode, again.stderr) == (0, "")  # nothing of a library, plain python too
    after = tree(chain.out)
    timed = {"ppo/stage.json", "ppo/metrics.jsonl", "ppo/log.txt", "report.html"}
    assert {k: v for k, v in after.items() if k not in timed} == {
        k: v for k, v in before.items() if k not in timed
    }
    assert after["ppo/stage.json"] != before["ppo/stage.json"]
    assert [p.name for p in chain.out.iterdir() if p.name.startswith(".")] == []


def test_training_changed_the_weights(chain: Chain) -> None:
    """Equal weights twice would prove nothing if nothing were trained."""
    ppo, sft = (sha256(chain.out / s / "model.safetensors") for s in ("ppo", "sft"))
    critic, reward = (sha256(chain.out / s / "model.safetensors") for s in ("ppo/critic", "reward"))
    assert ppo != sft
    assert critic != reward


def test_another_seed_is_another_run(chain: Chain, tmp_path: Path, call) -> None:
    """Invariant 31: the seed is used."""
    for stage in ("sft", "reward"):
        (tmp_path / stage).symlink_to(chain.out / stage)
    words = [*chain.arguments, "--output_dir", str(tmp_path), "--seed", "1"]
    status, _, err = call("ppo", words)
    assert status == 0, err
    one, other = (f / "ppo" / "model.safetensors" for f in (chain.out, tmp_path))
    assert sha256(one) != sha256(other)


@pytest.mark.long
def test_launcher_does_not_matter(chain: Chain, tmp_path: Path) -> None:
    """Invariant 31: the same seed under accelerate launch gives the same stage 1, bitwise."""
    words = [*chain.arguments, "--output_dir", str(tmp_path / "again")]
    done = run("sft", words, ACCELERATE)
    assert (done.returncode, done.stderr) == (0, "")
    one, other = (f / "sft" / "model.safetensors" for f in (chain.out, tmp_path / "again"))
    assert sha256(one) == sha256(other)


@pytest.mark.parametrize("stage", list(SCRIPTS))
def test_inspect_writes_nothing(chain: Chain, stage: str, call) -> None:
    """--data.inspect prints rows in two colours and lengths, even where the stage is done."""
    before = tree(chain.out)
    status, printed, err = call(stage, [*chain.arguments, "--data.inspect", "2"])
    assert (status, err) == (0, "")
    assert printed.count("--- row ") == (4 if stage == "reward" else 2)
    assert "\x1b[90m" in printed
    assert "--- lengths in tokens" in printed
    assert tree(chain.out) == before
    assert "### Instruction:" in printed
