import dataclasses
import html.parser
import itertools

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from layerlens.errors import OptionError, PlotError
from layerlens.plotting import style, tokens, tokens_html
from layerlens.plotting.drawing import text, token_text

from .helpers import attribution, maps, random, texts

WORDS = ["<s>", "The", "Ġcap", "ital", "Ġof", "ĠFrance", ",", "Ċ", "It"]


def of(words, values=None, signed=True):
    values = np.linspace(-2, 1, len(words)) if values is None else np.array(values)
    one = attribution(1, len(words), tokens=[list(words)], signed=signed)
    return dataclasses.replace(one, values=torch.tensor(values[None], dtype=torch.float32))


class Spans(html.parser.HTMLParser):
    """The tags of a fragment, and the text, style and title of each token."""

    def __init__(self, fragment):
        super().__init__()
        self.tags, self.attributes, self.tokens, self.open = [], [], [], []
        self.feed(fragment)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag != "br":
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and "title" in self.open[-1][1]:
            self.tokens.append((data, self.open[-1][1]["style"], self.open[-1][1]["title"]))


def boxes(plot):
    (found,) = (one for one in plot.axes[0].collections if isinstance(one, PatchCollection))
    return found, [path.get_extents() for path in found.get_paths()]


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, read",
    [
        (WORDS, "<s>|The capital of France,|\n|It"),
        (["[CLS]", "un", "##real", "story", "[SEP]"], "[CLS] unreal story [SEP]"),
        (["▁Zürich", "▁is", "n", "'", "t"], "Zürich isn't"),
        (["ĠZ", "Ã¼", "rich"], "Zürich"),
        (["a", "b", "c"], "a b c"),
        (["the", " cat", "s"], "the cats"),
    ],
)
def test_tokens_are_put_together_as_they_are_read(words, read):
    found = token_text.pieces(words, np.ones(len(words)), None)
    line = "".join(" " * piece.apart + piece.text for piece in found)
    assert line == read.replace("|", "")


def test_weak_runs_are_left_out_with_their_number_and_sum():
    values = np.zeros(1000)
    values[[0, 500, 503]] = 5, -9, 2
    values[100:110] = 0.125
    found = token_text.pieces(["x"] * 1000, values, 20)
    shown = [piece.value for piece in found]
    runs = [piece for piece in found if piece.count]
    assert sum(piece.count or 1 for piece in found) == 1000
    assert sum(shown) == pytest.approx(values.sum()) and {5, -9, 2} <= set(shown)
    assert runs[0].text == f"… {runs[0].count} tokens: 1.25 …"
    assert len(found) - len(runs) <= 20
    assert len(token_text.pieces(["x"] * 1000, values, None)) == 1000
    assert token_text.pieces(["x"] * 5, np.arange(5.0), 1)[-1].value == 4


# -- the figure --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1.6, "column", "page"])
def test_cells_have_the_width_of_their_text_in_inches_and_lie_in_the_panel(width):
    plot = tokens(of(WORDS * 12), width=width)
    (axes,) = plot.axes
    _, extents = boxes(plot)
    assert axes.get_xlim()[1] == pytest.approx(axes.bbox.width / plot.fig.dpi)
    assert axes.get_ylim()[0] == pytest.approx(axes.bbox.height / plot.fig.dpi)
    for box, shown in zip(extents, plot.data["tokens"], strict=True):
        assert box.width == pytest.approx(text.width(shown, 7) + 0.04)
        assert box.x1 <= axes.get_xlim()[1] + 1e-6 and box.y1 <= axes.get_ylim()[0] + 1e-6
    lines = {}
    for box in extents:
        lines.setdefault(round(box.y0, 4), []).append(box)
    assert len(lines) >= 12  # a line ends after each newline
    for line in lines.values():
        assert all(left.x1 <= right.x0 + 1e-6 for left, right in itertools.pairwise(line))


def test_parts_of_a_word_touch_and_words_do_not():
    plot = tokens(of(["▁cap", "ital", "▁city"]))
    cap, ital, city = boxes(plot)[1]
    assert ital.x0 == pytest.approx(cap.x1) and city.x0 > ital.x1 + 0.04


def test_colors_are_those_of_the_scale_and_negative_tokens_are_underlined():
    values = [-2.0, -0.5, 0.0, 1.0]
    plot = tokens(of(["a", "b", "c", "d"], values))
    found, _ = boxes(plot)
    expected = style.colormap(None, signed=True)((np.array(values) + 2) / 4)
    assert np.allclose(found.get_facecolors(), expected)
    (under,) = (one for one in plot.axes[0].collections if isinstance(one, LineCollection))
    assert len(under.get_segments()) == 2 and "underlined: negative" in texts(plot)
    assert [one.get_color() for one in plot.axes[0].texts] == ["white", style.INK, style.INK, style.INK]
    assert "underlined: negative" not in texts(tokens(of(["a", "b"], [1, 2], signed=False)))


