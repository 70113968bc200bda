"""Analyzers of what generative models made: an answer, each step of a text, a sampled picture."""

from .explain_answer import explain_answer
from .explain_sampling import explain_sampling
from .generate import generate
from .steer import steer

__all__ = ["explain_answer", "explain_sampling", "generate", "steer"]
