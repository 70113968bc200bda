import dataclasses

import numpy as np
import pytest
import torch

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import top_inputs
from layerlens.plotting.drawing.images import picture

from .helpers import random, texts, top_inputs as tops


def test_a_row_per_unit_strongest_first_with_value_and_index():
    top = tops()
    plot = top.plot(count=2)
    order = [unit for unit, _ in top.strongest()]
    expected = [f"unit {unit}, sample {int(top.index[unit, rank])}" for unit in order for rank in range(2)]
    assert list(plot.data) == expected
    assert plot.axes[0].get_title().startswith(f"#{int(top.index[order[0], 0])}: ")
    assert [text for text in texts(plot) if text.startswith("unit")] == [f"unit {unit}" for unit in order]
    assert any(text.startswith("blocks.0: Relevance (epsilon), sum over places, class 7") for text in texts(plot))
    assert next(iter(top.plot(units=[2], labels=["edges"]).data)) == "unit 2, sample 8"


def test_what_is_seen_is_shown_as_it_is_and_the_rest_dark_or_cut_away():
    top = tops(1, 1)
    whole = picture(top.inputs[0], channels_first=True)
    ((masked,), (cut,), (plain,)) = (list(top.plot(show=show).data.values()) for show in ("mask", "crop", "input"))
    np.testing.assert_array_equal(plain, whole)
    np.testing.assert_array_equal(masked[2:7, 1:9], whole[2:7, 1:9])
    assert masked[7:].max() <= 0.46 and np.ptp(masked[7:], axis=-1).max() < 1e-6
    np.testing.assert_array_equal(cut, whole[0:8, 1:9])  # a square around rows 2-6 and columns 1-8


def test_a_region_at_the_edge_and_none_at_all():
    box = torch.tensor([[0, 3], [9, 12], [0, 2]]).repeat(1, 1, 1, 1)
    top = tops(1, 1, regions=True)
    cut = next(iter(dataclasses.replace(top, regions=box).plot(show="crop").data.values()))
    assert cut.shape == (3, 3, 3)
    empty = next(iter(dataclasses.replace(top, regions=torch.zeros_like(box)).plot().data.values()))
    np.testing.assert_array_equal(empty, picture(top.inputs[0], channels_first=True))


@pytest.mark.parametrize("given, options, error, expected", [
    (random(2, 3), {}, PlotError, "draws TopInputs, not a Tensor"),
    (tops(), {"show": "map"}, OptionError, "unknown way to show inputs 'map'"),
    (tops(), {"count": 0}, OptionError, "count=0 samples"),
    (tops(), {"units": []}, PlotError, r"units=\[\] draws nothing"),
    (tops(), {"units": [7]}, OptionError, "unit 7 of layer 'blocks.0' was not ranked; those are: 0, 1, 2"),
    (tops(), {"labels": ["a"]}, PlotError, "1 labels for 3 units"),
    (tops(regions=False), {}, PlotError, "show='mask' needs regions, which were not kept"),
    (tops(1, 1, inputs={0: random(5)}), {"show": "input"}, PlotError, r"sample 0 is \(5,\)"),
    (tops(1, 1, inputs={0: {"a": random(5)}}), {"show": "input"}, PlotError, "sample 0 is a dict with a"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused_with_a_remedy(given, options, error, expected):
    with pytest.raises(error, match=expected):
        top_inputs(given, **options)
