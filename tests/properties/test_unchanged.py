"""The model and the input are as they were after every analysis."""

import pytest
import torch
import torch.fx.experimental.symbolic_shapes  # torch does at the first gradient, which adds a filter of warnings
from torch import nn

import layerlens
from layerlens.errors import LayerLensError
from tests.snapshot import Snapshot

from .networks import for_networks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

ANALYZERS = {
    "capture": lambda model, x, target: layerlens.capture(model, x, inputs=True),
    "capture gradients": lambda model, x, target: layerlens.capture(model, x, gradients=True, target=target),
    "layers": lambda model, x, target: layerlens.layers(model, x),
    "relevance": lambda model, x, target: layerlens.relevance(model, x, target=target, layers=None),
    "epsilon_plus": lambda model, x, target: layerlens.relevance(model, x, target=target, rules="epsilon_plus"),
    "gradient": lambda model, x, target: layerlens.saliency(model, x, target=target, method="gradient"),
    "deep_lift": lambda model, x, target: layerlens.saliency(model, x, target=target, method="deep_lift"),
    "smooth_grad": lambda model, x, target: layerlens.saliency(
        model, x, target=target, method="smooth_grad", samples=2
    ),
    "integrated_gradients": lambda model, x, target: layerlens.saliency(
        model, x, target=target, method="integrated_gradients", steps=3, tolerance=1e9
    ),
    "auto": lambda model, x, target: layerlens.saliency(model, x, target=target),
    "ablate": lambda model, x, target: layerlens.ablate(model, x, by="channel", target=target),
    "noise_response": lambda model, x, target: layerlens.noise_response(
        model, x, levels=(0.5,), draws=2, target=target
    ),
    "jacobian": lambda model, x, target: layerlens.jacobian(model, x, draws=2),
    "check": lambda model, x, target: layerlens.Lens(model).check(x, target=target),
    "an error": lambda model, x, target: layerlens.relevance(model, x, target=99),
}


@for_networks(60, name=list(ANALYZERS), seed=range(0, 10))
def test_the_model_is_as_it_was(network, name, seed):
    """Bits, flags, gradients, hooks, generators and switches, in any state of the model."""
    model, x = network.model(), network.x()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        modules, parameters = list(model.modules()), list(model.parameters())
        for module in modules:
            module.training = bool(torch.rand(()) < 0.5)
        for parameter in parameters:
            parameter.requires_grad_(bool(torch.rand(()) < 0.7))
            if torch.rand(()) < 0.3:
                parameter.grad = torch.randn_like(parameter)
        if torch.rand(()) < 0.3:
            modules[-1].register_forward_hook(lambda *_: None)
        if torch.rand(()) < 0.3 and not network.tokens:
            x.requires_grad_()
    before, had = Snapshot(model, x), x.grad
    given_hooks = [module for module in nn.ModuleList(modules) if module._backward_hooks]
    try:
        ANALYZERS[name](model, x, network.target)
    except LayerLensError:
        assert name != "capture"
    before.check()
    assert x.grad is had and not given_hooks
