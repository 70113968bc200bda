"""What a rulebook is made of: parts of a network and rules of linear operations; and rows for other operations."""

from .analyzers.relevance.linear import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from .analyzers.relevance.rulebook import RULEBOOKS, Part, Rulebook
from .analyzers.relevance.rules import Kind, Role, Row
from .analyzers.relevance.rules.register import register

__all__ = [
    "RULEBOOKS",
    "AlphaBeta",
    "Epsilon",
    "Flat",
    "Gamma",
    "Kind",
    "Part",
    "Role",
    "Row",
    "Rulebook",
    "WSquare",
    "ZBox",
    "ZPlus",
    "register",
]
