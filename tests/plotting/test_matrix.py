import dataclasses
import itertools

import numpy as np
import pytest
import torch

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import matrix

from .helpers import PATHS, grid, profile, random, texts


def test_the_cells_are_the_values_with_the_first_row_at_the_top():
    given = grid(5, 7)
    plot = matrix(given)
    (axes,) = plot.axes
    (image,) = axes.images
    np.testing.assert_array_equal(np.asarray(image.get_array()), given.values.double().numpy())
    assert axes.yaxis_inverted() and image.origin == "upper"
    assert [label.get_text() for label in axes.get_yticklabels()] == list(given.rows)
    assert (axes.get_ylabel(), axes.get_xlabel()) == given.axes
    assert "effect (nat)" in texts(plot)


def test_signed_scales_are_symmetric_about_zero_and_diverge_and_others_start_at_zero():
    image = matrix(grid(5, 7)).axes[0].images[0]
    assert image.norm.vmin == -image.norm.vmax and image.cmap.name == "RdBu_r"
    image = matrix(grid(5, 7, signed=False)).axes[0].images[0]
    assert image.norm.vmin == 0 and image.cmap.name == "viridis"
    assert matrix(grid(5, 7), vmax=9, cmap="PuOr").axes[0].images[0].norm.vmax == 9


def test_the_percentile_of_a_clip_is_stated():
    plot = matrix(grid(20, 20), clip=90)
    given = np.abs(grid(20, 20).values.double().numpy())
    assert plot.axes[0].images[0].norm.vmax == pytest.approx(np.percentile(given, 90))
    assert any("clipped at 90%" in one.replace("\n", " ") for one in texts(plot))


def test_a_little_below_zero_stays_an_unsigned_scale_and_is_told():
    given = dataclasses.replace(grid(2, 2, signed=False), values=torch.tensor([[1.0, -0.02], [0.3, 1.0]]))
    plot = matrix(given)
    norm = plot.axes[0].images[0].norm
    assert (norm.vmin, norm.vmax) == (0, 1)
    assert any("lowest −0.02" in one.replace("\n", " ") for one in texts(plot))
    logs = dataclasses.replace(given, values=torch.tensor([[-1.0, -2.0], [-3.0, -0.5]]))
    norm = matrix(logs).axes[0].images[0].norm
    assert (norm.vmin, norm.vmax) == (-3, -0.5)


def test_cells_without_a_number_are_hatched_and_named_in_the_key():
    given = grid(5, 7)
    values = given.values.clone()
    values[2, 3] = torch.nan
    plot = matrix(dataclasses.replace(given, values=values))
    drawn = plot.axes[0].images[0].get_array()
    assert drawn.mask.sum() == 1 and drawn.mask[2, 3]
    assert [patch.get_hatch() for patch in plot.axes[0].patches] == ["//////"]
    assert "no number (NaN)" in texts(plot)
    assert not matrix(given).axes[0].patches and "no number (NaN)" not in texts(matrix(given))


def test_layers_against_layers_have_square_cells():
    for width in ("column", "page"):
        plot = matrix(grid(30, 30, axes=("layer", "layer")), width=width)
        box = plot.axes[0].get_window_extent()
        assert box.width == pytest.approx(box.height, rel=0.12)


def test_names_are_thinned_where_they_would_touch():
    few = [label.get_text() for label in matrix(grid(12, 30)).axes[0].get_xticklabels()]
    many = matrix(grid(200, 200, axes=("layer", "layer"), names=PATHS))
    assert 1 < len(few) <= 30
    for axis in (many.axes[0].xaxis, many.axes[0].yaxis):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        edges = sorted((box.x0, box.x1) if axis is many.axes[0].xaxis else (box.y0, box.y1) for box in boxes)
        assert 10 <= len(edges) < 200
        assert all(end <= start + 1 for (_, end), (start, _) in itertools.pairwise(edges))


