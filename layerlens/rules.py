"""What a rulebook is made of: parts of a network, and the rules of linear operations."""

from .analyzers.relevance.linear import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from .analyzers.relevance.rulebook import RULEBOOKS, Part, Rulebook

__all__ = ["RULEBOOKS", "AlphaBeta", "Epsilon", "Flat", "Gamma", "Part", "Rulebook", "WSquare", "ZBox", "ZPlus"]
