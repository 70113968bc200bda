"""What a model would say if each layer were its last."""

from __future__ import annotations

import dataclasses

import torch

from layerlens.errors import OptionError

from ..values.matrix import Matrix


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LogitLens(Matrix):
    """One number for each layer and position, and the most likely classes, or tokens, there.

    Attributes:
        targets: the class that is watched at each column.
        top: the likeliest classes, likeliest first, `(rows, columns, k)`.
        scores: their probabilities, `(rows, columns, k)`.
        names: class -> name, of those classes that are known by name.
    """

    targets: tuple[int, ...] = ()
    top: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, 0, 0))
    scores: torch.Tensor = dataclasses.field(default_factory=lambda: torch.empty(0, 0, 0))
    names: dict[int, str] = dataclasses.field(default_factory=dict)

    def name(self, index: int) -> str:
        """The name of a class, or its number."""
        return self.names.get(index, str(index))

    def says(self, row: str | int, column: str | int = -1) -> list[tuple[str, float]]:
        """(name, probability) of the most likely classes at one layer and position, most likely first.

        Raises:
            OptionError: when there is no such row or column.
        """
        k, j = self._index_of(row, 0), self._index_of(column, 1)
        chosen, scores = self.top[k, j].tolist(), self.scores[k, j].tolist()
        return [(self.name(index), score) for index, score in zip(chosen, scores, strict=True)]

    def settles(self, column: str | int = -1) -> str | None:
        """The first layer from which the target is the most likely class up to the last layer; None if there is none.

        Raises:
            OptionError: when there is no such column.
        """
        j = self._index_of(column, 1)
        first = None
        for row, likeliest in zip(self.rows, self.top[:, j, 0].tolist(), strict=True):
            first = (first or row) if likeliest == self.targets[j] else None
        return first

    def _index_of(self, given: str | int, axis: int) -> int:
        names = self.columns if axis else self.rows
        if isinstance(given, str):
            self.at(*((self.rows[0], given) if axis else (given, self.columns[0])))  # says what there is
            return names.index(given)
        if not -len(names) <= given < len(names):
            raise OptionError(f"there are {len(names)} {self.axes[axis]}s, and no number {given}.")
        return given % len(names)

    def summary(self) -> list[tuple[str, str]]:
        """What is watched, and what the first and the last layer say at the last position."""
        watched = ", ".join(dict.fromkeys(self.name(index) for index in self.targets[-3:]))
        ends = [f"{row}: {self.says(row)[0][0]} ({self.says(row)[0][1]:.2f})" for row in (self.rows[0], self.rows[-1])]
        return [*super().summary()[:3], ("target", watched), (f"at {self.columns[-1]}", "; ".join(ends))]
