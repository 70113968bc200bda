"""The gallery of the embedded model: every file is there, readable, and says what was computed."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from layerlens.demo import gallery
from layerlens.demo.demo_subject import subject

KINDS = ("saliency", "relevance", "ledger")


@pytest.fixture(scope="module")
def made():
    chosen = subject("embedded")
    return gallery.make(chosen, dict(list(chosen.pictures.items())[:2]))


@pytest.fixture(scope="module")
def out(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery") / "out"
    folder.mkdir()
    for name in ("notes.txt", "index.html", "activations.pdf"):
        (folder / name).write_text("of before")
    made_files = gallery.write(made, folder)
    assert sorted([*made_files, folder / "notes.txt"]) == sorted(folder.iterdir())
    assert made_files[0].name == "index.html"
    return folder


class Reader(HTMLParser):
    """Notes tags with their attributes, the text of table cells and of the heads of rows, and of facts."""

    def __init__(self):
        super().__init__()
        self.tags, self.cells, self.facts, self.inside = [], [], [], None

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = {"td": self.cells, "th": self.cells, "dd": self.facts}.get(tag)

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is not None:
            self.inside.append(data)


@pytest.fixture(scope="module")
def read(out):
    reader = Reader()
    reader.feed((out / "index.html").read_text(encoding="utf-8"))
    return reader


def test_each_figure_is_a_png_and_a_pdf(made, out):
    names = set(gallery.files(made))
    expected = {"activations", "grad_cam", "sensitivity"}
    expected |= {f"{digit}_in_clutter_{kind}" for digit in ("seven", "three") for kind in KINDS}
    assert names == expected
    for name in names:
        with Image.open(out / f"{name}.png") as picture:
            picture.load()
            assert min(picture.size) > 100
            assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 10  # not empty
        assert (out / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def test_the_page_is_whole_and_needs_nothing_from_outside(made, out, read):
    text = (out / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|<link|@import|url\(", text)
    (policy,) = [a["content"] for tag, a in read.tags if tag == "meta" and "Content-Security-Policy" in a.values()]
    assert "default-src 'none'" in policy
    images = [attributes for tag, attributes in read.tags if tag == "img"]
    assert len(images) == len(gallery.files(made))
    for attributes, (name, figure) in zip(images, gallery.files(made).items(), strict=True):
        data = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        assert data == (out / f"{name}.png").read_bytes()
        assert Image.open(io.BytesIO(data)).size == (int(attributes["width"]), int(attributes["height"]))
        assert attributes["alt"] == figure.alt and len(re.findall(r"\d", figure.alt)) > 5


def test_the_numbers_on_the_page_are_those_that_were_computed(made, read):
    for panel in made.panels:
        ledger, facts = panel.results[0].ledger, dict(panel.facts)
        assert panel.outputs[0][0] in read.cells
        names = ("score", "relevance in the input", "in additive constants")
        score, inputs, additive = (float(facts[name]) for name in names)
        assert all(facts[name] in read.facts for name in names)
        assert score == pytest.approx(float(ledger.score[0]), rel=1e-3)
        assert inputs + additive == pytest.approx(score, rel=1e-2)
        assert float(ledger.relative[0]) < 1e-5
        (gap,) = [one.checks["completeness gap"] for one in panel.results if one.method == "integrated_gradients"]
        assert float(gap[0]) < 0.05
    paths = {row[0] for row in made.table[1:]}
    assert len(paths) > 20 and paths <= set(read.cells)


def test_what_is_explained_is_what_is_seen(made):
    """The relevance of the prediction lies on the digit, not on the clutter."""
    tops = [panel.outputs[0] for panel in made.panels]
    assert [name for name, _, _ in tops] == ["seven", "three"]
    assert all(float(share.rstrip("%")) > 80 for _, _, share in tops)
    targets = [dict(panel.facts)["target"].removesuffix(" (predicted)") for panel in made.panels]
    assert targets == ["seven", "three"]


def test_the_map_in_the_middle_sums_to_the_layers_relevance(made):
    relevance, layer = made.panels[0].results[0], subject("embedded").depth
    spread = gallery.at_depth(relevance, layer)
    assert spread.tensor.shape == (1, *relevance.inputs.shape[-2:])
    torch.testing.assert_close(
        spread.tensor.double().sum(), relevance.layers[layer][0].double().sum(), rtol=1e-5, atol=1e-5
    )


def test_the_summary_has_a_column_per_picture_with_the_numbers_that_matter(made):
    lines = gallery.summary(made).splitlines()
    heads = [line[:30].split("  ")[0] for line in lines]
    wanted = ["picture", "top class", "prob.", "conservation gap", "ledger residual", "completeness gap"]
    assert heads[:6] == wanted
    assert [head for head in heads if head.endswith(", x fwd")] == [f"{name}, x fwd" for name in made.panels[0].times]
    assert all(value > 0 for panel in made.panels for value in panel.times.values())
    assert {"relevance", "grad_cam", "integrated_gradients"} <= set(made.panels[0].times)


def test_a_run_replaces_its_files_and_leaves_others(made, out):
    kept = [path.name for path in out.iterdir() if path.read_bytes() == b"of before"]
    assert kept == ["notes.txt"]
