import inspect
import os
import pydoc

import pytest

from layerlens import plotting
from layerlens.errors import OptionError, PlotError, UnknownOption
from layerlens.plotting import Plot, heatmap, layer_profile, plot
from layerlens.plotting.drawing.canvas import Canvas
from layerlens.results import Curve

from .helpers import attribution, curve, grid, groups, images, ledger, maps, profile, random, ranking, relevance, table


def test_pdf_embeds_truetype_fonts_also_under_other_settings(tmp_path):
    import matplotlib

    drawn = layer_profile(profile())
    with matplotlib.rc_context({"pdf.fonttype": 3}):
        content = drawn.save(tmp_path / "figure.pdf").read_bytes()
    assert b"/Subtype /Type0" in content or b"/Type0" in content
    assert b"/CIDFontType2" in content and b"/FontFile2" in content
    assert b"/Type3" not in content


def test_no_file_names_a_date_or_a_version(tmp_path):
    drawn = heatmap(images(1))
    for suffix, words in {
        "pdf": (b"CreationDate", b"Producer"),
        "svg": (b"dc:date", b"Matplotlib"),
        "png": (b"tEXt",),
    }.items():
        content = drawn.save(tmp_path / f"figure.{suffix}").read_bytes()
        assert not [word for word in words if word in content]


def test_dpi_sets_the_pixels_of_a_png(tmp_path):
    from PIL import Image

    drawn = heatmap(images(1))
    with Image.open(drawn.save(tmp_path / "a.png", dpi=400)) as image:
        assert image.size[0] == 1300


def test_fewer_colors_make_a_smaller_png_that_looks_alike(tmp_path):
    import numpy as np
    from PIL import Image

    drawn = heatmap(images(size=96))
    whole, few, again = (drawn.save(tmp_path / f"{k}.png", colors=k and 64).stat().st_size for k in (None, 64, 64))
    assert few == again < whole / 2
    first, second = (np.asarray(Image.open(tmp_path / f"{k}.png").convert("RGB"), float) for k in (None, 64))
    assert len(np.unique(second.reshape(-1, 3), axis=0)) <= 64
    assert np.abs(first - second).mean() < 4


@pytest.mark.parametrize("suffix, colors", [("png", 1), ("png", 257), ("pdf", 64)])
def test_colors_that_no_file_can_have_are_refused(tmp_path, suffix, colors):
    with pytest.raises(OptionError, match=f"colors={colors} for a {suffix.upper()}"):
        heatmap(images()).save(tmp_path / f"a.{suffix}", colors=colors)
    assert not list(tmp_path.iterdir())


def test_a_file_keeps_the_rights_of_the_folder_and_leaves_nothing_beside_it(tmp_path):
    mask = os.umask(0o022)
    try:
        path = heatmap(images()).save(tmp_path / "figure.PNG")
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["figure.PNG"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    drawn = heatmap(images(1))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match=r"disk full"):
        drawn.save(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["figure.png"]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("figure.jpg", r"the suffix '\.jpg'\. Use \.png, \.pdf or \.svg"),
        ("figure", r"no suffix\. Use"),
        ("nowhere/figure.png", "the folder .*nowhere does not exist. Make it first"),
    ],
)
def test_paths_that_cannot_be_written_are_refused(name, expected, tmp_path):
    with pytest.raises(PlotError, match=expected):
        heatmap(images()).save(tmp_path / name)


def test_a_notebook_shows_one_picture():
    drawn = heatmap(images(1))
    assert drawn._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(NotImplementedError):  # tells IPython to go on to the picture
        drawn._ipython_display_()
    assert repr(drawn).startswith("Plot(1 panel, 3.25 x ") and repr(drawn).endswith("Keep it: .save('figure.pdf')")


@pytest.mark.parametrize(
    "result, kind, panels",
    [
        (images(1), None, 1),
        (images(), None, 2),
        (images(1), "heatmap", 1),
        (images(), "grid", 4),
        (relevance(), None, 1),
        (relevance(), "flow", 1),
        (relevance(), "profile", 1),
        (relevance(), "grid", 2),
        (ledger(), None, 1),
        (profile(), None, 1),
        (profile(), "profile", 1),
        (maps(1, 9, 4, 4), None, 6),
        (maps(1, 9, 4, 4), "mosaic", 6),
        (maps(1, 9, 4, 4), "channels", 1),
        (attribution(1, 3, tokens=[["a", "b", "c"]]), "tokens", 1),
        (attribution(1, 9, 3, inputs=random(1, 9, 3)), "timeseries", 3),
        (table(), None, 1),
        (ranking(), "sensitivity", 1),
        (grid(3, 4), "matrix", 1),
        (curve(), "curves", 1),
    ],
)
def test_results_draw_themselves(result, kind, panels):
    drawn = result.plot(kind)
    assert isinstance(drawn, Plot) and len(drawn.axes) == panels


