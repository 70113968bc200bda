import numpy as np
import pytest

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import overlay_grid

from .helpers import attribution, images, texts


def test_pictures_lie_beside_maps_on_one_scale():
    result = images(4)
    plot = overlay_grid(result, which=[0, 2, -1])
    assert list(plot.data) == ["sample 0, score 0.5", "sample 2, score 1.5", "sample 3, score 2"]
    pictures, overlays = plot.axes[::2], plot.axes[1::2]
    for sample, picture, overlay in zip((0, 2, 3), pictures, overlays, strict=True):
        assert len(picture.images) == 1 and picture.images[0].get_array().shape == (12, 12, 3)
        np.testing.assert_array_equal(overlay.images[-1].get_array(), result.values[sample].sum(dim=0).numpy())
        assert picture.get_position().x1 < overlay.get_position().x0
        assert picture.get_position().y0 == pytest.approx(overlay.get_position().y0)
    shown = np.abs([np.asarray(overlay.images[-1].get_array()) for overlay in overlays])
    assert {overlay.images[-1].get_clim() for overlay in overlays} == {
        (-np.percentile(shown.astype(float), 99.5), np.percentile(shown.astype(float), 99.5))
    }


def test_several_attributions_of_one_method_are_counted_through():
    plot = overlay_grid([images(2, seed=1), images(2, seed=2)], columns=2)
    assert len(plot.data) == 4 and len(plot.axes) == 8
    assert plot.axes[4].get_position().y1 < plot.axes[0].get_position().y0


def test_labels_replace_the_numbers():
    plot = overlay_grid(images(2), labels=["cat", "cat"])
    assert list(plot.data) == ["cat", "cat #1"] and texts(plot).count("cat") == 2


@pytest.mark.parametrize(
    "results, options, error, expected",
    [
        ([], {}, PlotError, "the list of attributions is empty"),
        (
            [images(), images(method="occlusion")],
            {},
            PlotError,
            "one method; given were 'gradient' .in score. and 'occl.*comp",
        ),
        (images(inputs=None), {}, PlotError, "keeps no input picture.*dataclasses.replace"),
        (attribution(2, 5), {}, PlotError, r"overlay_grid shows maps over images; .* is a vector of shape \(5,\)"),
        (images(), {"which": [5]}, OptionError, "sample=5, but the batch holds 2"),
        (images(), {"which": []}, PlotError, "draws nothing"),
        (images(), {"labels": ["a"]}, PlotError, "1 labels for 2 samples"),
        (images(), {"columns": 0}, OptionError, "columns=0; give 1 or more"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(results, options, error, expected):
    with pytest.raises(error, match=expected):
        overlay_grid(results, **options)
