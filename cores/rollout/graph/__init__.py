"""Rollouts by our own decode step, captured on CUDA."""
