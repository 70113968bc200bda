"""Where maps lie, by experiment: the only content of an input is one patch, and the peak must be in it."""

import numpy as np
import pytest
import torch
from torch import nn

import layerlens
from layerlens.axes.followed import name_axes
from layerlens.errors import AxesUnknown, InputError, OptionError


def seeded(build):
    torch.manual_seed(0)
    return build().eval()


def huggingface(kind):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    if kind == "vit":
        config = transformers.ViTConfig(**small, image_size=(32, 48), patch_size=4, num_labels=3)
        return transformers.ViTForImageClassification(config)
    if kind == "vit registers":
        config = transformers.Dinov2WithRegistersConfig(
            **small, image_size=32, patch_size=4, num_register_tokens=4, num_labels=3
        )
        return transformers.Dinov2WithRegistersForImageClassification(config)
    if kind == "swin":
        config = transformers.SwinConfig(
            image_size=64, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4, num_labels=3
        )
        return transformers.SwinForImageClassification(config)
    if kind == "convnext":
        config = transformers.ConvNextConfig(hidden_sizes=[8, 12, 16], depths=[1, 1, 1], num_stages=3, num_labels=3)
        return transformers.ConvNextForImageClassification(config)
    config = transformers.ASTConfig(
        **small, patch_size=4, frequency_stride=4, time_stride=4, max_length=48, num_mel_bins=32, num_labels=3
    )
    return transformers.ASTForAudioClassification(config)


class Hybrid(nn.Module):
    """Convolutions, then attention with a class token that is read."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.token, self.head = nn.Parameter(torch.randn(1, 1, 16)), nn.Linear(16, 3)
        block = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)
        return self.head(self.blocks(tokens)[:, 0])


class LetterBox(nn.Module):
    """An image that is scaled into a square, with bars above and below."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = nn.functional.interpolate(x, scale_factor=64 / x.shape[3], mode="bilinear")
        bar = (64 - x.shape[2]) // 2
        x = nn.functional.pad(x, (0, 0, bar, 64 - x.shape[2] - bar))
        return self.head(self.conv(x).mean(dim=(2, 3)))


class Crop(nn.Module):
    """Only the lower right part of an image is read, by convolutions without padding."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.conv(x[:, :, 20:60, 24:64]).mean(dim=(2, 3)))


class Video(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv3d(3, 8, 3, (1, 2, 2), 1), nn.ReLU(), nn.Conv3d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.conv(x).mean(dim=(2, 3, 4)))


class Frames(nn.Module):
    """A network for images on the frames of a video `(batch, time, channel, height, width)`, merged into the batch."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        frames = self.conv(x.flatten(0, 1)).mean(dim=(2, 3))
        return self.head(frames.unflatten(0, x.shape[:2]).mean(dim=1))


class ColumnsLstm(nn.Module):
    """A CNN whose columns are steps of an LSTM."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.rnn, self.head = nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.rnn(self.conv(x).mean(dim=2).mT)[0].mean(dim=1))


class SeriesLstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.rnn, self.head = nn.Conv1d(3, 8, 5, 2, 2), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.rnn(self.conv(x).relu().mT)[0].mean(dim=1))


class FramesLoop(nn.Module):
    """One call of a CNN for each frame, then a recurrent layer: the map is one over time."""

    def __init__(self):
        super().__init__()
        self.conv, self.rnn, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        frames = torch.stack([self.conv(frame).relu().mean(dim=(2, 3)) for frame in x.unbind(1)], dim=1)
        return self.head(self.rnn(frames)[0].mean(dim=1))


class Spectrogram(nn.Module):
    """Mel bins and time as the height and width of an image without channels."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 8, 5, 2, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.conv(x[:, None]).mean(dim=(2, 3)))


class Two(nn.Module):
    """An image and a text of as many tokens as the image has patches."""

    def __init__(self):
        super().__init__()
        self.patch, self.word = nn.Conv2d(3, 16, 8, 8), nn.Embedding(9, 16)
        self.mix, self.head = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, norm_first=True), nn.Linear(16, 3)

    def forward(self, ids, pixels):
        tokens = torch.cat([self.word(ids), self.patch(pixels).flatten(2).mT], dim=1)
        return self.head(self.mix(tokens).mean(dim=1))


def only_content(shape, *slices):
    generator = torch.Generator().manual_seed(1)
    x = torch.zeros(shape)
    where = (slice(None), *slices)
    part = x[where]
    part.copy_(3 * torch.randn(part.shape, generator=generator))
    return x


