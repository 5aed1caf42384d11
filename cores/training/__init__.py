"""Stages 1 and 2: supervised training on Hugging Face's and TRL's trainers."""
