"""The chat page: finished models side by side, and votes that stage 2 reads."""
