"""The axes of every tensor of a run, followed through the operations."""

import pytest
import torch
from torch import nn

from layerlens.axes.followed import followed, name_axes
from layerlens.axes.layout import arranged, described, grid, heads, roles
from layerlens.errors import AxesUnknown, InputError
from layerlens.inputs.inputs import as_inputs


def axes_at(model, x, path, tensor="", index=0):
    return followed(model, as_inputs(x)).site(path, index).axes(tensor)


def test_convolutions_move_places_in_entries_of_the_input():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3, stride=2))
    axes = axes_at(net, torch.zeros(1, 3, 32, 48), "2")
    assert described(axes) == "batch | unit | height | width" and roles(axes) == ("batch", "unit", "place", "place")
    found = grid(axes)
    assert found.sizes == (7, 11) and found.strides == (4, 4) and found.offsets == (2.5, 2.5) and found.covers


class Patches(nn.Module):
    """Patches with a class token, as in a vision transformer, and attention written by hand."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 12, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 12))
        self.qkv, self.out, self.merged = nn.Linear(12, 36), nn.Linear(12, 12), nn.Identity()

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        q, k, v = self.qkv(tokens).unflatten(2, (3, 3, 4)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(self.merged(mixed.transpose(1, 2).flatten(2))) + tokens


@pytest.mark.parametrize("batch", [1, 2])
def test_class_tokens_are_extra_entries_and_heads_are_blocks_of_units(batch):
    net, x = Patches(), torch.zeros(batch, 3, 16, 24)
    axes = axes_at(net, x, "")
    assert described(axes) == "batch | 1+height*width | unit"
    assert grid(axes).sizes == (4, 6) and grid(axes).offsets == (1.5, 1.5)
    assert heads(axes_at(net, x, "merged")[2]).count == 3
    assert heads(axes[2]) is None, "the output projection mixes heads"


def test_an_arranged_tensor_has_its_places_where_the_input_has_them():
    net = Patches()
    x = torch.zeros(2, 3, 16, 24)
    x[1, :, 4:8, 8:12] = 1  # the patch in row 1, column 2
    axes = axes_at(net, x, "embed")
    with torch.no_grad():
        tokens = net.embed(x)
    maps = arranged(tokens, axes, grid(axes))
    assert (maps[1] - maps[0]).abs().sum(0).nonzero().tolist() == [[1, 2]]


def test_queries_keys_and_values_of_fused_attention_are_split_into_heads():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            q, k, v = (layer(x).unflatten(2, (2, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    net, x = Fused(), torch.randn(2, 5, 6)
    assert [heads(axes_at(net, x, layer)[2]).count for layer in "qkv"] == [2, 2, 2]


class Windows(nn.Module):
    """Windows of 4 x 4 places merged into the batch, shifted by 2, and put back."""

    def __init__(self):
        super().__init__()
        self.inside, self.after = nn.Linear(3, 5), nn.Identity()

    def forward(self, x):
        b, c, h, w = x.shape
        x = x.permute(0, 2, 3, 1).roll((-2, -2), (1, 2))
        x = x.reshape(b, h // 4, 4, w // 4, 4, c).transpose(2, 3).reshape(-1, 16, c)
        x = self.inside(x)
        x = x.reshape(b, h // 4, w // 4, 4, 4, -1).transpose(2, 3).reshape(b, h, w, -1)
        return self.after(x.roll((2, 2), (1, 2)))


def test_windows_are_put_together_again():
    net, x = Windows(), torch.randn(2, 3, 8, 12)
    axes = axes_at(net, x, "inside")
    assert described(axes) == "batch*height*width | height*width | unit"
    after = axes_at(net, x, "after")
    assert described(after) == "batch | height | width | unit" and grid(after).offsets == (0, 0)
    kept = []
    net.inside.register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        whole = net(x).permute(0, 3, 1, 2)
    assert torch.equal(arranged(kept[0], axes, grid(axes)), whole)


def test_what_is_not_known_says_how_to_name_it():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.sorted, self.head = nn.Identity(), nn.Linear(5, 2)

        def forward(self, x):
            return self.head(self.sorted(x.sort(1).values))

    net, x = Sorted(), torch.randn(2, 7, 5)
    with pytest.raises(AxesUnknown, match=r"aten.sort orders .* axes=\{'sorted': \('batch', 'token', 'unit'\)\}"):
        axes_at(net, x, "sorted")
    name_axes(net, {"0": ("batch", "step", "sensor"), "sorted": ("batch", "rank", "sensor")})
    assert described(axes_at(net, x, "head")) == "batch | rank | unit"
    with pytest.raises(InputError, match="2 names for a tensor of shape"):
        name_axes(net, {"sorted": ("batch", "unit")})
        axes_at(net, x, "head")
    with pytest.raises(InputError, match="neither an input"):
        name_axes(net, {"sorted": ("batch", "rank", "unit"), "hed": ("batch",)})
        axes_at(net, x, "head")


def test_a_recurrent_layer_has_samples_times_and_units():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LSTM(5, 6, batch_first=True), nn.GRU(6, 7, bidirectional=True)

        def forward(self, x):
            return self.second(self.first(x)[0].transpose(0, 1))[0]

    net, x = Model(), torch.randn(2, 9, 5)
    assert described(axes_at(net, x, "first", "output")) == "batch | time | unit"
    assert described(axes_at(net, x, "first", "h_n")) == "layer | batch | unit"
    assert described(axes_at(net, x, "second", "output")) == "time | batch | unit"
    assert described(axes_at(net, x, "second", "h_n")) == "layer | batch | unit"


class Loop(nn.Module):
    """A cell that runs over time, forwards or backwards, or the same net on every frame."""

    def __init__(self, way):
        super().__init__()
        self.way, self.cell, self.after = way, nn.GRUCell(4, 3), nn.Identity()

    def forward(self, x):
        state, out = x.new_zeros(len(x), 3), []
        if self.way == "frames":
            return self.after(torch.stack([self.cell(frame) for frame in x.unbind(1)], dim=1))
        order = range(x.shape[1]) if self.way == "forwards" else reversed(range(x.shape[1]))
        for step in order:
            state = self.cell(x[:, step], state)
            out.append(state)
        return self.after(torch.cat([one.unsqueeze(1) for one in out], dim=1))


@pytest.mark.parametrize("way", ["frames", "forwards", "backwards"])
def test_entries_that_a_loop_reads_one_by_one_are_an_axis_again(way):
    net, x = Loop(way), torch.randn(2, 6, 4)
    axes = axes_at(net, x, "after")
    assert roles(axes) == ("batch", "place", "unit")
    found = grid(axes)
    assert (found.axes, found.sizes) == ((1,), (6,))
    assert (found.strides, found.offsets) == (((-1,), (5,)) if way == "backwards" else ((1,), (0,)))


def test_pictures_in_a_list_have_channels_and_are_samples():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.both = nn.Conv2d(3, 4, 3, padding=1), nn.Identity()

        def forward(self, pictures):
            maps = [self.conv(picture[None])[0] for picture in pictures]
            padded = maps[0].new_zeros(2, 4, 8, 12)
            for row, found in zip(padded, maps, strict=True):
                row[:, :, : found.shape[-1]].copy_(found)
            return self.both(padded)

    inputs = as_inputs(([torch.zeros(3, 8, 8), torch.zeros(3, 8, 12)],))
    axes = followed(Detector(), inputs)
    assert [described(found) for found in axes.inputs.values()] == ["channel | height | width"] * 2
    assert described(axes.site("conv", 1).axes()) == "1 | unit | height | width"
    assert described(axes.site("both").axes()) == "batch | unit | height | width"


def test_every_run_has_its_own_axes():
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.same = nn.Identity()

        def forward(self, x):
            return self.same(x.transpose(1, 2) if x.shape[2] == 5 else x).sum((1, 2))

    net, first, second = Either(), torch.zeros(2, 4, 5), torch.zeros(2, 4, 6)
    name_axes(net, {"0": ("batch", "time", "unit")})
    for x, axis in ((first, 1), (second, 2), (first, 1)):
        site = followed(net, as_inputs(x)).site("same")
        assert site.unit_axis(torch.zeros(2, 5, 4) if axis == 1 else x) == axis
