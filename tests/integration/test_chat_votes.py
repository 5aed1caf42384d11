"""From a person's choice to a better model: votes -> stage 2 -> stage 3."""

import json
import shutil
from pathlib import Path

from _chat import ask, final, serving, vote
from _helpers import good, in_process, record, rows

ROUNDS, TOKENS = 48, 10


def words_in(text: str) -> int:
    """What the voter likes: words that are no numbers."""
    return sum(not word.isdigit() for word in text.split())


def test_what_was_voted_for_becomes_what_is_said(
    finished: Path, llama: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """The voter picks the answer with the most words among numbers, blind; the reward model of
    these votes knows it on held-out ones, and PPO by that reward model says more words."""
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    words = good(llama, files, out)
    with serving(words) as server:
        for seed in range(ROUNDS):
            prompt = f"please bring a towel to room {seed}"
            events = ask(server, prompt, seed=seed, blind=True, max_new_tokens=TOKENS)
            found = {x: words_in(reply["text"]) for x, reply in final(events).items()}
            best = max(found, key=lambda letter: found[letter])
            tie = list(found.values()).count(found[best]) > 1
            assert vote(server, events, "tie" if tie else best)[0] == 200
        file = server.file
    votes = [row["vote"] for row in rows(file)]
    assert votes.count("winner") > ROUNDS / 2
    assert "tie" in votes
    reward = ["--data.preference.path", file, "--overwrite", "--reward.max_steps", 60,
              "--reward.learning_rate", 1e-2, "--reward.batch_size", 16]  # fmt: skip
    in_process("reward", [str(w) for w in [*words, *reward]])
    judged = record(out / "reward")["metrics"]
    ppo = [
        "--ppo.updates", 16, "--ppo.batch_size", 32, "--ppo.minibatch_size", 32,
        "--ppo.microbatch_size", 32, "--ppo.max_new_tokens", TOKENS, "--ppo.kl_coef", 0.01,
        "--ppo.actor_learning_rate", 1e-2, "--ppo.critic_learning_rate", 1e-2,
        "--ppo.missing_eos_penalty", 0, "--data.prompts.path", file, "--ppo.eval_prompts", 32,
        "--data.test_fraction", 0.5,
    ]  # fmt: skip
    in_process("ppo", [str(w) for w in [*words, *ppo]])
    found = record(out / "ppo")["metrics"]
    assert found["after"]["score"] > found["before"]["score"] + 0.5, (judged, found)
    said: dict[str, list[int]] = {"before": [], "after": []}
    for row in rows(out / "ppo" / "held_out_samples.jsonl"):
        for side, counts in said.items():
            counts.append(words_in(row[side]["text"]))
    before, after = (sum(counts) / len(counts) for counts in said.values())
    print(json.dumps({"judged": judged, "before": before, "after": after}, default=str))
    assert after > before + 2