def test_a_long_text_says_what_it_leaves_out():
    plot = tokens(attribution(1, 4096, tokens=[["Ġx"] * 4096]), count=50)
    assert any(line.startswith("4096 tokens; gray: left out") for line in texts(plot))
    assert len(plot.data["values"]) == 4096 and len(plot.data["tokens"]) < 80


def test_words_are_drawn_as_tokens_are():
    assert tokens(of(WORDS).by_word()).data["tokens"][1:3] == ["The", "capital"]


def test_given_axes_that_are_too_low_are_refused():
    with pytest.raises(PlotError, match=r"the text takes .* inches of height .* and the axes given have 0\.\d+"):
        tokens(of(WORDS * 20), ax=Figure(figsize=(3, 1)).add_subplot())


@pytest.mark.parametrize("draw", [tokens, tokens_html])
@pytest.mark.parametrize(
    "given, options, error, expected",
    [
        (attribution(1, 3, 8, 8), {}, PlotError, r"is image of shape \(8, 8\).*values=result.values.sum\(-1\)"),
        (attribution(1, 5), {}, PlotError, r"is vector of shape \(5,\)\..*replace\(result, axes="),
        (maps(1, 3, 4, 4), {}, PlotError, "draws an Attribution, not a ActivationMaps"),
        (of(WORDS), {"count": 0}, OptionError, "count=0 tokens; give 1 or more"),
        (of(WORDS), {"labels": ["a"]}, PlotError, "1 labels for 9 tokens"),
        (of(WORDS), {"sample": 1}, OptionError, "sample=1, but"),
        (of(["a", "b"], [0, 0]), {}, PlotError, "is zero everywhere"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, given, options, error, expected):
    with pytest.raises(error, match=expected):
        draw(given, **options)


# -- HTML --------------------------------------------------------------------------------------------------------------


def test_every_token_has_its_text_color_and_value():
    values = [-2.0, 0.25, 1.0]
    spans = Spans(tokens_html(of(["a", "b", "c"], values)))
    colors = style.colormap(None, signed=True)
    for (shown, look, hover), word, value in zip(spans.tokens, "abc", values, strict=True):
        assert shown == word and hover == f"{word}: {style.number(value)} score"
        assert f"background:{to_hex(colors((value + 2) / 4))};" in look
        assert ("underline" in look) == (value < 0)


@pytest.mark.parametrize(
    "nasty", ["<script>alert(1)</script>", '" onmouseover="alert(1)', "</span></div>", "&amp;", "'><img src=x>"]
)
def test_nothing_in_a_text_becomes_markup(nasty):
    one = dataclasses.replace(of([nasty, "b"]), method=nasty, units=nasty, target=nasty)
    fragment = tokens_html(one)
    spans = Spans(fragment)
    assert spans.open == [] and set(spans.tags) <= {"div", "span", "br"}
    assert set(spans.attributes) <= {"style", "title", "role", "aria-label"}
    assert spans.tokens[0][0] == nasty and spans.tokens[0][2].startswith(nasty)


def test_the_fragment_loads_nothing_and_brings_its_own_paper():
    fragment = tokens_html(of(WORDS))
    assert fragment.startswith('<div role="group" aria-label="') and "background:#FFFFFF;color:#262626" in fragment
    assert not any(word in fragment for word in ("http", "url(", "<script", "<link", "<style", "@import", "class="))
    assert fragment == tokens_html(of(WORDS))


def test_marks_of_direction_and_control_characters_are_shown():
    assert [one[0] for one in Spans(tokens_html(of(["a\u202eb", "\x00", "", "\n"]))).tokens] == [
        "a\\u202eb",
        "\\u0000",
        "∅",
        "↵",
    ]


def test_the_scale_says_its_ends_and_where_it_is_clipped():
    fragment = tokens_html(of(["a"] * 9 + ["b"], [0.5] * 9 + [9]), clip=80)
    assert "clipped at 80%" in fragment and ">−0.5<" in fragment and ">0.5 score" in fragment
    assert "linear-gradient" not in tokens_html(of(WORDS), colorbar=False)


def test_who_sees_no_colors_is_told_the_strongest():
    assert "strongest of 3 tokens, in score: b −3, c 2, a 1" in tokens_html(of(["a", "b", "c"], [1, -3, 2]))


def test_long_texts_can_be_shortened():
    one = attribution(1, 600, tokens=[["Ġx"] * 600], inputs=random(1, 600))
    whole, short = Spans(tokens_html(one)), Spans(tokens_html(one, count=30))
    assert len(whole.tokens) == 600 and len(short.tokens) < 60
    assert any("tokens, sum: " in hover for *_, hover in short.tokens)
