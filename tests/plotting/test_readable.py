"""What a reader needs to see: tokens, numbers of layers, scales by name, whole steps, and why a row is empty."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from layerlens.analyzers.sensitivity import jacobian
from layerlens.plotting import (
    attention,
    curves,
    dependence,
    layer_profile,
    matrix,
    model_map,
    overlay_grid,
    timeseries,
)
from layerlens.plotting.drawing import text
from layerlens.results import LogitLens

from .helpers import attention as weights, attribution, curve, images, profile, random, table, text_outside, texts

TOKENS = [[f"Ġ{word}" for word in "The capital of France is not Rome but Paris .".split()]]


@pytest.mark.parametrize("layers, heads", [(12, 1), (12, 3), (22, 16), (2, 4)])
def test_attention_fits_a_page_with_its_tokens(layers, heads):
    plot = attention(weights(layers, heads, 10, 1, tokens=TOKENS))
    wide, high = plot.fig.get_size_inches()
    assert wide == 6.75 and high < 9.2 and not text_outside(plot)
    assert "␣The" in texts(plot) and len(plot.axes) == len(plot.data) * min(heads, 12)
    said = " ".join(texts(plot))
    assert (f"{len(plot.data)} of {layers} layers, layers= chooses others" in said) == (len(plot.data) < layers)
    assert ("12 of 16 heads, heads= chooses others" in said) == (heads == 16)


def test_attention_leaves_out_padding_and_nothing_else():
    given = weights(1, 2, 10, 2, tokens=TOKENS * 2)
    for name in given.weights:
        given.weights[name][1, :, :, 7:] = 0
    (maps,) = attention(given, 1).data.values()
    (name,) = given.weights
    assert np.array_equal(maps, given.weights[name][1, :, :7, :7].numpy())
    assert any("3 tokens that no query reads (padding) are not drawn" in line for line in texts(attention(given, 1)))
    (whole,) = attention(given, 0).data.values()
    assert whole.shape == (2, 10, 10)


def test_cells_of_a_logit_lens_hold_the_likeliest_tokens():
    top = torch.randint(0, 4, (5, 3, 2), generator=torch.Generator().manual_seed(0))
    names = {0: "Ġthe", 1: "ĠParis", 2: ",", 3: "Ġcity"}
    lens = LogitLens(
        "log p", tuple("abcde"), ("x", "y", "z"), -random(5, 3).abs(), ("layer", "position"), "nats", False,
        "logit lens", {}, targets=(1, 1, 1), top=top, scores=torch.rand(5, 3, 2), names=names,
    )  # fmt: skip
    plot = lens.plot()
    shown = {0: "␣the", 1: "␣Paris", 2: ",", 3: "␣city"}
    cells = {(round(one.get_position()[1]), round(one.get_position()[0])): one.get_text() for one in plot.axes[0].texts}
    assert cells == {(row, column): shown[int(top[row, column, 0])] for row in range(5) for column in range(3)}
    assert "In each cell: the likeliest token." in " ".join(texts(plot))
    many = dataclasses.replace(lens, columns=tuple(map(str, range(30))), values=lens.values.repeat(1, 10),
                               top=top.repeat(1, 10, 1), targets=(1,) * 30)  # fmt: skip
    narrow = matrix(many, width="column")
    written = " ".join(texts(narrow))
    drawn = narrow.data["drawn"].shape[1]
    assert f"The last {drawn} of 30 positions; annotate=False draws all." in written and 3 <= drawn <= 8
    assert torch.equal(torch.from_numpy(narrow.data["values"]), many.values.double())  # all of them
    kept = {one.get_text() for one in narrow.axes[0].texts}
    assert kept == {shown[index] for row in many.top[:, -drawn:, 0].tolist() for index in row}  # whole words
    assert matrix(many, width="column", annotate=False).data["drawn"].shape[1] == 30
    high = dataclasses.replace(lens, rows=tuple(map(str, range(100))), values=lens.values.repeat(20, 1),
                               top=top.repeat(20, 1, 1))  # fmt: skip
    assert "Tokens do not fit" in " ".join(texts(matrix(high, width="column")))


def test_images_in_a_pdf_have_300_dots_an_inch(tmp_path):
    large = attribution(1, 900, 900, axes=("batch", "height", "width"))
    drawn = large.plot()
    across = drawn.axes[0].get_position().width * drawn.fig.get_size_inches()[0]
    content = drawn.save(tmp_path / "a.pdf").read_bytes()
    widths = [int(found) for found in re.findall(rb"/Width (\d+)", content)]
    assert max(widths) == pytest.approx(300 * across, rel=0.03)
    assert (
        max(map(int, re.findall(rb"/Width (\d+)", drawn.save(tmp_path / "b.pdf", dpi=150).read_bytes()))) < 200 * across
    )


def test_a_shortened_path_keeps_the_number_of_its_layer():
    name = "model.language_model.layers.17.self_attn.some_projection"
    for limit in (0.5, 0.8, 1.2, 2.0):
        assert text.shorten(name, 6, limit).startswith("…17.") and text.width(text.shorten(name, 6, limit), 6) <= limit


def test_log_scales_are_named_and_steps_are_whole():
    assert layer_profile(profile(4), scale="log").axes[0].get_xlabel().endswith("log scale")
    assert curves(curve(), scale="symlog").axes[0].get_xlabel().startswith("eps, log scale from ")
    steps = dataclasses.replace(curve(points=4), points=torch.tensor([0.0, 1.0, 2.0, 3.0]))
    assert all(tick == round(tick) for tick in curves(steps).axes[0].get_xticks())
    short = timeseries(attribution(1, 5, 1, inputs=random(1, 5, 1)))
    assert all(tick == round(tick) for tick in short.axes[0].get_xticks())


def test_a_model_map_says_why_rows_are_empty():
    assert any("layers without parameters of their own" in line for line in texts(model_map(table())))
    assert any("layers that were not measured" in line for line in texts(model_map(table(), profile(1, error=False))))


def test_pictures_of_images_are_not_touched():
    batch = images(2)
    before = batch.values.clone()
    batch.plot()
    assert torch.equal(batch.values, before)


def test_titles_and_keys_name_what_is_drawn():
    grid = dataclasses.replace(images(2), targets=("cat", "dog"), method="occlusion")
    assert list(overlay_grid(grid).data) == ["sample 0: cat, score 0.5", "sample 1: dog, score 1"]
    assert "Occlusion" in texts(overlay_grid(grid))
    assert "random changes" in texts(curves(dataclasses.replace(curve(), null_name="random changes")))
    assert "with shuffled weights" in texts(
        layer_profile(dataclasses.replace(profile(), null_name="with shuffled weights"))
    )
    assert jacobian(torch.nn.Linear(3, 2), torch.rand(4, 3), null=True).null_name == "with shuffled weights"
    assert "line: the input; color: the attribution" in texts(timeseries(attribution(1, 9, 2, inputs=random(1, 9, 2))))
    assert dependence(attribution(9, 2, inputs=random(9, 2)), 0).axes[0].get_ylabel() == "attribution of f0 (score)"
    quoted = LogitLens(
        "log p", ("a",), ("x",), -torch.ones(1, 1), ("layer", "position"), "nats", False, "logit lens", {},
        targets=(0,), top=torch.zeros(1, 1, 1, dtype=torch.int64), scores=torch.ones(1, 1, 1), names={0: "' it\\'s'"},
    )  # fmt: skip
    assert "␣it's" in texts(quoted.plot())


def test_names_of_thousands_of_letters_are_drawn_on_a_page():
    name = "n" * 10_000
    long = [["the", "t" * 4000, "語" * 4000, "x\n" * 2000]]
    tokens = attribution(1, 4, axes=("batch", "token"), inputs=torch.zeros(1, 4, dtype=torch.long), tokens=long)
    rows = dataclasses.replace(profile(3), layers=(name, f"b{name}", "c"))
    plots = [layer_profile(rows), curves(curve(series=(name, "b"))), tokens.plot.tokens()]
    for plot in plots:
        wide, high = plot.fig.get_size_inches()
        assert wide <= 6.75 and high < 9.2 and max(map(len, texts(plot))) < 2000
    assert text.shorten(name, 6, 1.0).startswith("nnn") and text.width(text.shorten(name, 6, 1.0), 6) <= 1
    assert len(text.wrap(name, 6, 3.0)) < 400
