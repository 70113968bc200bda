"""Results that say in words what their numbers mean, and what they do not."""

from __future__ import annotations

from ..base import Result


class Explained(Result):
    """Base of the results of measurements.

    Subclasses have a field `explanation`: what the numbers mean and what they do not, a sentence each.
    """

    explanation: tuple[str, str]

    def explain(self) -> str:
        """Two sentences: what the numbers mean, and what they do not."""
        return " ".join(sentence for sentence in self.explanation if sentence) or self._plainly()

    def _plainly(self) -> str:
        facts = "; ".join(f"{name}: {text}" for name, text in self.summary())
        return f"These are the facts that are known of this {type(self).__name__}: {facts}. Nothing is said of limits."
