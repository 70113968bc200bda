import itertools

import pytest
import torch
from torch import nn

from layerlens import Lens
from layerlens.analyzers.activation.receptive_field import receptive_field
from layerlens.errors import InputError, LayerNotFound, OptionError, RecordError, SelectionError
from tests.cases import normal
from tests.snapshot import Snapshot


def arithmetic(layers, size):
    """(start, stop) of each place by the rule of kernels, strides, paddings and dilations, clipped to the input."""
    field, jump, start = 1, 1, 0.0
    for layer in layers:
        kernel, stride, padding, dilation = layer
        size = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        field += dilation * (kernel - 1) * jump
        start -= padding * jump
        jump *= stride
    return [(start + place * jump, start + place * jump + field) for place in range(size)]


CHAINS = [
    [(3, 1, 0, 1)],
    [(3, 1, 1, 1), (3, 2, 1, 1)],
    [(5, 2, 2, 1), (3, 1, 2, 2), (2, 2, 0, 1)],
    [(1, 1, 0, 1), (4, 3, 1, 1)],
]


@pytest.mark.parametrize("by", ["nan", "change"])
@pytest.mark.parametrize("chain", CHAINS)
def test_the_boxes_are_those_of_the_arithmetic(chain, by):
    layers = [nn.Conv2d(2, 2, (k, 1), (s, 1), (p, 0), (d, 1)) for k, s, p, d in chain]
    net = nn.Sequential(*layers).double()
    field = receptive_field(net, normal(1, 2, 23, 2).double(), str(len(layers) - 1), by=by, batch_size=5)
    expected = [(max(a, 0), min(b, 23)) for a, b in arithmetic(chain, 23)]
    assert field.boxes[:, 0, 0].tolist() == [list(map(int, box)) for box in expected]
    assert all(box == [column, column + 1] for row in field.boxes[:, :, 1].tolist() for column, box in enumerate(row))
    assert field.stride[0] == torch.tensor([s for _, s, _, _ in chain]).prod()


def test_pooling_activations_and_branches_count_too():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.narrow, self.wide = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 5, padding=2)
            self.after = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU6(inplace=True), nn.MaxPool2d(2))

        def forward(self, x):
            return self.after(self.narrow(x) + self.wide(x))

    field = receptive_field(Branches(), normal(2, 1, 12, 10), "after")
    assert field.size == (6, 6) and field.stride == (2, 2) and field.place == (3, 2)
    assert field.box.tolist() == [[4, 10], [2, 8]] and not field.clipped
    assert receptive_field(Branches(), normal(2, 1, 12, 10), "after", place=(0, 4)).clipped
    assert receptive_field(Branches(), normal(1, 1, 12, 10), "narrow").size == (1, 1)


