"""What a rulebook is made of: parts of a network and rules of linear operations; and rows for other operations."""

from .analyzers.graph.operation import Kind, Role, Row
from .analyzers.relevance.rules.linear import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from .analyzers.relevance.rules.operation_table import register
from .analyzers.relevance.rules.rulebook import RULEBOOKS, Part, Rulebook

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
