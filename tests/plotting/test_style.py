import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.text import Text

from layerlens import plotting
from layerlens.errors import OptionError, PlotError
from layerlens.plotting import curves, heatmap, style
from layerlens.plotting.drawing import text

from .helpers import attribution, curve, images, text_outside

COLORS = style.COLORS
WORDS = attribution(1, 4, tokens=[["a", "word", "\n", ""]])


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


def test_letters_that_the_font_lacks_are_written_as_their_numbers():
    from layerlens.plotting import heatmap

    from .helpers import attribution, texts

    assert text.visible("caf\u00e9 \u5df4\U0001f917\x07") == "caf\u00e9\u2423\\u5df4\\u1f917\\x07"
    plot = heatmap(attribution(1, 2, tokens=[["\u5df4", "a"]]))  # a warning about a missing glyph would be an error
    plot._repr_png_()
    assert "\\u5df4" in texts(plot)


def test_names_lose_what_all_begin_with_only_where_they_are_too_long():
    names = ["encoder.layer.3.output", "encoder.layer.12.attention"]
    assert text.unprefixed(names, 6, 5) == names
    assert text.unprefixed(names, 6, 0.5) == ["\u20263.output", "\u202612.attention"]
    assert text.unprefixed(["a" * 50] * 2, 6, 0.5) == ["a" * 50] * 2
    assert text.unprefixed(["a.b", "a.b.c" * 9], 6, 0.5) == ["\u2026b", "\u2026" + ("a.b.c" * 9)[2:]]


@pytest.mark.parametrize("limit", [0.3, 0.8, 2.0])
def test_a_shortened_name_fits_and_keeps_its_number_and_its_end(limit):
    short = text.shorten("encoder.layer.3.attention.output.LayerNorm.weight.original", 6, limit)
    assert text.width(short, 6) <= limit and short.startswith("\u20263.") and short[-1] == "l"
    plain = text.shorten("a_name_without_a_number_that_is_very_long_indeed_as_it_must_be", 6, limit)
    assert plain[0] == "a" and plain[-1] == "e" and plain.count("\u2026") == 1


def test_the_widest_name_is_found_among_many():
    names = ["i" * 40, "W" * 20, "m" * 15, "."] * 500
    assert text.widest(names, 6) == max(text.width(name, 6) for name in set(names))


# -- for a while -------------------------------------------------------------------------------------------------------


def settings():
    return {name: getattr(style, name) for name in ("TEXT", "SMALL", "COLORS", "POSITIVE", "NEGATIVE", "SIGNED", "RC")}


def test_a_style_changes_figures_inside_of_its_context_alone(tmp_path):
    before = settings()
    plain = heatmap(WORDS).save(tmp_path / "plain.png").read_bytes()
    with plotting.style(size=11, family="DejaVu Serif", positive="#009E73", negative="black"):
        plot = heatmap(WORDS)
        sizes = {artist.get_fontsize() for artist in plot.fig.findobj(Text) if artist.get_text()}
        colors = {to_hex(patch.get_facecolor()) for patch in plot.axes[0].patches}
        inside = plot.save(tmp_path / "inside.png").read_bytes()
    assert sizes == {10, 11} and colors == {"#009e73", "#000000"}
    assert text_outside(plot) == []
    assert settings() == before and heatmap(WORDS).save(tmp_path / "after.png").read_bytes() == plain
    # a figure keeps its style when it is saved later
    assert plot.save(tmp_path / "later.png").read_bytes() == inside != plain


def test_colors_of_categories_and_the_signed_map():
    with plotting.style(colors=["#111111", "#222222"], signed="PuOr"):
        assert [line.get_color() for line in curves(curve(("a", "b"), error=False, null=False)).axes[0].lines[:2]] == [
            "#111111",
            "#222222",
        ]
        assert heatmap(images()).axes[0].images[-1].get_cmap().name == "PuOr"
        assert style.COLORS[2:] == COLORS[2:]
    assert style.COLORS == COLORS


def test_styles_lie_inside_of_each_other_and_end_after_an_error():
    before = settings()
    with plotting.style(size=9):
        with pytest.raises(ZeroDivisionError), plotting.style(rc={"axes.linewidth": 2.0}):
            assert (style.TEXT, style.SMALL, style.RC["axes.linewidth"], style.RC["font.size"]) == (9, 8, 2, 9)
            raise ZeroDivisionError
        assert (style.TEXT, style.RC["axes.linewidth"]) == (9, 0.5)
    assert settings() == before


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"size": 3}, "size=3 points; give 6 to 24"),
        ({"family": "DejaVu Sant"}, "unknown font 'DejaVu Sant'. Closest: DejaVu Sans"),
        ({"colors": []}, r"colors=\[\]; give a list"),
        ({"colors": ["red", "reddd"]}, "colors: 'reddd' is not a color"),
        ({"positive": "nothing"}, "positive: 'nothing' is not a color"),
        ({"signed": "RdBuu"}, "unknown colormap 'RdBuu'. Closest: RdBu"),
        ({"rc": {"axes.linewith": 2}}, "unknown setting of matplotlib 'axes.linewith'. Closest: axes.linewidth"),
        ({"rc": {"axes.linewidth": "thick"}}, "rc=: "),
    ],
)
def test_what_is_no_style_is_refused_and_changes_nothing(options, expected):
    before = settings()
    with pytest.raises(OptionError, match=expected), plotting.style(**options):
        pass
    assert settings() == before
