"""Every method on every kind of input, target and place: a map of the right shape, or an error that says what to do."""

import inspect
import warnings

import pytest
import torch
from torch import nn

import layerlens
from layerlens.analyzers.saliency import kernel_shap
from layerlens.analyzers.saliency.saliency import known_methods
from layerlens.errors import LayerLensError
from tests.cases import normal

FEW = {"samples": 4, "steps": 4, "max_steps": 4, "tolerance": 10.0, "iterations": 2, "permutations": 2, "masks": 4}
"""Options that make a method quick; each gets those that it has."""


class Pooled(nn.Module):
    """A convolution of any rank, pooled over its places."""

    def __init__(self, conv):
        super().__init__()
        self.conv, self.relu, self.head = conv, nn.ReLU(), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.relu(self.conv(x)).flatten(2).mean(dim=2))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0].mean(dim=1))


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask=None):
        states = torch.tanh(self.mix(self.embedding(input_ids)))
        return self.head(states.mean(dim=1))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.table, self.head = nn.Conv2d(1, 4, 3), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, image, table):
        return self.head(torch.relu(self.conv(image)).mean(dim=(2, 3)) + torch.tanh(self.table(table)))


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.out = nn.ConvTranspose2d(5, 4, 4), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, z):
        return torch.tanh(self.out(torch.relu(self.up(z))))


IDS = {"input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]]), "attention_mask": torch.ones(2, 4, dtype=torch.int64)}
KINDS = {
    "image": (lambda: Pooled(nn.Conv2d(3, 4, 3)), lambda: normal(2, 3, 12, 10), 1, "conv"),
    "volume": (lambda: Pooled(nn.Conv3d(1, 4, 3)), lambda: normal(2, 1, 6, 5, 5), 1, "conv"),
    "video": (lambda: Pooled(nn.Conv3d(3, 4, (1, 3, 3))), lambda: normal(2, 3, 4, 6, 6), 1, "conv"),
    "series": (lambda: Pooled(nn.Conv1d(3, 4, 3)), lambda: normal(2, 3, 14), 1, "conv"),
    "recurrent": (Recurrent, lambda: normal(2, 7, 3), 1, "rnn"),
    "table": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), lambda: normal(2, 6), 1, "0"),
    "tokens": (Text, lambda: {name: ids.clone() for name, ids in IDS.items()}, 1, "mix"),
    "two inputs": (Two, lambda: (normal(2, 1, 8, 8), normal(2, 5)), 1, "table"),
    "dict": (Two, lambda: {"image": normal(2, 1, 8, 8), "table": normal(2, 5)}, 1, "conv"),
    "latent": (Generator, lambda: normal(2, 5, 1, 1), lambda out: out.mean(dim=(1, 2, 3)), "up"),
}
IMAGES_ONLY = {"xrai", "blur_ig", "rise", "sobol", "extremal_mask"}
REFUSALS = {
    "cam": {"table", "latent"},
    "images": set(KINDS) - {"image"},
}


def allowed(method, kind):
    """Whether this method may say that it is not for this kind of input."""
    if method.family == "cam":
        # guided backpropagation runs where there are rectifiers; CAM needs pooling and a linear layer at the end
        return kind in REFUSALS["cam"] or (method.name == "cam" and kind in ("tokens", "two inputs", "dict"))
    if at_home(method) == "tokens":
        return kind != "tokens"
    return method.name in IMAGES_ONLY and kind in REFUSALS["images"]


def at_home(method):
    """A kind of input that the method is for."""
    return "tokens" if method.needs == "token ids" else "image"


def few(function):
    given = FEW | {"samples": 200} if function is kernel_shap else FEW  # a fit needs two for each feature
    parameters = inspect.signature(function).parameters
    unused = {"tolerance"} if "until" in parameters else set()  # there it is an old name
    return {name: value for name, value in given.items() if name in parameters.keys() - unused}


def attribute(method, kind, **options):
    torch.manual_seed(0)
    build, example, target, _ = KINDS[kind]
    x = example()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        given = {"target": target, "method": method.name} | few(method.function) | options
        return layerlens.saliency(build().eval(), x, **given), x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", known_methods().values(), ids=lambda method: method.name)
def test_a_map_of_the_right_shape_or_an_error_that_says_what_to_do(method, kind):
    if "where" in method.needs:
        pytest.skip("attributes to a layer only")
    try:
        found, x = attribute(method, kind)
    except LayerLensError as error:
        assert allowed(method, kind), f"{type(error).__name__}: {error}"
        assert len(str(error)) > 40
        return
    values = found.values if isinstance(found.values, dict) else {None: found.values}
    for name, value in values.items():
        source = x if isinstance(x, torch.Tensor) else x[name if isinstance(x, dict) else int(name)] if name else None
        source = x["input_ids"] if kind == "tokens" else source
        assert value.isfinite().all() and not value.requires_grad
        if method.family != "cam" and source is not None and method.name != "xrai":
            assert value.shape == source.shape
        assert len(value) == 2
    assert found.score.shape == (2,) and found.method


@pytest.mark.parametrize("target", [1, [2, 0], torch.tensor([0, 1]), (1,), None, lambda out: out[:, 2] - out[:, 0]])
@pytest.mark.parametrize("method", known_methods().values(), ids=lambda method: method.name)
def test_targets_of_every_kind(method, target):
    if "where" in method.needs:
        pytest.skip("attributes to a layer only")
    if callable(target) and method.name == "finer_cam":
        with pytest.raises(LayerLensError, match="compares a class with others like it"):
            attribute(method, "image", target=target)
        return
    found, _ = attribute(method, at_home(method), target=target)
    assert found.values.isfinite().all() and len(found.values) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", known_methods().values(), ids=lambda method: method.name)
def test_at_a_layer(method, kind):
    parameters = inspect.signature(method.function).parameters
    if "where" not in parameters or "unit" in parameters:
        pytest.skip("attributes to the input only, or takes a layer of its own")
    layer = KINDS[kind][3]
    try:
        found, x = attribute(method, kind, where=layer)
    except LayerLensError as error:
        assert method.name in IMAGES_ONLY, f"{type(error).__name__}: {error}"
        return
    record = layerlens.capture(KINDS[kind][0](), x, layer)
    output = record[layer][0] if isinstance(record[layer], tuple) else record[layer]
    assert found.values.shape == output.shape and found.values.isfinite().all()
    assert found.settings["where"].partition("/")[0] == layer  # of several tensors the one that is read


@pytest.mark.parametrize("method", known_methods().values(), ids=lambda method: method.name)
def test_a_unit_as_the_target(method):
    if "where" in method.needs:
        pytest.skip("attributes to a layer only")
    if method.name in ("finer_cam", "cam"):  # of classes, and of what the last linear layer makes
        with pytest.raises(LayerLensError, match=r"compares classes|does not end in the mean"):
            attribute(method, "image", target=layerlens.neuron("conv", 2))
        return
    layer = KINDS[at_home(method)][3]
    found, _ = attribute(method, at_home(method), target=layerlens.neuron(layer, 2))
    assert found.values.isfinite().all() and found.target == f"unit 2 of {layer}"
