"""Analyzers of generated text: what made an answer, and each step of it."""

from .generate import generate

__all__ = ["generate"]
