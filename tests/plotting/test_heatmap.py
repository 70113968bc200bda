import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import layerlens
from layerlens.errors import OptionError, PlotError
from layerlens.plotting import heatmap

from .helpers import attribution, images, random, texts


def test_an_image_is_the_sum_of_channels_over_its_gray_input():
    result = images()
    plot = heatmap(result, 1)
    underlay, overlay = plot.axes[0].images
    expected = result.values[1].sum(dim=0).numpy()
    np.testing.assert_array_equal(overlay.get_array(), expected)
    np.testing.assert_array_equal(plot.data["values"], expected)
    low, high = overlay.get_clim()
    assert low == -high and high == pytest.approx(np.percentile(np.abs(expected), 99.5))
    np.testing.assert_allclose(overlay.get_alpha(), np.minimum(np.abs(expected) / high, 1))
    assert overlay.get_cmap().name == "RdBu_r" and overlay.get_interpolation() == "nearest"
    assert underlay.get_array().shape == (12, 12) and underlay.get_cmap().name == "gray"


@pytest.mark.parametrize(
    "channel, expected, units",
    [
        ("abs", lambda v: v.abs().sum(dim=0), "|score|, sum of channels"),
        (2, lambda v: v[2], "score, channel 2"),
        (-3, lambda v: v[0], "score, channel 0"),
    ],
)
def test_channels_are_joined_as_asked(channel, expected, units):
    result = images()
    plot = heatmap(result, 0, channel=channel, clip=100)
    np.testing.assert_array_equal(plot.data["values"], expected(result.values[0]).numpy())
    assert units in texts(plot)
    assert (plot.axes[0].images[-1].get_clim()[0] == 0) == (channel == "abs")


def test_the_colorbar_states_units_and_clip_and_can_be_left_out():
    plot = heatmap(images(), 0, clip=95)
    assert any(text.replace("\n", " ") == "score, sum of channels (clipped at 95%)" for text in texts(plot))
    assert not [text for text in texts(heatmap(images(), colorbar=False)) if "score" in text]


def test_a_map_of_magnitudes_starts_at_zero():
    image = heatmap(attribution(1, 8, 8, signed=False)).axes[0].images[0]
    assert image.get_clim()[0] == 0 and image.get_cmap().name == "magma"


def test_overlay_can_be_off_or_a_photograph():
    assert len(heatmap(images(), 0, overlay=False).axes[0].images) == 1
    photograph = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    np.testing.assert_allclose(heatmap(images(), 0, overlay=photograph).data["picture"], photograph / 255)
    with pytest.raises(PlotError, match=r"overlay= is 9 x 12, but the gradient attribution is 12 x 12. Resize"):
        heatmap(images(), 0, overlay=photograph[:9])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_and_attached_gradients_are_drawn(dtype):
    result = images()
    result = dataclasses.replace(result, values=result.values.to(dtype).requires_grad_())
    assert heatmap(result, 0).data["values"].shape == (12, 12)


def test_a_series_has_time_on_x():
    result = attribution(1, 30, 4, inputs=random(1, 30, 4))
    plot = heatmap(result)
    np.testing.assert_array_equal(plot.axes[0].images[0].get_array(), result.values[0].T.numpy())
    assert (plot.axes[0].get_xlabel(), plot.axes[0].get_ylabel()) == ("time", "feature")


def test_axes_decide_where_shapes_do_not():
    plot = heatmap(attribution(1, 8, 30, axes=("batch", "token", "feature")))
    assert plot.axes[0].get_xlabel() == "token" and plot.data["values"].shape == (30, 8)
    assert heatmap(attribution(1, 8, 8, axes=("batch", "height", "width"), inputs=None)).data["values"].shape == (8, 8)


def test_tokens_are_bars_with_their_texts():
    tokens = [["the", "$5 or $6", "\n"]]
    plot = heatmap(attribution(1, 3, tokens=tokens))
    bars = [bar.get_width() for bar in plot.axes[0].patches]
    assert bars == pytest.approx(plot.data["values"].tolist())
    assert [label.get_text() for label in plot.axes[0].get_yticklabels()] == ["the", "$5␣or␣$6", "↵"]
    assert plot.axes[0].yaxis_inverted()


def test_token_ids_name_the_bars_when_texts_are_unknown():
    plot = heatmap(attribution(1, 3, inputs=torch.tensor([[101, 7, 102]])))
    assert [label.get_text() for label in plot.axes[0].get_yticklabels()] == ["101", "7", "102"]


def test_the_weakest_of_many_tokens_are_summed_in_one_row():
    result = attribution(1, 200, tokens=[[str(index) for index in range(200)]])
    plot = heatmap(result)
    assert len(plot.data["values"]) == 61
    assert plot.data["values"].sum() == pytest.approx(result.values.sum().item(), abs=1e-4)
    assert "140 weaker, sum" in texts(plot)


def test_a_vector_is_bars_or_a_line():
    assert len(heatmap(attribution(1, 40)).axes[0].patches) == 40
    plot = heatmap(attribution(1, 41))
    assert not plot.axes[0].patches and len(plot.axes[0].lines[-1].get_ydata()) == 41


