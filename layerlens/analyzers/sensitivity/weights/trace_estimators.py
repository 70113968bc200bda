"""Traces of matrices that are known by their products with vectors: Hutchinson and Hutch++."""

from __future__ import annotations

import torch

from .hessian import Curvature

Traces = tuple[torch.Tensor, torch.Tensor]
"""Values and standard errors, `(rows,)`, float64."""


def hutch_plus_plus(curvature: Curvature, probes: int, seed: int) -> Traces:
    """Tr H_ll of every row by Hutch++ (Meyer et al. 2021, algorithm 1), with `probes` products each.

    A third of the products finds the space Q of the largest eigenvalues, a third gives the trace there exactly, and the
    rest is Hutchinson's estimate on what Q leaves, whose scatter is the standard error. A row with no more numbers
    than a third of the probes is exact.
    """
    third = probes // 3
    generator = torch.Generator().manual_seed(seed)
    sizes = curvature.sizes
    small = [size <= third for size in sizes]
    sketch = [_signs(0 if whole else third, size, generator) for size, whole in zip(sizes, small, strict=True)]
    if not all(small):
        ranges = curvature.products(sketch)
    bases, probing = [], []
    for place, (size, whole) in enumerate(zip(sizes, small, strict=True)):
        q = torch.eye(size, dtype=torch.float64) if whole else torch.linalg.qr(ranges[place]).Q
        g = _signs(0 if whole else third, size, generator)
        bases.append(q)
        probing.append(g - q @ (q.T @ g))
    products = curvature.products([torch.cat(pair, dim=1) for pair in zip(bases, probing, strict=True)])
    values, errors = [], []
    for q, g, product in zip(bases, probing, products, strict=True):
        inside = (q * product[:, : q.shape[1]]).sum()
        outside = (g * product[:, q.shape[1] :]).sum(dim=0)  # (third,)
        count = len(outside)
        values.append(inside + (outside.mean() if count else 0.0))
        errors.append(outside.std() / count**0.5 if count > 1 else torch.zeros((), dtype=torch.float64))
    return torch.stack(values), torch.stack(errors)


def hutchinson(curvature: Curvature, probes: int, seed: int) -> Traces:
    """Tr H_ll of all rows at once: mean of v_l' (H v)_l over random signs v (Hutchinson 1990).

    What the rows' vectors add to each other's products has mean zero and is part of the scatter.
    """
    generator = torch.Generator().manual_seed(seed)
    signs = [_signs(probes, size, generator) for size in curvature.sizes]
    products = curvature.products(signs, jointly=True)
    forms = torch.stack([(v * product).sum(dim=0) for v, product in zip(signs, products, strict=True)])
    return forms.mean(dim=1), forms.std(dim=1) / probes**0.5


def _signs(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(2, (count, size), generator=generator).double().T * 2 - 1
