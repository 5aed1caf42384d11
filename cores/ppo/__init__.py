"""Proximal policy optimization: what is trained, one type that travels, and the trainer."""

from cores.ppo.evaluate import Evaluation, evaluate, sample_pairs
from cores.ppo.experience import Experience, Scored, gather_rows
from cores.ppo.roles import Roles, build_roles
from cores.ppo.trained import TrainedRole
from cores.ppo.trainer import PPOTrainer

__all__ = [
    "Evaluation",
    "Experience",
    "PPOTrainer",
    "Roles",
    "Scored",
    "TrainedRole",
    "build_roles",
    "evaluate",
    "gather_rows",
    "sample_pairs",
]
