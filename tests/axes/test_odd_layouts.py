"""Layers of odd layouts: what their units, samples and places are does not depend on their class or their rank."""

import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens, Record, capture, errors
from layerlens.analyzers.common.features.layer_features import FeatureReader
from layerlens.inputs.inputs import as_inputs
from layerlens.probes.probe import Probe
from layerlens.scale.over import over
from tests.cases import normal

DEAD = torch.tensor([1.0, 0.0, 2.0, 1.0, -1.0])  # unit 1 of every layer here is 0


class ChannelsLast(nn.Module):
    """(batch, channel, height, width) -> (batch, height, width, unit)."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(3, 5)

    def forward(self, x):
        return self.mix(x.permute(0, 2, 3, 1)) * DEAD.to(x)


class TimeFirst(nn.Module):
    """(batch, channel, time) -> (time, batch, unit)."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix = nn.Conv1d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        return self.mix(self.conv(x).permute(2, 0, 1)) * DEAD.to(x)


class UnitsBetween(nn.Module):
    """(batch, channel, time) -> (batch, unit, time), by a linear layer over a transposed tensor."""

    def __init__(self):
        super().__init__()
        self.conv, self.mix = nn.Conv1d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x):
        return (self.mix(self.conv(x).mT) * DEAD.to(x)).mT


class Whatever(nn.Module):
    """A norm over the channels of a picture: (batch, channel, height, width) -> the same."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        return (
            nn.functional.layer_norm(self.conv(x).permute(0, 2, 3, 1), (5,)).permute(0, 3, 1, 2)
            * DEAD.to(x)[:, None, None]
        )


PICTURE, SERIES = (6, 3, 4, 7), (6, 3, 9)
LAYOUTS = [  # layer, shape of the input, axes of samples and of units, names with the samples first
    (ChannelsLast, PICTURE, 0, 3, ("batch", "height", "width", "feature")),
    (TimeFirst, SERIES, 1, 2, ("batch", "time", "feature")),
    (UnitsBetween, SERIES, 0, 1, ("batch", "channel", "time")),
    (Whatever, PICTURE, 0, 1, ("batch", "channel", "height", "width")),
]


class Model(nn.Module):
    """The layer, and what reads the mean of it over places."""

    def __init__(self, layer, rows, units):
        super().__init__()
        torch.manual_seed(0)
        self.odd, self.head, self.axes = layer(), nn.Linear(5, 2), (rows, units)

    def forward(self, x):
        return self.head(self.odd(x).movedim(self.axes, (0, 1)).tanh().flatten(2).mean(dim=2))


@pytest.fixture(params=LAYOUTS, ids=lambda one: one[0].__name__)
def layout(request):
    return request.param


@pytest.fixture(params=["itself", "Conv1d", "LayerNorm", "LSTM"])
def odd(request, layout):
    """Build a model, a class of it perhaps renamed; returns also its input, its layer's output, units second."""
    layer, shape, rows, units, names = layout
    kind = layer if request.param == "itself" else type(request.param, (layer,), {})
    model, x = Model(kind, rows, units).double().eval(), normal(*shape).double()
    with torch.no_grad():
        returned = model.odd(x)
    return model, x, returned, returned.movedim((rows, units), (0, 1)), names


def test_statistics_and_health_count_units(odd):
    model, x, _, values, _ = odd
    found = over(model, x, batch_size=3).statistics("odd")
    flat = values.movedim(1, 0).flatten(1)
    torch.testing.assert_close(found.mean["odd"], flat.mean(dim=1))
    torch.testing.assert_close(found.zeros["odd"], torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0]).double())
    with pytest.warns(UserWarning, match="over 6 samples"):
        health = layerlens.health(model, x, "odd", target=1)
    assert health.dead == {"odd": (1,)}
    leaf = values.clone().requires_grad_()
    score = model.head(leaf.tanh().flatten(2).mean(dim=2))[:, 1].sum()
    (slope,) = torch.autograd.grad(score, leaf)
    torch.testing.assert_close(health.gradient, slope.flatten(1).norm(dim=1).mean()[None])


def test_records_and_maps_have_the_axes(odd, layout, tmp_path):
    model, x, returned, values, names = odd
    _, _, rows, units, _ = layout
    record = capture(model, x, "odd")
    assert record["odd"].equal(returned)
    for known in (record, Record.load(record.save(tmp_path / "run"))):
        dims = known.to_xarray()["odd"].dims
        assert dims[rows] == "batch" and dims[units] == "odd_unit" and len(set(dims)) == len(dims)
        assert torch.equal(known.samples([4, 1])["odd"], returned.index_select(rows, torch.tensor([4, 1])))
    axes = record.calls("odd")[0].axes
    assert (axes[rows], *(one for place, one in enumerate(axes) if place != rows)) == names
    found = layerlens.saliency(model, x, target=1, method="gradient", where="odd")
    leaf = values.clone().requires_grad_()
    (slope,) = torch.autograd.grad(model.head(leaf.tanh().flatten(2).mean(dim=2))[:, 1].sum(), leaf)
    wanted = slope.movedim((0, 1), (rows, units)).movedim(rows, 0)
    assert found.axes == names
    torch.testing.assert_close(found.tensor, wanted)


