"""Linear operations with constant weights: the rules that split relevance by the sign of each contribution."""

from .rules import AlphaBeta, Epsilon, Flat, Gamma, LinearRule, WSquare, ZBox, ZPlus

__all__ = ["AlphaBeta", "Epsilon", "Flat", "Gamma", "LinearRule", "WSquare", "ZBox", "ZPlus"]
