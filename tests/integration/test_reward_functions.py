"""Stage 3 on reward functions that use processes, pass rows over, and change their own file."""

import hashlib
from pathlib import Path
from typing import Any

from _helpers import good, record, rows

RULE = """\
import multiprocessing, os, torch
def size(text):
    return float(len(text))
def pooled(completions, **kwargs):
    pool = multiprocessing.get_context("fork").Pool(1)
    sizes = pool.map(size, completions)
    pool.close(), pool.join()
    return sizes
def some(prompts, responses, rows):
    with open(__file__, "a") as file:
        file.write("# changed\\n")
    os.chdir("/"), torch.manual_seed(0), torch.set_default_dtype(torch.float64)
    return [None] + [1.0] * (len(rows) - 1)
"""


def test_a_run(parents: Path, llama: Path, files: dict[str, Path], call: Any) -> None:
    """What ran is on record, and what was not said is counted."""
    rule = parents.parent / "rule_of_a_run.py"
    rule.write_text(RULE, encoding="utf-8")
    rewards = f'{{"{rule}:pooled": 0.1, "{rule}:some": 1.0}}'
    words = [*good(llama, files, parents), "--ppo.rewards", rewards, "--ppo.critic_init", "zero"]
    status, _, err = call("ppo", words)
    assert (status, err) == (0, "")
    ran = hashlib.sha256(RULE.encode()).hexdigest()
    assert record(parents / "ppo")["reward_files"] == {str(rule): ran}
    assert hashlib.sha256(rule.read_bytes()).hexdigest() != ran
    for line in rows(parents / "ppo" / "metrics.jsonl"):
        assert (line["score_some"], line["unscored_some"]) == (1.0, 1.0)
        assert line["score_pooled"] > 0
        assert "unscored_pooled" not in line