EVERY = slice(None)
KINDS = {  # model, shape, where the content is (after the batch), names of the axes of the map, slack in entries
    "vit": (lambda: huggingface("vit"), (1, 3, 32, 48), (EVERY, slice(20, 28), slice(8, 16)), 2),
    "vit registers": (lambda: huggingface("vit registers"), (1, 3, 32, 32), (EVERY, slice(4, 8), slice(20, 28)), 2),
    "swin": (lambda: huggingface("swin"), (1, 3, 64, 64), (EVERY, slice(48, 60), slice(4, 16)), 4),
    "convnext": (lambda: huggingface("convnext"), (1, 3, 64, 96), (EVERY, slice(48, 64), slice(16, 32)), 16),
    "hybrid": (Hybrid, (1, 3, 32, 48), (EVERY, slice(16, 24), slice(36, 44)), 4),
    "ast": (lambda: huggingface("ast"), (1, 48, 32), (slice(32, 40), slice(8, 16)), 2),
    "letter box": (LetterBox, (1, 3, 64, 128), (EVERY, slice(48, 60), slice(16, 32)), 8),
    "crop": (Crop, (1, 3, 64, 64), (EVERY, slice(44, 52), slice(28, 36)), 4),
    "volume": (Video, (1, 3, 8, 24, 32), (EVERY, slice(4, 6), slice(16, 22), slice(4, 10)), 4),
    "frames": (Frames, (1, 6, 3, 24, 32), (slice(3, 5), EVERY, slice(4, 12), slice(20, 28)), 4),
    "frames in a loop": (FramesLoop, (1, 8, 3, 12, 12), (slice(5, 7),), 0),
    "columns": (ColumnsLstm, (1, 3, 24, 64), (EVERY, slice(8, 16), slice(40, 48)), 4),
    "series": (SeriesLstm, (1, 3, 60), (EVERY, slice(40, 46)), 4),
    "spectrogram": (Spectrogram, (1, 32, 80), (slice(4, 12), slice(56, 64)), 4),
}


@pytest.mark.filterwarnings("ignore:.*zero everywhere:UserWarning")  # of the input without content
@pytest.mark.parametrize("kind", KINDS)
def test_the_peak_is_where_the_only_content_is(kind):
    build, shape, where, slack = KINDS[kind]
    model, x = seeded(build), only_content(shape, *where)
    nothing = layerlens.saliency(model, torch.zeros(shape), target=1, method="hi_res_cam", relu=False)
    found = layerlens.saliency(model, x, target=1, method="hi_res_cam", relu=False)
    assert found.settings["layer"] == nothing.settings["layer"]
    change = (found.tensor - nothing.tensor)[0]  # what the content changes; tokens elsewhere change alike
    change = (change - change.median()).abs()
    peak = torch.unravel_index(change.argmax(), change.shape)
    ranges = [one for one in where if one != EVERY]
    ranges = ranges[: change.ndim]  # a map over time alone has one axis
    for at, part, extent in zip(peak, ranges, change.shape, strict=True):
        assert part.start - slack <= int(at) < min(part.stop + slack, extent), (kind, peak, found.settings)


def test_several_inputs_have_a_map_of_the_image_and_one_of_the_text():
    model = seeded(Two)
    pixels, ids = only_content((1, 3, 32, 40), EVERY, slice(8, 16), slice(24, 32)), torch.zeros(1, 20, dtype=torch.long)
    ids[0, 7] = 5
    found = layerlens.saliency(model, {"ids": ids, "pixels": pixels}, target=1, method="hi_res_cam", relu=False)
    plain = layerlens.saliency(
        model, {"ids": ids, "pixels": torch.zeros_like(pixels)}, target=1, method="hi_res_cam", relu=False
    )
    assert found.axes == ("batch", "height", "width") and torch.equal(found.inputs, pixels)
    change = (found.tensor - plain.tensor)[0].abs()
    row, column = torch.unravel_index(change.argmax(), change.shape)
    assert 8 <= row < 16 and 24 <= column < 32
    text = layerlens.saliency(
        model, {"ids": ids, "pixels": pixels}, target=1, method="hi_res_cam", where="word", relu=False
    )
    assert text.axes == ("batch", "token") and torch.equal(text.inputs, ids) and text.tensor.shape == (1, 20)


def test_outside_of_a_crop_the_map_is_zero():
    model, x = seeded(Crop), torch.randn(2, 3, 64, 64)
    found = layerlens.grad_cam(model, x, target=1, relu=False).tensor
    assert found[:, :20].abs().max() == found[:, 60:].abs().max() == found[:, :, :24].abs().max() == 0
    assert found[:, 24:56, 28:60].ne(0).all()


def test_the_bars_of_a_letter_box_are_cut_off():
    model, x = seeded(LetterBox), torch.randn(1, 3, 64, 128)
    found = layerlens.grad_cam(model, x, target=1, relu=False)
    assert found.settings["size"] == (16, 16) and found.tensor.shape == (1, 64, 128)
    square = nn.functional.pad(nn.functional.interpolate(x, scale_factor=0.5, mode="bilinear"), (0, 0, 16, 16))
    a = model.conv(square)[0].detach().numpy()
    cam = np.tensordot(model.head.weight[1].detach().numpy() / 256, a, 1)
    rows, columns = 8 * np.arange(16) - 31.5, 8 * np.arange(16) + 0.5  # two pixels become one, 16 of them are bars
    wide = np.stack([np.interp(np.arange(128), columns, line) for line in cam])
    expected = np.stack([np.interp(np.arange(64), rows, line) for line in wide.T]).T
    np.testing.assert_allclose(found.tensor[0].numpy(), expected, rtol=1e-4, atol=1e-6)


