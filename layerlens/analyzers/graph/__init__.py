"""Autograd's graph: its nodes and operations, and what a forward pass records for it."""