def test_long_names_lose_their_middle_and_tokens_show_their_white_space():
    plot = matrix(grid(3, 4), labels=(["a" * 90, "b", "c"], [" Paris", "\n", "", "end"]))
    rows = [label.get_text() for label in plot.axes[0].get_yticklabels()]
    assert "…" in rows[0] and rows[1:] == ["b", "c"]
    assert [label.get_text() for label in plot.axes[0].get_xticklabels()] == ["␣Paris", "↵", "∅", "end"]


def test_of_thousands_of_columns_neighbors_are_drawn_together_and_no_peak_is_lost():
    values = random(12, 4096)
    values[3, 1001] = -40.0
    given = grid(12, 4096)
    plot = matrix(dataclasses.replace(given, values=values))
    drawn = plot.data["drawn"]
    each = -(-4096 // drawn.shape[1])
    assert drawn.shape[1] <= 540 and drawn[3, 1001 // each] == -40
    block = values[5, each : 2 * each]
    assert drawn[5, 1] == pytest.approx(float(block[block.abs().argmax()]))
    assert any(f"each cell: {each} columns, the value farthest from 0" in one.replace("\n", " ") for one in texts(plot))
    assert plot.data["values"].shape == (12, 4096)


def test_numbers_are_written_where_they_fit():
    given = grid(3, 3)
    written = [one.get_text() for one in matrix(given).axes[0].texts]
    assert written == [f"{value:.2f}".replace("-", "−") for value in given.values.flatten().tolist()]
    assert not matrix(given, annotate=False).axes[0].texts
    assert not matrix(grid(30, 30)).axes[0].texts


def test_numbers_are_legible_on_their_color():
    from matplotlib.colors import to_rgb

    plot = matrix(grid(4, 4), width="page")
    image = plot.axes[0].images[0]
    colors = image.cmap(image.norm(plot.data["values"]))[..., :3].reshape(-1, 3)
    for one, behind in zip(plot.axes[0].texts, colors, strict=True):
        weights = np.array([0.2126, 0.7152, 0.0722])
        assert abs(float((np.array(to_rgb(one.get_color())) - behind) @ weights)) > 0.3


def test_chance_and_error_are_told_in_words():
    given = dataclasses.replace(grid(2, 2), null=torch.tensor([[0.0, 0.1], [0.05, 0.1]]), error=torch.full((2, 2), 0.5))
    assert "chance 0 to 0.1; standard error 0.5." in [one.replace("\n", " ") for one in texts(matrix(given))]


@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        (grid(2, 2), {"vmax": 0}, OptionError, "vmax=0 is the largest"),
        (grid(2, 2), {"clip": 101}, OptionError, "clip=101 is a percentile"),
        (grid(2, 2), {"annotate": "yes"}, OptionError, "unknown annotate 'yes'"),
        (grid(30, 30), {"annotate": True}, PlotError, "numbers do not fit into cells of .*annotate=False"),
        (grid(2, 2), {"labels": ["a", "b", "c"]}, PlotError, "labels= of a matrix are two"),
        (grid(2, 2), {"labels": (["a"], ["b", "c"])}, PlotError, r"shape \(2, 2\) for 1 names of rows and 2"),
        (dataclasses.replace(grid(2, 2), values=torch.zeros(2, 2)), {}, PlotError, "zero everywhere.*Give vmax="),
        (dataclasses.replace(grid(1, 1), values=torch.tensor([[torch.nan]])), {}, PlotError, "all 1 values .* NaN"),
        (dataclasses.replace(grid(1, 1), values=torch.tensor([[torch.inf]])), {}, PlotError, "infinite at 1 of 1"),
        (profile(), {}, PlotError, "draws a Matrix, not a LayerProfile"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_a_remedy(given, options, error, expected):
    with pytest.raises(error, match=expected):
        matrix(given, **options)


def test_zeros_are_drawn_on_a_scale_that_is_given():
    zeros = dataclasses.replace(grid(2, 2), values=torch.zeros(2, 2))
    assert matrix(zeros, vmax=1).axes[0].images[0].norm.vmax == 1
