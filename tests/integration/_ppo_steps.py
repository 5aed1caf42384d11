"""Two PPO steps on fixed replies, in whatever launch this is called in; saves actor and critic.

The replies depend on their prompts alone, so every launch sees the same global batches.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

from cores.config import AdamSection, Config, LoraSection, PPOSection
from cores.draws import share
from cores.models import load_tokenizer
from cores.ppo import PPOTrainer, Roles, build_roles, gather_rows
from cores.rollout.engine import Rollout, response_mask
from cores.runtime.launch import Launch
from cores.runtime.parents import Parent
from cores.training.ppo import build_trainer, check_options, save_roles

WIDTH = 7
PROMPTS = [[10 + i, 11 + 2 * i, *range(20, 21 + i % 3)] for i in range(8)]
ROUGH = AdamSection(eps=1e-5)
"""With less Adam makes steps of gradients that are rounding and nothing else."""
CONFIG = Config(
    ppo=PPOSection(
        updates=2, batch_size=8, minibatch_size=4, microbatch_tokens=24, epochs=2,
        max_new_tokens=WIDTH, actor_learning_rate=1e-3, critic_learning_rate=1e-3, warmup=0.0,
        kl_target=0.001, kl_horizon=16, max_grad_norm=0.5, actor_adam=ROUGH, critic_adam=ROUGH,
    )
)  # fmt: skip


class FixedReplies:
    """A reply of random ids, of a length of its own, drawn from the prompt."""

    def __init__(self, pad_id: int, eos_id: int, device: torch.device) -> None:
        self.pad_id, self.eos_id, self.device = pad_id, eos_id, device

    def generate(self, prompts: list[list[int]], uniform: torch.Tensor) -> Rollout:
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
        masks = torch.cat([prompt_mask, mask], 1), mask
        found = (ids, *masks, torch.zeros(mask.shape), ended)
        return Rollout(*(tensor.to(self.device) for tensor in found))


def sampled_gap(trainer: PPOTrainer) -> float:
    """Largest difference of the sampling engine's log-probs from the trained actor's, any rank."""
    mine = share(PROMPTS, trainer.launch.rank, trainer.launch.world)
    rollout = trainer.rollout(mine, trainer.launch.rank * len(mine))
    scored = gather_rows(trainer.score(rollout), trainer.launch)
    gap = (scored.logprobs - scored.rollout_logprobs).abs()
    return gap[scored.response_mask].max().item()


def ppo_steps(parents: Path, out: Path, lora_rank: int, run: Launch) -> None:
    """From `parents`/sft and /reward to `out`, `out`/critic and `out`/facts.json."""
    sft, reward = parents / "sft", parents / "reward"
    config = replace(CONFIG, ppo=replace(CONFIG.ppo, lora=LoraSection(rank=lora_rank)))
    tokenizer = load_tokenizer(sft)
    check_options(config, tokenizer)
    folders = {"sft": Parent("sft", sft, {}), "reward": Parent("reward", reward, {})}
    roles = build_roles(config, tokenizer, folders, run)
    engine = FixedReplies(tokenizer.pad_token_id, tokenizer.eos_token_id, run.device)
    trainer = PPOTrainer(config.ppo, roles, engine, run, seed=3)
    stats = [trainer.step(share(PROMPTS, run.rank, run.world))[1] for _ in range(2)]
    trainer = build_trainer(config, roles, tokenizer, run)
    gap = sampled_gap(trainer)
    save_roles(trainer, tokenizer, out)
    if run.is_main:
        steps = {"actor": roles.actor.steps, "critic": roles.critic.steps}
        engines = [getattr(r.module, "global_steps", r.steps) for r in (roles.actor, roles.critic)]
        facts = {"stats": stats, "steps": steps, "engine_steps": engines, "gap": gap}
        facts["world"] = run.world
        facts["sharded"] = shards(roles)
        (out / "facts.json").write_text(json.dumps(facts))


def shards(roles: Roles) -> dict[str, float]:
    """The share of each role's weights that this rank holds."""
    modules = {
        "actor": roles.actor.unwrapped, "critic": roles.critic.unwrapped,
        "reference": roles.frozen_actor, "reward": roles.reward,
    }  # fmt: skip
    result = {}
    for name, module in modules.items():
        if isinstance(module, torch.nn.Module):
            parameters = list(module.parameters())
            parts = [p.to_local() if isinstance(p, DTensor) else p for p in parameters]
            held = sum(getattr(p, "ds_tensor", p).numel() for p in parts)
            result[name] = held / sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
    return result
