"""Calls of layers, listed by a first run."""
