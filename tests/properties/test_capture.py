"""A capture records what plain forward hooks see, at the moment when a layer returns it."""

import collections

import pytest
import torch

import layerlens
from layerlens import Probe
from layerlens.model.trees import named_tensors

from .networks import for_networks

pytestmark = pytest.mark.slow


def seen_by_hooks(model, x):
    """Layer -> what each of its calls returned, copied at once."""
    seen, handles = collections.defaultdict(list), []
    for path, module in list(model.named_modules())[1:]:

        def hook(module, args, output, path=path):
            seen[path].append([tensor.detach().clone() for _, tensor in named_tensors(output)])

        handles.append(module.register_forward_hook(hook))
    with torch.no_grad():
        model(x.clone())
    for handle in handles:
        handle.remove()
    return seen


@for_networks(80, keep=["auto", "clone", "cpu", "probe", "gradients"])
def test_capture_is_what_hooks_see(network, keep):
    """Every call of every layer bit for bit, also of values that are overwritten in place later.

    With gradients, torch takes other kernels for attention, whose last bits differ.
    """
    model, x = network.model(), network.x()
    seen = seen_by_hooks(model, x)
    if keep == "probe":
        with Probe(model) as record, torch.no_grad():
            model(x.clone())
    elif keep == "gradients":
        record = layerlens.capture(model, x, gradients=True, target=network.target)
    else:
        record = layerlens.capture(model, x, keep=keep)
    assert set(record) == set(seen)
    for path, calls in seen.items():
        recorded = record.calls(path)
        assert len(recorded) == len(calls)
        for call, tensors in zip(recorded, calls, strict=True):
            found = [tensor for _, tensor in named_tensors(call.output)]
            assert len(found) == len(tensors)
            for one, other in zip(found, tensors, strict=True):
                assert torch.equal(one, other) or (keep == "gradients" and torch.allclose(one, other, 1e-9, 1e-12)), (
                    path
                )
