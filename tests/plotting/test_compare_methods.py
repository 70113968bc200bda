import dataclasses

import numpy as np
import pytest

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import compare_methods

from .helpers import attribution, images, random, texts


def test_each_method_has_its_own_scale_after_the_picture():
    first = images()
    second = dataclasses.replace(first, values=100 * first.values, method="occlusion")
    plot = compare_methods([first, second], 1, clip=100)
    picture, one, other = plot.axes
    assert list(plot.data) == ["gradient", "occlusion"]
    assert picture.images[0].get_array().shape == (12, 12, 3)
    np.testing.assert_array_equal(one.images[-1].get_array(), first.values[1].sum(dim=0).numpy())
    assert other.images[-1].get_clim()[1] == pytest.approx(100 * one.images[-1].get_clim()[1])
    assert "sample 1 of 2: Target: class 7" in texts(plot)


def test_maps_can_be_drawn_without_the_picture_below_or_beside_them():
    assert len(compare_methods([images(1)], overlay=False).axes[1].images) == 1
    assert len(compare_methods([dataclasses.replace(images(1), inputs=None)]).axes) == 1


def test_different_targets_are_not_summed_up_in_a_title():
    results = [images(), images(target="class 8")]
    assert not [text for text in texts(compare_methods(results)) if text.startswith("Target")]


@pytest.mark.parametrize(
    "results, options, error, expected",
    [
        ([], {}, PlotError, "the list of attributions is empty"),
        (
            [images(), attribution(2, 3, 8, 8, method="B")],
            {},
            PlotError,
            "gradient attribution is 12 x 12, but the B .* 8 x 8",
        ),
        (
            [images(), images(method="B", values=random(2, 12, 12), inputs=random(2, 3, 12, 12, seed=5))],
            {},
            PlotError,
            "sample 0 of 'gradient' and of 'B' are different inputs.*overlay_grid",
        ),
        (
            [attribution(1, 5, tokens=[list("abcde")])],
            {},
            PlotError,
            "compare_methods shows maps over images; .*a row of tokens",
        ),
        ([images()], {"labels": ["a", "b"]}, PlotError, "2 labels for 1 methods"),
        ([images()], {"columns": 0}, OptionError, "columns=0"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(results, options, error, expected):
    with pytest.raises(error, match=expected):
        compare_methods(results, **options)
