"""A sample gets in a batch what it gets alone."""

import pytest
import torch

import layerlens
from layerlens.errors import LayerLensError

from .networks import for_networks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

OPTIONS = {
    "integrated_gradients": {"steps": 4, "tolerance": 1e9},
    "smooth_grad": {"samples": 3},
}
METHODS = [
    "gradient",
    "input_x_gradient",
    "deep_lift",
    "integrated_gradients",
    "guided_backprop",
    "smooth_grad",
    "occlusion",
]


def same(together, alone):
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-7, atol=1e-9, equal_nan=True)


def attributions(analyze, network):
    """Compare what `analyze` returns for the batch with what it returns for each sample, or both are refused."""
    model, x = network.model(), network.x(3)
    try:
        together = analyze(model, x)
    except LayerLensError as error:
        with pytest.raises(type(error)):
            analyze(model, x[:1])
        return
    alone = [analyze(model, x[row : row + 1]) for row in range(len(x))]
    same(together.tensor, [one.tensor for one in alone])
    same(together.score, [one.score for one in alone])


@for_networks(60, start="numbers", method=METHODS)
def test_saliency(network, method):
    attributions(
        lambda model, x: layerlens.saliency(model, x, target=network.target, method=method, **OPTIONS.get(method, {})),
        network,
    )


@for_networks(25, start="picture")
def test_grad_cam(network):
    attributions(lambda model, x: layerlens.saliency(model, x, target=network.target, method="grad_cam"), network)


@for_networks(40)
def test_relevance(network):
    attributions(lambda model, x: layerlens.relevance(model, x, target=network.target), network)


@for_networks(40)
def test_capture(network):
    """The samples of a record are what is captured of them alone, and records of parts are stacked to that of all.

    Parts of two samples, because an axis of one entry cannot be distinguished from others of one entry.
    """
    model, x = network.model(), network.x(4)
    together = layerlens.capture(model, x)
    alone = [layerlens.capture(model, x[part]) for part in (slice(0, 2), slice(2, 4))]
    for part, one in zip(([0, 1], [2, 3]), alone, strict=True):
        assert together.samples(part).difference(one, rtol=1e-7, atol=1e-9) is None
    assert layerlens.Record.stack(alone).difference(together, rtol=1e-7, atol=1e-9) is None
