"""Centred kernel alignment of two sets of features of the same samples."""

from __future__ import annotations

import torch


def centred_gram(features: torch.Tensor) -> torch.Tensor:
    """U-centred products of all pairs of samples, `(n, n)` float64, of features `(n, d)`.

    The diagonal is zero and every row and column sums to zero (Szekely & Rizzo 2014), so that
    sum(A * B) / (n (n - 3)) is the unbiased HSIC of Song et al. 2012, eq. 5.
    """
    rows = features.double()
    rows = rows - rows.mean(dim=0)
    gram = rows @ rows.T
    count = len(gram)
    gram.fill_diagonal_(0)
    means = gram.sum(dim=0) / (count - 2)
    gram -= means[:, None] + means[None, :] - means.sum() / (count - 1)
    gram.fill_diagonal_(0)
    return gram


def gram_cka(one: torch.Tensor, other: torch.Tensor) -> float:
    """Debiased linear CKA of two results of `centred_gram`; NaN where one of them is constant."""
    size = float(one.norm() * other.norm())
    return float((one * other).sum()) / size if size > 0 else float("nan")
