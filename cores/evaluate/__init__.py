"""What a policy is worth on prompts that no training saw. No trainer is needed."""

from cores.evaluate.held_out import Evaluation, evaluate, sample_pairs
