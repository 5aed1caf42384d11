"""Processes, stage folders, and what a run prints."""