def test_options_go_to_the_figure():
    assert images().plot(width="page", sample=1).fig.get_size_inches()[0] == pytest.approx(6.75)


def test_an_unknown_kind_names_those_that_exist():
    with pytest.raises(
        OptionError,
        match=r"unknown figure of a Relevance 'flows'. Closest: flow.* Known: heatmap, .*grid, .*profile, flow",
    ):
        relevance().plot("flows")


def test_a_result_without_a_figure_is_refused():
    with pytest.raises(PlotError, match=r"no figure of a Entry. These have one: ActivationMaps, Adver"):
        plot(ledger().entries[0])


def test_relevance_without_layers_says_how_to_get_a_profile():
    import dataclasses

    with pytest.raises(PlotError, match=r"no layers were asked for"):
        dataclasses.replace(relevance(), profile=None).plot("profile")


# -- result.plot -------------------------------------------------------------------------------------------------------


def test_result_plot_has_the_options_of_its_usual_figure_and_its_kinds_as_attributes():
    drawn = relevance()
    usual = list(inspect.signature(heatmap).parameters)
    assert list(inspect.signature(drawn.plot).parameters) == ["kind", *usual[1:]]
    assert "cmap: " in inspect.getdoc(drawn.plot) and "attribution: " not in inspect.getdoc(drawn.plot)
    kinds = [name for name in dir(drawn.plot) if not name.startswith("_")]
    tables = {"bars", "beeswarm", "dependence", "importance", "waterfall"}
    assert set(kinds) == {"flow", "grid", "heatmap", "profile", "timeseries", "tokens"} | tables
    assert (
        list(inspect.signature(drawn.plot.flow).parameters)
        == list(inspect.signature(plotting.relevance_flow).parameters)[1:]
    )
    assert inspect.getdoc(drawn.plot.flow) == inspect.getdoc(plotting.relevance_flow)
    assert drawn.plot.flow(count=3).data["name"].tolist() == drawn.plot("flow", count=3).data["name"].tolist()
    assert "count: " in pydoc.render_doc(drawn.plot.flow) and "cmap: " in pydoc.render_doc(type(drawn).plot)


def test_a_figure_of_a_part_of_a_result_has_the_options_of_both():
    assert list(inspect.signature(groups().plot.layers).parameters)[:2] == ["contrast", "scale"]
    assert groups().plot.layers(contrast=0, scale="log").data["values"].shape == (2, 1)


def test_misspelt_and_misplaced_options_are_named():
    with pytest.raises(UnknownOption, match=r"belongs to saving, result.plot\(\).save\('figure.png', dpi=300\)"):
        images().plot(dpi=300)
    with pytest.raises(UnknownOption, match=r"heatmap\(\) has no option 'colormap'. Closest: colorbar"):
        images().plot(colormap="gray")
    with pytest.raises(UnknownOption, match=r"'heatmap' of a Relevance has no option 'count'; 'beeswarm' has"):
        relevance().plot(count=3)


def test_a_figure_of_ones_own_is_one_function(monkeypatch):
    monkeypatch.setitem(plotting.FIGURES, Curve, dict(plotting.FIGURES[Curve]))

    @plotting.figure(Curve, kind="dots")
    def dots(one, *, width="column", title=None):
        """Draw the points of a curve."""
        with Canvas(width=width) as canvas:
            canvas.title(title, one.method)
            canvas.panel(height=1.0).plot(one.values[0], "o")
            return canvas.finish({"values": one.values})

    assert list(plotting.figures_of(Curve)) == ["curves", "dots"]
    assert len(curve().plot.dots(title="mine").axes) == 1 and "width: `" in dots.__doc__
    with pytest.raises(PlotError, match="dots draws a Curve, not a LayerProfile"):
        dots(profile())
    with pytest.raises(OptionError, match="must be a Python identifier"):
        plotting.figure(Curve, kind="two words")


def test_old_spellings_still_work_and_warn(tmp_path):
    with pytest.warns(DeprecationWarning, match=r"relevance_flow\(most=\) is now count="):
        assert len(relevance().plot("flow", most=3).data["name"]) == len(relevance().plot.flow(count=3).data["name"])
    drawn = heatmap(images(1))
    with pytest.warns(DeprecationWarning, match=r"save\(colours=\) is now colors="):
        old = drawn.save(tmp_path / "old.png", colours=16).read_bytes()
    assert old == drawn.save(tmp_path / "new.png", colors=16).read_bytes()
    with pytest.warns(DeprecationWarning, match=r"using\(colours=\) is now colors="), plotting.style(colours=["black"]):
        assert plotting.style.COLORS[0] == "black"
    with pytest.warns(DeprecationWarning, match=r"now style.COLORS"):
        assert plotting.style.COLOURS is plotting.style.COLORS
