"""Interventions the slow and obvious way: one hook, one run, weights of copies set to zero."""

import copy

import torch
from torch import nn
from torch.utils import _pytree as pytree


def as_double(x):
    return pytree.tree_map_only(
        torch.Tensor, lambda t: t.double() if t.is_floating_point() else t, dict(x) if isinstance(x, dict) else x
    )


def run(model, x):
    torch.manual_seed(0)
    with torch.no_grad():
        return model(**x) if isinstance(x, dict) else model(x)


def edited(model, x, path, change, call=0):
    """The output when `change` is applied to every floating-point tensor that one call returned."""
    count = iter(range(10**6))

    def hook(module, args, output):
        if next(count) != call:
            return None
        return pytree.tree_map_only(torch.Tensor, lambda t: change(t) if t.is_floating_point() else t, output)

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        return run(model, x)
    finally:
        handle.remove()


def outputs(model, x, path):
    """What a layer returned, call by call."""
    found = []
    handle = model.get_submodule(path).register_forward_hook(lambda module, args, output: found.append(output))
    try:
        run(model, x)
    finally:
        handle.remove()
    return found


def without_head(model, projection, head, count):
    """A copy of the model whose output projection has no weights for one head."""
    twin = copy.deepcopy(model)
    layer = twin.get_submodule(projection)
    transposed = type(layer).__name__ == "Conv1D"  # (in, out)
    width = layer.weight.shape[0 if transposed else 1] // count
    part = slice(head * width, (head + 1) * width)
    with torch.no_grad():
        layer.weight[part if transposed else (slice(None), part)] = 0
    return twin


class Additive(nn.Module):
    """y = a(x) + b(x) + c . h(x), with a channel of h that nothing reads."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.h, self.c = nn.Linear(4, 6), nn.Linear(6, 3, bias=False)
        with torch.no_grad():
            self.c.weight[:, 2] = 0

    def forward(self, x):
        return self.a(x) + self.b(x) + self.c(self.h(x))


def additive(seed=0):
    torch.manual_seed(seed)
    return Additive().double().requires_grad_(False)
