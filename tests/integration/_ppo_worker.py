"""Two PPO steps on fixed replies, in whatever launch this is started in; saves actor and critic.

    _ppo_worker.py SFT REWARD OUT LORA_RANK

The replies depend on their prompts alone, so every launch sees the same global batches.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from cores.config import Config, LoraSection, PPOSection
from cores.models import load_tokenizer
from cores.ppo import PPOTrainer, build_roles, gather_rows
from cores.ppo.prompts import share
from cores.ppo.run import build_trainer, check_options, save_roles
from cores.rollout import Rollout, response_mask
from cores.runtime.launch import launch
from cores.runtime.stage import Parent

WIDTH = 7
PROMPTS = [[10 + i, 11 + 2 * i, *range(20, 21 + i % 3)] for i in range(8)]
CONFIG = Config(
    ppo=PPOSection(
        updates=2, batch_size=8, minibatch_size=4, microbatch_size=1, epochs=2,
        max_new_tokens=WIDTH, actor_learning_rate=1e-3, critic_learning_rate=1e-3, warmup_ratio=0.0,
        max_grad_norm=0.5,
    )
)  # fmt: skip


class FixedReplies:
    """A reply of random ids, of a length of its own, drawn from the prompt."""

    def __init__(self, pad_id: int, eos_id: int) -> None:
        self.pad_id, self.eos_id = pad_id, eos_id

    def generate(self, prompts: list[list[int]]) -> Rollout:
        left = max(map(len, prompts))
        ids = torch.full((len(prompts), left + WIDTH), self.pad_id)
        for i, prompt in enumerate(prompts):
            draw = torch.Generator().manual_seed(sum(prompt))
            length = int(torch.randint(2, WIDTH + 1, (1,), generator=draw))
            ids[i, left - len(prompt) : left] = torch.tensor(prompt)
            ids[i, left : left + length] = torch.randint(30, 40, (length,), generator=draw)
            ids[i, left + length - 1] = self.eos_id
        mask, ended = response_mask(ids[:, left:], torch.tensor([self.eos_id]))
        lengths = torch.tensor([len(p) for p in prompts])
        prompt_mask = torch.arange(left) >= left - lengths[:, None]
        return Rollout(ids, torch.cat([prompt_mask, mask], 1), mask, torch.zeros(mask.shape), ended)


def sampled_gap(trainer: PPOTrainer) -> float:
    """Largest difference of the sampling engine's log-probs from the trained actor's, any rank."""
    rollout = trainer.rollout(share(PROMPTS, trainer.launch.rank, trainer.launch.world))
    scored = gather_rows(trainer.score(rollout), trainer.launch)
    gap = (scored.logprobs - scored.rollout_logprobs).abs()
    return gap[scored.response_mask].max().item()


def main() -> None:
    sft, reward, out = map(Path, sys.argv[1:4])
    config = replace(CONFIG, ppo=replace(CONFIG.ppo, lora=LoraSection(rank=int(sys.argv[4]))))
    run = launch(config)
    tokenizer = load_tokenizer(sft)
    check_options(config, tokenizer, run)
    parents = {"sft": Parent("sft", sft, {}), "reward": Parent("reward", reward, {})}
    torch.manual_seed(1)  # adapters
    roles = build_roles(config, tokenizer, parents, run)
    engine = FixedReplies(tokenizer.pad_token_id, tokenizer.eos_token_id)
    trainer = PPOTrainer(config.ppo, roles, engine, run, seed=3)
    stats = [trainer.step(share(PROMPTS, run.rank, run.world))[1] for _ in range(2)]
    gap = sampled_gap(build_trainer(config, roles, tokenizer, run))
    save_roles(config, roles, tokenizer, out, run)
    if run.is_main:
        steps = {"actor": roles.actor.steps, "critic": roles.critic.steps}
        engines = [getattr(r.module, "global_steps", r.steps) for r in (roles.actor, roles.critic)]
        facts = {"stats": stats, "steps": steps, "engine_steps": engines, "gap": gap}
        facts["world"] = run.world
        (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
