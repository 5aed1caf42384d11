"""Rollouts: one engine interface, our engine and that of Hugging Face generate."""

from cores.rollout.build import build_engine, check_engine, stop_ids, text_matcher
from cores.rollout.engine import Rollout, RolloutEngine, Sampling, response_mask
from cores.rollout.graph.engine import GraphEngine
from cores.rollout.hf import HFEngine, TextStops

__all__ = [
    "GraphEngine",
    "HFEngine",
    "Rollout",
    "RolloutEngine",
    "Sampling",
    "TextStops",
    "build_engine",
    "check_engine",
    "response_mask",
    "stop_ids",
    "text_matcher",
]
