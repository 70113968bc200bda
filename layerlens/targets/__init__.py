"""Targets: what is scored in the output of a model, or inside it."""
