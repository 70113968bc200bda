"""What an analyzer must give back as it was."""

import copy
import importlib
import random
import signal
import warnings

import numpy as np
import torch

importlib.import_module("sympy")  # torch imports it late, and it adds a filter of warnings

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_forward_hooks_with_kwargs")


class Snapshot:
    """Everything of a model, its input and the process that a borrower could leave changed."""

    def __init__(self, model, x):
        self.model, self.x = model, x
        self.bits = {name: tensor.detach().clone() for name, tensor in self._tensors()}
        self.identity = [id(tensor) for _, tensor in self._tensors()]
        self.flags = [(module.training, len(module._buffers)) for module in model.modules()]
        self.requires = [parameter.requires_grad for parameter in model.parameters()]
        self.grads = [(id(p.grad), None if p.grad is None else p.grad.clone()) for p in model.parameters()]
        self.hooks = self._hooks()
        self.input = copy.deepcopy(x)
        self.generators = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        self.modes = modes()

    def _tensors(self):
        yield from self.model.named_parameters(remove_duplicate=False)
        yield from self.model.named_buffers(remove_duplicate=False)

    def _hooks(self):
        return [hooks(module, kind) for module in self.model.modules() for kind in HOOKS]

    def check(self):
        """Assert that nothing has changed."""
        for name, tensor in self._tensors():
            assert torch.equal(tensor, self.bits[name]), f"{name} has other bits"
        assert self.identity == [id(tensor) for _, tensor in self._tensors()]
        assert self.flags == [(module.training, len(module._buffers)) for module in self.model.modules()]
        assert self.requires == [parameter.requires_grad for parameter in self.model.parameters()]
        for (identity, value), parameter in zip(self.grads, self.model.parameters(), strict=True):
            assert identity == id(parameter.grad)
            assert value is None or torch.equal(value, parameter.grad)
        assert self.hooks == self._hooks()
        assert_same(self.x, self.input)
        torch_state, numpy_state, python_state = self.generators
        assert torch.equal(torch_state, torch.get_rng_state())
        assert (numpy_state == np.random.get_state()[1]).all()
        assert python_state == random.getstate()
        assert self.modes == modes()


def hooks(module, kind):
    """The hooks of a module, but for those that transformers adds in its first forward pass and leaves there."""
    return [
        one
        for one in getattr(module, kind).values()
        if not str(getattr(one, "__module__", "")).startswith("transformers.")
    ]


def modes():
    """Switches of the thread and of the process."""
    backends = torch.backends
    return {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "modes": (torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()),
        "kernels": (backends.mkldnn.enabled, backends.cudnn.enabled, backends.mha.get_fastpath_enabled()),
        "attention": (
            backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(),
            backends.cuda.math_sdp_enabled(),
        ),
        "first use of a GPU": len(torch.cuda._queued_calls),
        "global hooks": len(torch.nn.modules.module._global_forward_hooks),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
    }


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
        assert one.requires_grad == other.requires_grad
    else:
        assert one == other
