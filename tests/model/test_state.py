"""What a model keeps besides parameters and buffers is given back, however it keeps it."""

import collections
import copy
import dataclasses
import types

import numpy as np
import pytest
import torch
from torch import nn

import layerlens
from layerlens.model import state


class Refusing:
    """An object that can be neither compared nor copied."""

    def __init__(self):
        self.h, self.steps = torch.zeros(1, 5), 0

    def __eq__(self, other):
        raise AssertionError("compared")

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo):
        raise AssertionError("copied")


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    parts: list


class Tree(dict):
    """A container of the user's own class, with an attribute."""

    def __setitem__(self, key, value):
        raise AssertionError("set")


def cyclic():
    ring = {"h": torch.zeros(1, 5)}
    ring["self"] = [ring]
    return ring


def tree():
    made = Tree()
    made.h = torch.zeros(1, 5)
    return made


def cache():
    from transformers import DynamicCache

    made = DynamicCache()
    made.update(torch.zeros(1, 1, 1, 5), torch.zeros(1, 1, 1, 5), 0)
    return made


def write_cache(kept, h):
    kept.layers[0].keys = h[None, None]


def set_item(key):
    return lambda kept, h: kept.__setitem__(key, h)


def grow(kept, h):
    kept.append(h)
    kept.popleft()


def in_place(kept, h):
    kept.copy_(h)


KINDS = {  # what is kept, how it is read, how it is written
    "list": (lambda: [torch.zeros(1, 5)], lambda kept: kept[-1], set_item(-1)),
    "deque": (lambda: collections.deque([torch.zeros(1, 5)]), lambda kept: kept[-1], grow),
    "ordered": (
        lambda: collections.OrderedDict(a=torch.zeros(1, 5)),
        lambda kept: kept["a"],
        lambda kept, h: (kept.pop("a"), kept.update(b=1, a=h)),
    ),
    "nested": (lambda: {"a": [({"b": [torch.zeros(1, 5)]},)]}, lambda kept: kept["a"][0][0]["b"][0],
               lambda kept, h: kept["a"][0][0]["b"].__setitem__(0, h)),
    "dataclass": (lambda: Slotted([torch.zeros(1, 5)]), lambda kept: kept.parts[0],
                  lambda kept, h: kept.parts.__setitem__(0, h)),
    "object": (Refusing, lambda kept: kept.h * (kept.steps + 1),
               lambda kept, h: kept.__dict__.update(h=h, steps=kept.steps + 1)),
    "namespace": (lambda: types.SimpleNamespace(h=torch.zeros(1, 5)), lambda kept: kept.h,
                  lambda kept, h: setattr(kept, "h", h)),
    "own dict": (tree, lambda kept: kept.h, lambda kept, h: setattr(kept, "h", h)),
    "cycle": (cyclic, lambda kept: kept["self"][0]["h"], set_item("h")),
    "cache": (cache, lambda kept: kept.layers[0].keys[0, 0], write_cache),
    "in place": (lambda: torch.zeros(1, 5), lambda kept: kept.clone(), in_place),
    "array": (lambda: np.zeros((1, 5), np.float32), lambda kept: torch.from_numpy(kept.copy()),
              lambda kept, h: kept.__setitem__(..., h.detach().numpy())),
    "generator": (lambda: torch.Generator().manual_seed(1), lambda kept: torch.rand(1, 5, generator=kept),
                  lambda kept, h: None),
}  # fmt: skip


class Streaming(nn.Module):
    def __init__(self, make, read, write):
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.head, self._kept, self.step = nn.RNNCell(4, 5), nn.Linear(5, 2), make(), 0
        self.read, self.write = read, write

    def forward(self, x):
        h = self.cell(x, self.read(self._kept) + self.step)
        if not isinstance(self._kept, (torch.Generator, np.ndarray)):
            self.step += 1
        self._last = torch.distributions.Normal(h, 1.0)
        self.write(self._kept, h)
        return self.head(h)


@pytest.mark.filterwarnings("ignore:the model cuts a signal", "ignore:relevance. the model detaches")
@pytest.mark.parametrize("kind", list(KINDS))
def test_what_a_model_writes_into_is_given_back(kind):
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        twin = Streaming(*KINDS[kind])
        twin(x)
        expected = twin(x)
        model = Streaming(*KINDS[kind])
        model(x)
    kept, last = model._kept, model._last
    layerlens.relevance(model, x, target=1)
    layerlens.saliency(model, x, target=1, method="gradient")
    assert model._kept is kept and model._last is last
    with torch.no_grad():
        assert torch.equal(model(x), expected)
    if kind not in ("object", "generator"):
        layerlens.saliency(model, x, target=1, method="gradient")
        copy.deepcopy(model._kept)


def test_plain_values_into_which_a_tensor_is_put_are_given_back():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.size, self.pads, self.names, self.seen = (2, 3), [0, 0], {"a": 1}, set()

        def forward(self, x):
            self.size, self.names["a"] = (x, 3), x
            self.pads.append(x)
            self.seen.add(x)
            return x

    model = Padded()
    held = model.pads, model.names, model.seen
    layerlens.capture(model, torch.ones(1, 2), "")
    assert (model.size, *held) == ((2, 3), [0, 0], {"a": 1}, set())
    assert model.pads is held[0] and model.names is held[1] and model.seen is held[2]


def test_what_is_large_or_far_from_the_model_is_left_alone(monkeypatch):
    class Trainer:
        def __init__(self, model):
            self.model, self.batches = model, [[torch.zeros(1)] for _ in range(state.MOST + 1)]

    model = nn.Sequential(nn.Linear(2, 2))
    model.trainer = trainer = Trainer(model)
    with layerlens.borrowed(model):
        trainer.batches[0].append(torch.ones(1))
    assert len(trainer.batches[0]) == 2
    monkeypatch.setattr(state, "LARGE", 16)
    model = Streaming(lambda: torch.zeros(1, 5), lambda kept: kept.clone(), in_place)
    with pytest.warns(UserWarning, match="not as it was"):
        layerlens.capture(model, torch.ones(1, 4))
