"""Analyzers of generated text: what made an answer, and each step of it."""

from .explain_answer import explain_answer
from .generate import generate

__all__ = ["explain_answer", "generate"]
