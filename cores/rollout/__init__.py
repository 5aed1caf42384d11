"""Rollouts: one engine interface, and the Hugging Face generate engine."""

from cores.rollout.engine import Rollout, RolloutEngine, response_mask
from cores.rollout.hf import HFEngine, build_engine
from cores.rollout.stops import TextStops, stop_ids, text_matcher

__all__ = [
    "HFEngine",
    "Rollout",
    "RolloutEngine",
    "TextStops",
    "build_engine",
    "response_mask",
    "stop_ids",
    "text_matcher",
]