def test_every_box_by_brute_force():
    """Every single pixel is changed, and the box is drawn around those that a place notices."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3, dilation=2), nn.Tanh(), nn.Conv2d(2, 1, 2, stride=2)).double()
    x = normal(1, 1, 9, 8).double()
    field, base = receptive_field(net, x, "2"), net(x)[0, 0]
    seen = torch.zeros(*base.shape, 9, 8, dtype=torch.bool)
    for row, column in itertools.product(range(9), range(8)):
        other = x.clone()
        other[0, 0, row, column] += 1
        seen[:, :, row, column] = net(other)[0, 0] != base
    for place in itertools.product(*map(range, base.shape)):
        for axis in range(2):
            along = seen[place].any(dim=1 - axis).nonzero().flatten()
            assert field.boxes[place][axis].tolist() == [int(along[0]), int(along[-1]) + 1]


def test_a_recurrent_layer_sees_the_past_and_masked_attention_too():
    class Causal(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    x = normal(1, 6, 4).double()
    lstm = nn.Sequential(nn.LSTM(4, 3, batch_first=True))
    with pytest.raises(SelectionError, match="Name one: '0/output', '0/h_n', '0/c_n'"):
        receptive_field(lstm.double(), x, "0", axes=(1,))
    for net, layer, by in ((lstm, "0/output", "nan"), (nn.Sequential(Causal()), "0", "change")):
        field = receptive_field(net.double(), x, layer, axes=(1,), by=by)
        assert field.boxes[:, 0].tolist() == [[0, step + 1] for step in range(6)]
    both = receptive_field(
        nn.Sequential(nn.GRU(4, 3, batch_first=True, bidirectional=True)).double(), x, "0/output", axes=(1,)
    )
    assert both.boxes[:, 0].tolist() == [[0, 6]] * 6 and both.stride == (0,)


def test_the_effective_field_is_the_gradient_of_the_units():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 4, 3)).double()
    x = normal(2, 2, 9, 9).double()
    field = receptive_field(net, x, "2", place=(1, 3), draws=8)
    leaf = x.clone().requires_grad_()
    out = net(leaf)[:, :, 1, 3]
    squares = torch.zeros_like(x)
    for unit in range(4):
        squares += torch.autograd.grad(out[:, unit].sum(), leaf, retain_graph=True)[0].square()
    expected = (squares / 4).mean(dim=1).sqrt()
    assert torch.allclose(field.effective, expected, atol=1e-13)
    outside = torch.ones(9, 9, dtype=torch.bool)
    (top, bottom), (left, right) = field.box.tolist()
    outside[top:bottom, left:right] = False
    assert bool((field.effective[:, outside] == 0).all()) and (bottom - top, right - left) == (5, 5)
    single = receptive_field(net, x, "2", place=(1, 3), unit=-1)
    grad = torch.autograd.grad(out[:, 3].sum(), leaf)[0]
    assert torch.allclose(single.effective, grad.square().mean(dim=1).sqrt(), atol=1e-13)


def test_random_signs_estimate_the_sum_over_many_units():
    net = nn.Sequential(nn.Conv1d(1, 64, 5)).double()
    exact = receptive_field(net, normal(1, 1, 11).double(), "0", draws=64).effective
    signs = receptive_field(net, normal(1, 1, 11).double(), "0", draws=63, seed=1).effective
    assert torch.allclose(signs, exact, rtol=0.35, atol=1e-12) and not torch.equal(signs, exact)


def test_the_effective_size_of_averages_is_that_of_a_gaussian():
    """n averages of width k give a near Gaussian gradient of variance n (k^2 - 1) / 12 (Luo et al. 2016)."""
    depth, width = 12, 5
    layers = []
    for _ in range(depth):
        layer = nn.Conv1d(1, 1, width, padding=width // 2, bias=False)
        nn.init.constant_(layer.weight, 1 / width)
        layers.append(layer)
    field = receptive_field(nn.Sequential(*layers).double(), normal(1, 1, 101).double(), str(depth - 1))
    deviation = (depth * (width**2 - 1) / 12) ** 0.5
    # above 4.55 % of the peak: up to sqrt(2 ln(1 / .0455)) deviations to each side
    expected = 2 * deviation * (2 * torch.log(torch.tensor(1 / 0.0455))).sqrt()
    assert float(field.effective_size) == pytest.approx(float(expected), abs=1.5)
    assert field.size == (1 + depth * (width - 1),) and float(field.share) < 0.6


def test_the_model_comes_back_and_the_lens_binds_it():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 2)).train()
    x = normal(2, 1, 6, 6)
    before = Snapshot(net, x)
    field = Lens(net).receptive_field(x, "3")
    before.check()
    assert field.boxes.shape == (2, 2) and field.size == (6, 6) and field.stride == () and field.place == ()
    with pytest.raises(ZeroDivisionError):
        receptive_field(net, x, "1", forward=lambda model, x: 1 / 0 if x.isnan().any() else model(x))
    before.check()


def test_what_cannot_be_is_said():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    x = normal(1, 1, 6, 6)
    with pytest.raises(OptionError, match=r"places \(4, 4\); there is no place \(4, 0\)"):
        receptive_field(net, x, "0", place=(4, 0))
    with pytest.raises(OptionError, match="has 2 units; there is no unit 2"):
        receptive_field(net, x, "0", unit=2)
    with pytest.raises(OptionError, match=r"axes=\(0,\)"):
        receptive_field(net, x, "0", axes=(0,))
    with pytest.raises(InputError, match="has no places after the batch"):
        receptive_field(nn.Linear(2, 2), normal(1, 2), "")
    with pytest.raises(InputError, match="one floating-point input"):
        receptive_field(nn.Bilinear(2, 2, 2), (normal(1, 2), normal(1, 2)), "")
    with pytest.raises(LayerNotFound):
        receptive_field(net, x, "9")
    with pytest.raises(SelectionError):
        receptive_field(net, x, "*")
    with pytest.raises(RecordError, match="there is no call 1"):
        receptive_field(net, x, "0", call=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_sample_through_batch_norm_has_its_own_gradient(dtype):
    """torch's BatchNorm misreads some layouts of a gradient of one sample: here all of it lay outside of the box."""
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)).to(dtype).eval()
    x = normal(1, 2, 20, 20).to(dtype)
    field = receptive_field(net, x, "3", place=(4, 11))
    outside = torch.ones(20, 20, dtype=torch.bool)
    (top, bottom), (left, right) = field.box.tolist()
    outside[top:bottom, left:right] = False
    assert bool((field.effective[:, outside] == 0).all()) and float(field.effective.max()) > 0
    twice = receptive_field(net, x.repeat(2, 1, 1, 1), "3", place=(4, 11))
    assert torch.allclose(field.effective, twice.effective[:1], rtol=1e-4)


@pytest.mark.slow
def test_efficientnet():
    from layerlens.demo import efficientnet

    net = efficientnet.load_efficientnet()
    x = efficientnet.preprocess(efficientnet.photographs()["chelsea"])
    field = receptive_field(net, x, "_blocks.3")
    # stem 3/2, depthwise 3/1, 3/2, 3/1, 5/2: 3, 7, 11, 19, 35
    assert field.size == (35, 35) and field.stride == (8, 8)
    assert float(field.share) < 1


@pytest.mark.parametrize("shape", [(1, 7, 3), (1, 3, 9), (1, 3, 6, 5)], ids=["steps", "series", "image"])
def test_the_places_of_the_input_are_followed(shape):
    layer = {(1, 7, 3): nn.Linear(3, 4), (1, 3, 9): nn.Conv1d(3, 4, 3), (1, 3, 6, 5): nn.Conv2d(3, 4, 3)}[shape]
    places = (1,) if shape == (1, 7, 3) else tuple(range(2, len(shape)))
    net, x = nn.Sequential(layer, nn.Tanh()), normal(*shape)
    found, given = receptive_field(net, x, "1"), receptive_field(net, x, "1", axes=places)
    assert found.settings["axes"] == places and torch.equal(found.boxes, given.boxes)
    middle = found.boxes[tuple(size // 2 for size in found.boxes.shape[:-2])]
    width = 1 if shape == (1, 7, 3) else 3
    assert (middle[..., 1] - middle[..., 0]).eq(width).all()


def test_a_later_call_whose_output_is_overwritten():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.relu = nn.Conv1d(1, 1, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, x):
            return self.relu(self.conv(self.relu(self.conv(x))))

    assert [receptive_field(Twice(), normal(1, 1, 9), "conv", call=call).size for call in (0, 1)] == [(3,), (5,)]
