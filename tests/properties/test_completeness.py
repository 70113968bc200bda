"""Path methods explain the difference of the score from that of a baseline: all of it, or all but a known error."""

import numpy as np
import pytest
import torch

import layerlens

from .networks import for_networks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*zero everywhere")]

STEPS = 24
FINE = 1500
"""Points at which the path is looked at to see how much the slope varies."""


def slopes_along(network, model, x, baseline, places):
    """The slope of the score along the path, `(places, batch)`, and the gradients, in plain torch."""
    points = (baseline + places.reshape(-1, *[1] * x.ndim) * (x - baseline)).requires_grad_()
    flat = points.flatten(0, 1)
    (gradient,) = torch.autograd.grad(model(flat.clone())[:, network.target].sum(), points)
    return (gradient * (x - baseline)).flatten(2).sum(2), gradient


@for_networks(40, start="numbers")
def test_integrated_gradients(network):
    """The values are the quadrature written out, and miss S(x) - S(x') by at most what its steps can miss.

    Each node of Gauss-Legendre quadrature lies in its own cell, as wide as its weight (Chebyshev, Markov, Stieltjes),
    so the error is at most the largest weight times the total variation of the slope along the path. Captum rounds the
    weights to float32.
    """
    model, x = network.model(), network.x()
    baseline = network.x(batch=8)[-1:].expand_as(x) / 2 + 0.25
    result = layerlens.saliency(
        model, x, target=network.target, method="integrated_gradients", baseline=baseline, steps=STEPS, tolerance=1e9
    )
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(STEPS))
    _, gradient = slopes_along(network, model, x, baseline, (nodes + 1) / 2)
    expected = (x - baseline) * (gradient * (weights / 2).reshape(-1, *[1] * x.ndim)).sum(0)
    torch.testing.assert_close(result.tensor, expected, rtol=1e-7, atol=1e-9)
    with torch.no_grad():
        change = (model(x.clone()) - model(baseline.clone()))[:, network.target]
    missed = (result.tensor.flatten(1).sum(1) - change).abs()
    fine, _ = slopes_along(network, model, x, baseline, torch.linspace(0, 1, FINE, dtype=torch.float64))
    varied = fine.diff(dim=0).abs().sum(0)
    assert (missed <= 1.1 * varied * float(weights.max()) / 2 + 1e-7 * (1 + fine.abs().amax(0))).all()
    changed = change.abs() > 1e-6
    gap = result.checks["completeness gap"][changed]
    torch.testing.assert_close(gap, (missed / change.abs())[changed], rtol=1e-4, atol=1e-6)


@for_networks(50, start="numbers")
def test_deep_lift(network):
    """The values sum to the difference, whatever the operations."""
    model, x = network.model(), network.x()
    baseline = network.x(batch=8)[-1:].expand_as(x) / 2 + 0.25
    with torch.no_grad():
        ends = model(x.clone())[:, network.target], model(baseline.clone())[:, network.target]
    for rule in ("rescale", "reveal_cancel"):
        result = layerlens.saliency(model, x, target=network.target, method="deep_lift", baseline=baseline, rule=rule)
        total = result.tensor.flatten(1).sum(1)
        torch.testing.assert_close(total, ends[0] - ends[1], rtol=1e-7, atol=1e-8 * float(1 + ends[0].abs().max()))
