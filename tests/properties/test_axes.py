"""What is claimed about the axes of every tensor agrees with experiments."""

import pytest
import torch

from layerlens.axes.followed import followed
from layerlens.inputs.inputs import as_inputs
from tests.axes.experiments import check, same_claims

from .networks import for_networks

pytestmark = pytest.mark.slow


@for_networks(60)
def test_axes(network):
    """Samples that are exchanged; and two samples are claimed to be like three.

    Places and units that change say little about networks in which each place moves all others, or a ReLU hides one.
    """
    model, x = network.model(), network.x(3)
    inputs = as_inputs(x)
    axes = followed(model, inputs)
    found = check(model, inputs, axes)
    assert not [claim for claim in found.wrong if claim.startswith(("sizes", "samples", "no samples"))]
    assert found.confirmed["samples"]
    assert not same_claims(axes, followed(model, inputs.rows(torch.tensor([0, 1]))))