def test_one_of_several_inputs_is_drawn_by_name():
    both = {"pixels": random(1, 3, 8, 8), "table": random(1, 5)}
    result = dataclasses.replace(images(1), values=both, inputs={"pixels": random(1, 3, 8, 8)})
    with pytest.raises(PlotError, match=r"values for 2 inputs: 'pixels', 'table'. Say which to draw: name='pixels'"):
        heatmap(result)
    with pytest.raises(OptionError, match=r"unknown input name 'pixel'. Closest: pixels"):
        heatmap(result, name="pixel")
    assert heatmap(result, name="table").data["values"].shape == (5,)
    assert "picture" in heatmap(result, name="pixels").data
    with pytest.raises(OptionError, match=r"is of one input without a name"):
        heatmap(images(), name="x")


@pytest.mark.parametrize(
    "result, options, error, expected",
    [
        (
            attribution(1, 20, 30, 3),
            {},
            PlotError,
            r"looks like \(batch, height, width, channel\).*permute\(0, 3, 1, 2\)",
        ),
        (attribution(1, 3, 4, 8, 8), {}, PlotError, r"has shape \(1, 3, 4, 8, 8\).*Take a slice of a volume"),
        (attribution(4), {}, PlotError, r"has shape \(4,\); a figure needs \(batch, ...\)"),
        (images(values=torch.full((2, 3, 12, 12), torch.nan)), {}, PlotError, "of sample 0 .*holds NaN or infinity"),
        (images(values=torch.zeros(2, 3, 12, 12)), {}, PlotError, "is zero everywhere.*target depends on this input"),
        (images(signed=False, values=-torch.ones(2, 3, 12, 12)), {}, PlotError, "signed=False but holds negative"),
        (images(values=random(2, 7, 7)), {}, PlotError, r"is 7 x 7, but its input has shape \(2, 3, 12, 12\). Resize"),
        (images(), {"sample": 2}, OptionError, r"sample=2, but the gradient attribution holds 2 \(0 to 1\)"),
        (images(), {"sample": True}, OptionError, "sample=True"),
        (images(), {"channel": 3}, OptionError, "channel=3, but the gradient attribution holds 3 channels"),
        (images(), {"channel": "mean"}, OptionError, "unknown channel 'mean'.* Known: sum, abs"),
        (images(), {"labels": ["a"]}, PlotError, "1 labels for an image"),
        (attribution(1, 5), {"labels": ["a"]}, PlotError, "1 labels for 5 rows"),
        (attribution(1, 5, tokens=[["a"]]), {}, PlotError, "5 values for 1 tokens"),
        ("map", {}, PlotError, "draws an Attribution, not a str"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(result, options, error, expected):
    with pytest.raises(error, match=expected):
        heatmap(result, **options)


def test_channels_last_can_be_meant():
    axes = ("batch", "channel", "height", "width")
    assert heatmap(attribution(1, 20, 30, 3, axes=axes)).data["values"].shape == (30, 3)


def volumes():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    x = torch.randn(2, 1, 5, 8, 9)
    yield layerlens.grad_cam(model, x, target=1, relu=False), ("batch", "depth", "height", "width")
    yield (
        layerlens.saliency(model, x, target=1, method="gradient"),
        ("batch", "channel", "depth", "height", "width"),
    )


def test_a_volume_is_refused_with_a_call_that_draws_its_strongest_slice():
    for result, axes in volumes():
        assert result.axes == axes
        with pytest.raises(PlotError, match="Take a slice of a volume") as caught:
            heatmap(result)
        call = str(caught.value).partition("holds most: ")[2].rstrip(".")
        plot = heatmap(eval(call, {"dataclasses": dataclasses, "result": result}), 0, clip=100)
        depth = axes.index("depth")
        whole = result.tensor.abs().sum(dim=[axis for axis in range(len(axes)) if axis != depth])
        expected = result.tensor.select(depth, int(whole.argmax()))[0].reshape(8, 9)
        np.testing.assert_allclose(plot.data["values"], expected)


def test_maps_of_units_of_a_volume_are_refused_in_the_same_way():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv3d(1, 4, 3)), torch.randn(1, 1, 5, 8, 9)
    maps = layerlens.Lens(model).activation_maps(x, "0")
    for draw in (layerlens.plotting.channels, layerlens.plotting.activation_mosaic):
        with pytest.raises(PlotError, match="Take a slice of a volume") as caught:
            draw(maps)
        call = str(caught.value).partition("holds most: ")[2].rstrip(".")
        draw(eval(call, {"dataclasses": dataclasses, "maps": maps}))


class Sounds(nn.Module):
    """A spectrogram `(batch, mel, time)` next to token ids."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.word, self.head = nn.Conv2d(1, 4, 3), nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, mel, ids):
        return self.head(self.conv(mel[:, None]).relu().mean(dim=(2, 3)) + self.word(ids).mean(dim=1))


def test_several_inputs_keep_their_axes():
    x = {"mel": torch.randn(1, 12, 20), "ids": torch.tensor([[1, 2, 3]])}
    result = layerlens.saliency(Sounds(), x, target=1, method="input_x_gradient")
    assert result.axes == {"mel": ("batch", "height", "width"), "ids": ("batch", "token")}
    plot = heatmap(result, name="mel", clip=100)
    np.testing.assert_array_equal(plot.data["values"], result.values["mel"][0])
    assert heatmap(result, name="ids").data["values"].shape == (3,)
    assert set(result.to_pandas().columns) >= {"input", "height", "width", "token"}
