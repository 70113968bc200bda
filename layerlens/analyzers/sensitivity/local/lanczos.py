"""The largest eigenvalue of a symmetric matrix that is known only by its products."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

Product = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""v `(rows, n)` -> A v `(rows, n)` and v' A v `(rows,)`: each row has its own matrix A."""


@dataclasses.dataclass(frozen=True)
class Largest:
    """The largest eigenvalue of each row's matrix.

    Attributes:
        value: the largest eigenvalue, `(rows,)`, never above the true one except by rounding.
        residual: ||A v - value v|| / value: an eigenvalue lies that near, relative to it.
        used: iterations until the residual was within the tolerance, or all of them.
        history: the value after each iteration, `(rows, iterations)`, constant once a row is done.
        forms: v' A v and v' (A v) of the first vector, `(rows, 2)`: equal where both products belong to one matrix.
    """

    value: torch.Tensor
    residual: torch.Tensor
    used: torch.Tensor
    history: torch.Tensor
    forms: torch.Tensor


def largest(product: Product, start: torch.Tensor, iterations: Iterable[int], count: int, tolerance: float) -> Largest:
    """Find the largest eigenvalue of every row's positive semidefinite A by Lanczos iteration (Lanczos 1950).

    The iterates of the power method v, A v, A A v, ... are made orthogonal, and the largest value that any vector
    of their span gives is taken (Golub & Van Loan 2013, sec. 10.1): at least that of the power method after as many
    products. Rows are independent: each keeps its value from when it first came within the tolerance.

    Args:
        product: product of the matrices with one vector each.
        start: first vectors, `(rows, n)`, none of them zero.
        iterations: an iterable of `count` numbers, so that progress can be shown.
        count: number of iterations.
        tolerance: largest residual of a row that is done.
    """
    rows = len(start)
    tiny = 10 * torch.finfo(start.dtype).eps
    vector = start / start.norm(dim=1, keepdim=True)
    basis = [vector]
    diagonal = torch.zeros(rows, count, dtype=torch.float64)
    off_diagonal = torch.zeros(rows, count, dtype=torch.float64)
    value, residual = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
    used, done = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.bool)
    forms, history = torch.zeros(rows, 2, dtype=torch.float64), list[torch.Tensor]()
    for step in iterations:
        image, square = product(vector)
        diagonal[:, step] = square.double().cpu()
        if step == 0:
            forms = torch.stack([diagonal[:, 0], (image * vector).sum(dim=1).double().cpu()], dim=1)
        for _ in range(2):  # a single pass leaves rounding errors
            for known in basis:
                image = image - (image * known).sum(dim=1, keepdim=True) * known
        length = image.norm(dim=1)
        theta, last = _ritz(diagonal[:, : step + 1], off_diagonal[:, :step])
        length = torch.where(
            length.double().cpu() > tiny * theta, length.double().cpu(), 0.0
        )  # zero: the span is closed
        off_diagonal[:, step] = length
        value, was_done = torch.where(done, value, theta), done
        residual = torch.where(was_done, residual, _relative(length * last, theta))
        used = torch.where(was_done, used, step + 1)
        history.append(value)
        done = was_done | (residual <= tolerance)
        if bool(done.all()) or step + 1 == count:
            break
        scale = torch.where(length > 0, 1 / length, 0.0).to(image)
        vector = image * scale.unsqueeze(1)
        basis.append(vector)
    history += [value] * (count - len(history))
    return Largest(value, residual, used, torch.stack(history, dim=1), forms)


def _ritz(diagonal: torch.Tensor, off_diagonal: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the largest eigenvalue of each tridiagonal matrix, and the size of its eigenvector's last entry."""
    bad = ~(diagonal.isfinite().all(dim=1) & off_diagonal.isfinite().all(dim=1))
    matrix = torch.diag_embed(diagonal) + torch.diag_embed(off_diagonal, 1) + torch.diag_embed(off_diagonal, -1)
    values, vectors = torch.linalg.eigh(torch.where(bad[:, None, None], 0.0, matrix))
    return values[:, -1].clamp_min(0).masked_fill(bad, float("nan")), vectors[:, -1, -1].abs()


def _relative(difference: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.where(difference == 0, 0.0, difference.abs() / value)
