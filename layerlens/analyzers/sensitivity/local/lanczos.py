"""The largest eigenvalue of a symmetric matrix that is known by its products only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import torch

Product = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""v `(rows, n)` -> A v `(rows, n)` and v' A v `(rows,)`: each row has a matrix A of its own."""


@dataclasses.dataclass(frozen=True)
class Largest:
    """What was found, row by row.

    Attributes:
        value: the largest eigenvalue, `(rows,)`, never above the true one but for rounding.
        residual: ||A v - value v|| / value: an eigenvalue lies that near, relative to it.
        used: iterations until the residual was within the tolerance, or all of them.
        history: the value after each iteration, `(rows, iterations)`; what was found stays.
        asymmetry: |v' A v - v' (A v)| / v' A v of the first vector: 0 where the two products belong to one matrix.
    """

    value: torch.Tensor
    residual: torch.Tensor
    used: torch.Tensor
    history: torch.Tensor
    asymmetry: torch.Tensor


def largest(product: Product, start: torch.Tensor, iterations: Iterable[int], count: int, tolerance: float) -> Largest:
    """The largest eigenvalue of every row's positive semidefinite A by Lanczos iteration (Lanczos 1950).

    The iterates of the power method v, A v, A A v, ... are made orthogonal, and the largest value that any vector
    of their span gives is taken (Golub & Van Loan 2013, sec. 10.1): at least what the power method has after as many
    products. Rows are independent: each keeps what it found when it first came within the tolerance.

    Args:
        product: of the matrices with a vector each.
        start: `(rows, n)`, none of them zero.
        iterations: what to go through, `count` of it, so that progress can be shown.
        count: of iterations.
        tolerance: for the residual.
    """
    rows = len(start)
    tiny = 10 * torch.finfo(start.dtype).eps
    vector = start / start.norm(dim=1, keepdim=True)
    basis = [vector]
    middle = torch.zeros(rows, count, dtype=torch.float64)
    beside = torch.zeros(rows, count, dtype=torch.float64)
    value, residual = torch.zeros(rows, dtype=torch.float64), torch.zeros(rows, dtype=torch.float64)
    used, done = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, dtype=torch.bool)
    asymmetry, history = torch.zeros(rows, dtype=torch.float64), list[torch.Tensor]()
    for step in iterations:
        image, square = product(vector)
        middle[:, step] = square.double().cpu()
        if step == 0:
            asymmetry = _relative((image * vector).sum(dim=1).double().cpu() - middle[:, 0], middle[:, 0])
        for _ in range(2):  # once leaves rounding behind
            for known in basis:
                image = image - (image * known).sum(dim=1, keepdim=True) * known
        length = image.norm(dim=1)
        theta, last = _ritz(middle[:, : step + 1], beside[:, :step])
        length = torch.where(length.double().cpu() > tiny * theta, length.double().cpu(), 0.0)  # the span is closed
        beside[:, step] = length
        value, was = torch.where(done, value, theta), done
        residual = torch.where(was, residual, _relative(length * last, theta))
        used = torch.where(was, used, step + 1)
        history.append(value)
        done = was | (residual <= tolerance)
        if bool(done.all()) or step + 1 == count:
            break
        scale = torch.where(length > 0, 1 / length, 0.0).to(image)
        vector = image * scale.unsqueeze(1)
        basis.append(vector)
    history += [value] * (count - len(history))
    return Largest(value, residual, used, torch.stack(history, dim=1), asymmetry)


def _ritz(middle: torch.Tensor, beside: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest eigenvalue of each tridiagonal matrix, and the magnitude of the last entry of its eigenvector."""
    bad = ~(middle.isfinite().all(dim=1) & beside.isfinite().all(dim=1))
    matrix = torch.diag_embed(middle) + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
    values, vectors = torch.linalg.eigh(torch.where(bad[:, None, None], 0.0, matrix))
    return values[:, -1].clamp_min(0).masked_fill(bad, float("nan")), vectors[:, -1, -1].abs()


def _relative(difference: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.where(difference == 0, 0.0, difference.abs() / value)