def test_a_place_is_removed_with_all_its_units(odd):
    model, x, _, values, names = odd
    found = layerlens.saliency(model, x, target=1, method="feature_ablation", where="odd").tensor
    unit = names.index("channel" if "channel" in names else "feature")
    assert torch.equal(found, found.narrow(unit, 0, 1).expand_as(found))  # one number for all units of a place
    covered = values.clone()
    covered.flatten(2)[:, :, 3] = 0

    def score(one):
        return model.head(one.tanh().flatten(2).mean(dim=2))[:, 1]

    wanted = (score(values) - score(covered)).detach()
    torch.testing.assert_close(found.select(unit, 0).flatten(1)[:, 3], wanted)


def test_relevance_passes_the_units_that_are_named(odd):
    model, x, _, _, _ = odd
    whole = layerlens.relevance(model, x, target=1, layers="odd", rules="epsilon")
    parts = [
        layerlens.relevance(model, x, target=1, through={"odd": unit}, rules="epsilon").tensor
        for unit in range(5)
        if unit != 1
    ]
    torch.testing.assert_close(sum(parts), whole.tensor, rtol=1e-6, atol=1e-9)


def test_a_training_counts_the_constant_units(odd):
    model, x, _, _, _ = odd
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with layerlens.watch(model, optimizer, "odd", every=1) as watching:
        for rows in (x, x[:4]):
            model(rows).sum().backward()
            optimizer.step()
    assert watching.history.of("constant units").values.flatten().tolist() == [0.2, 0.2]


def test_a_probe_follows_each_run_when_it_is_asked():
    model = Model(TimeFirst, 1, 2)
    with Probe(model, "odd") as record:
        for count in (2, 3):
            model(normal(count, *SERIES[1:]))
    assert [call.axes for call in record.calls("odd")] == [("time", "batch", "feature")] * 2
    with Probe(model, "odd") as record:
        model.odd(normal(*SERIES))
    assert record.calls("odd")[0].axes is None
    with pytest.raises(errors.AxesUnknown, match="the model itself was not called"):
        record.samples(0)


def test_what_is_unknown_is_said_and_can_be_named():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd = Shuffled()

        def forward(self, x):
            return self.odd(x).sum(dim=1)

    class Shuffled(nn.Module):
        def forward(self, x):
            return torch.from_numpy(x.detach().numpy()[:, ::-1].copy())

    x = normal(4, 3, 5)
    with pytest.raises(errors.AxesUnknown, match="Lens\\(model, axes="):
        over(Sorted(), x).statistics("odd")
    lens = Lens(Sorted(), axes={"odd": ("batch", "time", "unit")})
    found = lens.over(x).statistics("odd")
    torch.testing.assert_close(found.mean["odd"], x.double().mean(dim=(0, 1)))


def test_places_that_a_decoder_makes_are_no_units():
    net = nn.Sequential(nn.Linear(6, 16), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 3, 2, 2), nn.ReLU())
    record = capture(net, normal(2, 6))
    assert record.axes("2") == record.axes("3") == ("batch", "unit", "height", "width")
    units = layerlens.activation_maps(net, normal(2, 6), "1")
    assert units.axes == ("batch", "unit", "height", "width") and units.values.shape == (2, 4, 2, 2)


def test_a_pixel_of_an_input_with_its_channels_last_is_covered_with_all_of_them():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(4, 3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.conv(x.permute(0, 3, 1, 2)).relu().mean(dim=(2, 3)))

    model, x = Last().double(), normal(2, 6, 5, 4).double()
    found = layerlens.saliency(model, x, target=1, method="occlusion", window=1).tensor
    covered = x.clone()
    covered[:, 2, 3] = 0
    wanted = (model(x) - model(covered))[:, 1].detach()
    torch.testing.assert_close(found[:, 2, 3], wanted[:, None].expand(2, 4))


@pytest.mark.parametrize("layer", ["0", "2"])
def test_entries_of_a_flattened_tensor_are_units_everywhere(layer):
    net = {
        "0": nn.Sequential(nn.Flatten(), nn.Linear(36, 2)),
        "2": nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2)),
    }[layer].eval()
    x = normal(5, 1, 6, 6)
    with torch.no_grad():
        flat = net[: int(layer) + 1](x)
    assert torch.equal(layerlens.activation_maps(net, x, layer).values, flat)
    assert torch.equal(FeatureReader(net, layer).read(as_inputs(x)).layers[layer], flat.double())
    assert over(net, x).statistics(layer).mean[layer].shape == flat.shape[1:]
    found = Lens(net).run(x, edits={layer: layerlens.edits.zero(units=7)})
    torch.testing.assert_close(found, net[int(layer) + 1 :](flat.index_fill(1, torch.tensor([7]), 0)).detach())
