"""Leaves: the tensors that a score is attributed to."""