class Pooled(nn.Module):
    """An auxiliary head, gates after global pooling, and a head after it: none of these holds the image."""

    def __init__(self):
        super().__init__()
        self.body, self.aux = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()), nn.Conv2d(8, 3, 3, padding=1)
        self.pool, self.gate = nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1)
        self.mix, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.body(x)
        aux = self.aux(x)
        x = x * self.gate(self.pool(x)).sigmoid()
        return self.head(self.mix(self.pool(x)).flatten(1)), aux


def test_the_layer_is_none_after_pooling_and_none_of_an_auxiliary_head():
    found = layerlens.grad_cam(seeded(Pooled), torch.randn(1, 3, 12, 12), target=lambda out: out[0][:, 1], relu=False)
    assert found.settings["layer"] == "body" and found.settings["size"] == (12, 12)


def test_a_layer_with_several_tensors_is_named():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv1d(2, 4, 3, padding=1), nn.Linear(4, 2)
            self.pair = Pair()

        def forward(self, x):
            one, two = self.pair(self.conv(x))
            return self.head((one * two).mean(dim=2))

    class Pair(nn.Module):
        def forward(self, x):
            return x.relu(), x.sigmoid()

    model, x = seeded(Both), torch.randn(2, 2, 10)
    with pytest.raises(layerlens.errors.SelectionError, match=r"with places\. Name one: 'pair/0', 'pair/1'"):
        layerlens.grad_cam(model, x, "pair", target=1)
    one = layerlens.grad_cam(model, x, "pair/0", target=1, relu=False)
    a = model.conv(x).detach()
    g = (model.head.weight[1][:, None] * a.sigmoid() / 10).mean(dim=2, keepdim=True).detach()
    torch.testing.assert_close(one.tensor, (g * a.relu()).sum(dim=1))
    zeroed = layerlens.saliency(model, x, method="ablation_cam", where="pair/1", target=1, relu=False)
    assert zeroed.tensor.shape == (2, 10) and zeroed.tensor.any()


class LastState(nn.Module):
    """A recurrent layer of which only the last state is read."""

    def __init__(self, kind, before=None):
        super().__init__()
        self.before, self.rnn, self.head = before or torch.clone, kind(4, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        state = self.rnn(self.before(x))[1]
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_last_state_has_no_places(kind):
    model, x = seeded(lambda: LastState(kind)), torch.randn(2, 7, 4)
    with pytest.raises(OptionError, match=r"does not depend on rnn/output, call 0\. It reads 'rnn/h_n', which has no"):
        layerlens.grad_cam(model, x, "rnn", target=1)
    with pytest.raises(OptionError, match=r"\(1 tried\), or .* It reads 'rnn/h_n', .* method='integrated_gradients'"):
        layerlens.grad_cam(model, x, target=1)
    assert layerlens.saliency(model, x, target=1, method="integrated_gradients").tensor.shape == (2, 7, 4)
    longer = seeded(lambda: LastState(kind, nn.Linear(4, 4)))
    assert layerlens.grad_cam(longer, x, target=1, relu=False).settings["layer"] == "before"


def test_features_pooled_over_height_have_a_map_over_width():
    model, x = seeded(ColumnsLstm), torch.randn(2, 3, 24, 64)
    found = layerlens.grad_cam(model, x, "rnn/output", target=1, relu=False)
    assert found.axes == ("batch", "width") and found.tensor.shape == (2, 64) and found.settings["size"] == (16,)


def test_a_map_says_which_of_several_inputs_it_covers():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3, 2, 1), nn.Linear(6, 3)

        def forward(self, left, right):
            return self.head(self.conv(left).relu().mean((2, 3)) * self.conv(right).relu().mean((2, 3)))

    model, pair = seeded(Pair), (torch.randn(2, 3, 16, 16), torch.randn(2, 3, 24, 24))
    for call in (0, 1):
        found = layerlens.grad_cam(model, pair, f"conv#{call}", target=1, relu=False)
        assert found.settings["input"] == str(call) and torch.equal(found.inputs, pair[call])


def test_a_model_without_a_grid_says_what_to_name():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.sorted, self.head = nn.Linear(4, 6), nn.Identity(), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.sorted(self.embed(x).sort(1).values).mean(dim=1))

    model, x = seeded(Sorted), torch.randn(2, 9, 4)
    with pytest.raises(AxesUnknown, match=r"aten.sort orders .* axes=\{'sorted': \('batch', 'token', 'unit'\)\}"):
        layerlens.grad_cam(model, x, "sorted", target=1)
    name_axes(model, {"0": ("batch", "time", "sensor"), "sorted": ("batch", "time", "unit")})
    named = layerlens.grad_cam(model, x, "sorted", target=1, relu=False)
    assert named.axes == ("batch", "time") and named.tensor.shape == (2, 9)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    with pytest.raises(OptionError, match="no layer of Sequential returns units at more than one place"):
        layerlens.grad_cam(flat, torch.randn(1, 3, 4, 4))
    with pytest.raises(InputError, match=r"needs an image input .* Lens\(model, axes="):
        layerlens.grad_cam(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(2, 5))
