"""Proximal policy optimization: what is trained, one type that travels, and the trainer."""

from cores.ppo.experience import Experience, Scored, gather_rows
from cores.ppo.roles import Roles, TrainedRole, build_roles
from cores.ppo.score import Scorer
from cores.ppo.state import PPOState
from cores.ppo.trainer import PPOTrainer

__all__ = [
    "Experience",
    "PPOState",
    "PPOTrainer",
    "Roles",
    "Scored",
    "Scorer",
    "TrainedRole",
    "build_roles",
    "gather_rows",
]
