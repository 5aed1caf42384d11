"""Rollouts: one engine interface, our engine and that of Hugging Face generate."""

from cores.rollout.build import build_engine, check_engine, stop_ids, text_matcher
from cores.rollout.engine import Rollout, RolloutEngine

__all__ = ["Rollout", "RolloutEngine", "build_engine", "check_engine", "stop_ids", "text_matcher"]
