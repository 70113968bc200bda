"""Similarity of representations across layers and models."""
