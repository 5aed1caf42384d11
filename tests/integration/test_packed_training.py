"""Training on packed rows is training on the rows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from _families import PACKABLE
from _models import largest_difference, parameters, policy_of
from _stages import begun
from _training import gradient_descent, sft_rows, training_config

from cores.training.sft import train_sft


@pytest.mark.parametrize("kind", PACKABLE)
def test_packed_is_unpacked(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant 27: two steps on the same 13 rows, alone and packed, in packed micro-batches of
    one and of two: the same losses and weights, to 1e-6. First tokens with a label do not count."""
    gradient_descent(monkeypatch)
    rows = sft_rows(13)
    rows[3]["labels"] = rows[3]["input_ids"]
    found = []
    for packing, micro in ((False, 4), (True, 1), (True, 2)):
        config = training_config(tmp_path / f"{packing}{micro}", micro)
        sft = replace(config.sft, packing=packing, max_length=20, batch_size=16)
        config = replace(config, sft=sft)
        model, run = policy_of(kind), begun(config)
        train_sft(model, rows, run)
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        found.append((parameters(model), [json.loads(line)["loss"] for line in lines]))
    (weights, losses), *others = found
    assert largest_difference(weights, parameters(policy_of(kind))) > 1e-4
    for theirs, also in others:
        assert also == pytest.approx(losses, abs=1e-5)
        assert largest_difference(weights, theirs) < 1e-6
