"""Analyzers of generated text."""
