"""Rollouts by our own decode step, captured on CUDA."""

from cores.rollout.graph.engine import GraphEngine

__all__ = ["GraphEngine"]
