"""Dynamics: how layers transform data, and what training makes of them."""

from .watch import Watch, watch

__all__ = ["Watch", "watch"]
