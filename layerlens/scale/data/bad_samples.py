"""What is read of a data set: batches of samples that follow each other, and samples that cannot be read."""

from __future__ import annotations

import dataclasses
from typing import Any

from layerlens.inputs.batches import Batch


@dataclasses.dataclass(frozen=True)
class Bad:
    """A sample that could not be read, or on which the analyzer failed.

    Attributes:
        index: of the sample in the data.
        reason: class and text of the error.
        cause: the error, where it was raised in this process.
    """

    index: int
    reason: str
    cause: BaseException | None = None

    @classmethod
    def of(cls, index: int, error: BaseException) -> Bad:
        """The same of an error."""
        return cls(index, f"{type(error).__name__}: {error}", error)


Piece = Batch | Bad


def start_of(piece: Piece) -> int:
    """The number of its first sample."""
    return piece.start if isinstance(piece, Batch) else piece.index


def size(piece: Any) -> int:
    """How many samples a piece stands for."""
    return piece.inputs.batch if isinstance(piece, Batch) else 1
