"""Rollouts: one engine interface, and the Hugging Face generate engine."""

from cores.rollout.engine import Rollout, RolloutEngine, response_mask
from cores.rollout.hf import HFEngine

__all__ = ["HFEngine", "Rollout", "RolloutEngine", "response_mask"]
