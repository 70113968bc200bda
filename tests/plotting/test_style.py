import numpy as np
import pytest

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import style, text


def bounds(*values, signed=True, clip=100.0, vmax=None):
    return style.limits([np.array(values)], signed=signed, clip=clip, vmax=vmax, what="the map")


def test_signed_limits_are_symmetric_about_zero_and_unsigned_ones_start_there():
    assert (bounds(-1, 3).low, bounds(-1, 3).high) == (-3, 3)
    assert (bounds(1, 3, signed=False).low, bounds(1, 3, signed=False).high) == (0, 3)


def test_the_percentile_is_of_the_magnitude_and_is_stated():
    values = np.linspace(-100, 50, 1001)
    found = style.limits([values], signed=True, clip=90, vmax=None, what="the map")
    assert found.high == pytest.approx(np.percentile(np.abs(values), 90))
    assert found.clipped and found.note == "clipped at 90%"


def test_a_sparse_map_keeps_a_scale():
    found = bounds(*[0.0] * 999, 2.0, clip=50)
    assert found.high == 2 and not found.clipped and found.note == ""


def test_vmax_overrides_the_percentile():
    found = bounds(-1, 3, vmax=2)
    assert (found.low, found.high, found.clipped, found.note) == (-2, 2, True, "")


@pytest.mark.parametrize(
    "options, expected",
    [({"clip": 0}, "clip=0 is a percentile"), ({"clip": 101}, "at most 100"), ({"vmax": -1}, "vmax=-1 is the largest")],
)
def test_options_out_of_range_are_refused(options, expected):
    with pytest.raises(OptionError, match=expected):
        bounds(1, 2, **options)


def test_zeros_and_negative_magnitudes_are_refused():
    with pytest.raises(PlotError, match=r"the map is zero everywhere.*give vmax="):
        bounds(0, 0)
    assert bounds(0, 0, vmax=1).high == 1
    with pytest.raises(PlotError, match=r"says signed=False but holds negative values .smallest -0.5."):
        bounds(-0.5, 1, signed=False)


def test_an_unknown_colormap_or_width_names_near_ones():
    with pytest.raises(OptionError, match=r"unknown colormap 'magna'. Closest: magma"):
        style.colormap("magna", signed=False)
    with pytest.raises(OptionError, match=r"unknown width 'pages'. Closest: page"):
        style.inches("pages")
    with pytest.raises(OptionError, match=r"width=0.1 inches; give 1 to 40"):
        style.inches(0.1)


@pytest.mark.parametrize(
    "value, expected",
    [
        (0, "0"),
        (-1.5, "−1.5"),
        (0.00016, "1.6e−4"),
        (7.99e-5, "7.99e−5"),
        (1234567, "1.23e6"),
        (1e-3, "0.001"),
        (100, "100"),
    ],
)
def test_numbers_are_short(value, expected):
    assert style.number(value) == expected


@pytest.mark.parametrize("words", ["one two three four five six", "a_very.long/layer-name.without.spaces", "x" * 90])
def test_wrapped_lines_fit_and_lose_nothing(words):
    lines = text.wrap(words, 7, 0.8).split("\n")
    assert len(lines) > 1 and all(text.width(line, 7) <= 0.8 for line in lines)
    assert "".join(lines).replace(" ", "") == words.replace(" ", "")
