"""The report: what stands on the page is what was computed, and the page needs nothing else."""

import base64
import io
import itertools
import re
import warnings
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest
import torch
from PIL import Image
from torch import nn

import layerlens
from layerlens import Lens
from layerlens.errors import LayerNotFound, OptionError, ResultFileError, TargetError
from layerlens.model.hashing import digest, weights_digest
from layerlens.report import build, sample_section
from layerlens.report.alt_text import of_map
from layerlens.report.assemble import main_layers
from tests.snapshot import Snapshot

from .conftest import HOSTILE

QUICK = {"profiles": [], "controls": False, "methods": ["gradient"]}


class Reader(HTMLParser):
    """Tags with their attributes, headings in order, and all text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.open = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


@pytest.fixture(scope="module")
def page(made):
    return read(made)


def test_names_are_text_and_never_tags(made, page):
    text = made.read_text(encoding="utf-8")
    assert "<script" not in text and not page.all("script")
    assert page.text.count(HOSTILE) >= 4  # title, heading, tab, panel


def test_nothing_comes_from_outside(made, page):
    text = made.read_text(encoding="utf-8")
    plain = re.sub(r'src="data:image/png;base64,[^"]*"', "", text)
    assert not re.search(r"https?:|<link|@import|url\(|<iframe|<object|\bon\w+=", plain)
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert page.all("html")[0]["lang"] == "en"


def test_pictures_are_whole_and_told_in_numbers(digits, page):
    lens, images = digits
    shown = page.all("img")
    assert len(shown) == 2 * 2 + 2  # maps and ledger of each sample, two profiles
    for attributes in shown:
        data = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size == (int(attributes["width"]), int(attributes["height"]))
        assert len(re.findall(r"\d", attributes["alt"])) > 5
    maps = lens.relevance(images[:1], target="seven")
    total = f"{float(maps.tensor.double().sum()):.4g}"
    assert f"add up to {total} (" in shown[0]["alt"]
    assert f"score {float(maps.score[0]):.4g} =" in shown[1]["alt"]


def test_headings_are_in_order_and_ids_are_unique(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    wanted += [a["for"] for a in page.all("label")] + [a["href"][1:] for a in page.all("a")]
    assert set(wanted) <= set(ids) and len(page.all("input")) == 2
    assert [len(page.all(landmark)) for landmark in ("header", "nav", "main", "footer")] == [1, 1, 1, 1]


def test_the_numbers_are_those_of_the_analyzers(digits, page):
    lens, images = digits
    ledger = lens.relevance(images[:1], target="seven").ledger
    for number in (ledger.score, ledger.inputs, ledger.additive):
        assert f"{float(number[0]):.6g}" in page.text
    assert weights_digest(lens.model) in page.text
    assert digest([("0", images[:1])]) in page.text
    assert "integrated_gradients is complete" in page.text and f"torch {torch.__version__}" in page.text
    assert all(row.path in page.text for row in lens.layers().rows)
    assert '"integrated_gradients": {"steps": 20}' in page.text.replace("'", '"')


def test_the_model_and_the_inputs_are_given_back(digits, tmp_path):
    lens, images = digits
    before = Snapshot(lens.model, images)
    lens.report(images[:1], path=tmp_path / "a.html", **QUICK)
    before.check()


# -- checks ------------------------------------------------------------------------------------------------------------


def built(lens, x, targets=None, **options):
    return build(lens, x, targets, path="report.html", recipe=lambda samples: "", **{**QUICK, **options})


def test_a_check_can_fail():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    for layer in (net[0], net[2]):
        layer.weight.data.mul_(20)
    made = built(
        Lens(net),
        torch.randn(1, 4),
        0,
        methods={"integrated_gradients": {"steps": 1, "max_steps": 1, "tolerance": 1e-6}},
    )
    (check,) = [check for check in made.checks if "is complete" in check.name]
    assert check.outcome == "failed" and check is made.checks[0] and "1 failed" in made.tally
    assert any("integrated_gradients" in text for text in made.warnings)


def test_a_map_that_looks_the_wrong_way_does_not_beat_its_controls(monkeypatch):
    net = nn.Linear(12, 1)
    net.weight.data.copy_(torch.arange(12.0).sub(5.5).unsqueeze(0))
    options = {"controls": True, "methods": ["input_x_gradient"]}
    good = built(Lens(net), torch.ones(1, 12), **options)
    verdicts = {check.name.split(":")[0]: check.outcome for check in good.checks if "controls" in check.name}
    assert verdicts["input_x_gradient beats its controls"] == "passed"
    own = sample_section.saliency

    def reversed_map(*args, **kwargs):
        found = own(*args, **kwargs)
        return layerlens.results.Attribution(**{**vars(found), "values": -found.tensor})

    monkeypatch.setattr(sample_section, "saliency", reversed_map)
    bad = built(Lens(net), torch.ones(1, 12), **options)
    verdicts = {check.name.split(":")[0]: check.outcome for check in bad.checks if "controls" in check.name}
    assert verdicts["input_x_gradient beats its controls"] == "failed"
    text = "\n".join(bad.findings)
    assert re.search("sample 0: relevance.* and input_x_gradient contradict each other .* -1.00", text)
    assert "the map of input_x_gradient is no better than " in text and "which never looks at the model" in text
    assert not [one for one in good.findings if "input_x_gradient" in one and "adds" not in one]


def test_findings_come_first_on_the_page(tmp_path):
    """A map that adds to 27 times the score: 27 of relevance in the input, and -26 in the bias."""
    net = nn.Linear(3, 1)
    net.weight.data.copy_(torch.tensor([[20.0, 4.0, 3.0]]))
    net.bias.data.fill_(-26.0)
    path = Lens(net).report(torch.ones(1, 3), path=tmp_path / "r.html", **{**QUICK, "methods": ["occlusion"]})
    page = path.read_text()
    said = "the map of relevance, epsilon adds to 27 times the score: its values are not shares of the score."
    assert 0 < page.index(said) < page.index('<nav aria-label="Sections">')
    net.bias.data.zero_()
    assert not built(Lens(net), torch.ones(1, 3)).findings


def test_what_cannot_be_computed_is_told():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    made = built(Lens(net), torch.randn(1, 2, 3), 0, methods=["grad_cam", "gradient"])
    titles = [block.title for block in made.panels[0].blocks]
    assert "grad_cam" in titles
    assert any(check.passed is None and "grad_cam" in check.name for check in made.checks)


def test_a_changed_weight_would_be_seen():
    net = nn.Linear(2, 2)
    before = weights_digest(net)
    net.weight.data[0, 0] += 1e-6
    assert weights_digest(net) != before
    for dtype in (torch.bfloat16, torch.float64):
        assert len(weights_digest(nn.BatchNorm1d(2).to(dtype))) == 64


# -- kinds of input ----------------------------------------------------------------------------------------------------


class Words:
    """A tokenizer of words, for the tests."""

    vocabulary = ("<pad>", "good", "bad", "film", "<b>not</b>")

    def __call__(self, texts, return_tensors=None, padding=None, add_special_tokens=True):
        texts = [texts] if isinstance(texts, str) else texts
        return {"input_ids": torch.tensor([[self.vocabulary.index(word) for word in text.split()] for text in texts])}

    def convert_ids_to_tokens(self, ids):
        return [self.vocabulary[int(index)] for index in ids]


class Sentiment(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.head = nn.Embedding(5, 6), nn.LSTM(6, 7, batch_first=True), nn.Linear(7, 2)

    def forward(self, input_ids):
        return self.head(self.lstm(self.embed(input_ids))[0][:, -1])


def test_texts_of_any_length_are_strips_of_tokens(tmp_path):
    lens = Lens(Sentiment(), tokenizer=Words(), class_names=["against", "for"])
    texts = ["<b>not</b> bad film", "good"]
    path = lens.report(texts, "for", tmp_path / "text.html", **{**QUICK, "controls": True})
    page = read(path)
    relevance = lens.relevance(texts[0], target="for")
    strips = path.read_text().split('<ol class="tokens"')[1:]
    assert len(strips) == 4 and "&lt;b&gt;not&lt;/b&gt;" in strips[0] and not page.all("script")
    for token in ("bad", "film"):
        assert f"<b>{token}</b>" in strips[0]
    value = float(relevance.tensor[0, 0])
    assert f"{value:.2g}"[:4].replace("-", "−") in strips[0]
    assert page.text.count(texts[0]) >= 2


@pytest.mark.parametrize("model, x, pictures", [
    (nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)), torch.randn(2, 2, 10), 3),
    (nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2)), torch.randn(2, 5), 4),
    (nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)), torch.randn(1, 1, 4, 4, 4), 1),
])  # fmt: skip
def test_series_vectors_and_volumes(tmp_path, model, x, pictures):
    for layer in (model[0], model[-1]):
        nn.init.zeros_(layer.bias)  # a bias that takes most of the score is a finding
    page = read(Lens(model).report(x, 0, tmp_path / "a.html", **QUICK))
    assert len(page.all("img")) == pictures * len(x) and "0 failed" in page.text
    assert ("Not drawn" in page.text) == (x.ndim == 5)
    assert ("The line is the input, channel by channel" in page.text) == (x.ndim == 3)


def test_a_series_of_many_channels_is_a_heat_map(tmp_path):
    net = nn.Sequential(nn.Conv1d(9, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))
    page = read(Lens(net).report(torch.randn(1, 9, 10), 0, tmp_path / "a.html", **QUICK))
    assert len(page.all("img")) == 4 and "The line is the input" not in page.text


def test_several_inputs_each_have_their_maps(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, a, b):
            return self.a(a) * self.b(b).sigmoid()

    page = read(Lens(Two()).report({"a": torch.randn(2, 3), "b": torch.randn(2, 4)}, 0, tmp_path / "two.html",
                                   **{**QUICK, "controls": True}))  # fmt: skip
    assert "Input for a" in page.text and "Input for b" in page.text and "(random)" in page.text


def test_a_picture_beside_other_inputs_is_shown_in_its_colours():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.row, self.head = nn.Conv2d(3, 2, 3), nn.Linear(4, 2), nn.Linear(2, 2)

        def forward(self, picture, row):
            return self.head(self.conv(picture).mean(dim=(-2, -1)) + self.row(row))

    made = built(Lens(Both()), {"picture": torch.rand(1, 3, 8, 8), "row": torch.rand(1, 4)}, 0)
    titles = [block.title for block in made.panels[0].blocks]
    assert titles[:2] == ["Maps of the input picture", "Input for row"]
    (maps, *_) = made.panels[0].blocks
    assert "The input and 2 map(s) of it" in maps.alt
    with Image.open(io.BytesIO(maps.png)) as image:  # the first of three panels holds colours of noise
        left = image.convert("RGB").crop((0, 0, image.width // 3, image.height)).resize((40, 40))
        assert np.ptp(np.asarray(left).astype(int), axis=2).max() > 60


def test_warnings_name_the_samples_they_are_about():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    net[0].weight.data.fill_(1.0)
    net[0].bias.data.zero_()
    x = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])  # every unit is off for the second
    made = built(Lens(net), x, 0, labels=["on", "off"])
    assert [text for text in made.warnings if text.startswith("off: gradient: the values are zero everywhere")]
    assert not [text for text in made.warnings if "sample(s)" in text]
    table = pandas.DataFrame(x.numpy(), columns=["a", "b"], index=["Ada", 7])
    panels = built(Lens(net), table, 0).panels
    assert [one.label for one in panels] == ["Ada, sample 0", "7, sample 1"]
    both = built(Lens(net), x[[1, 1]], 0, labels=["off", "off too"])
    assert [text for text in both.warnings if text.startswith("gradient: the values are zero everywhere")]


def test_ranges_of_whole_numbers_and_small_scores_keep_their_digits():
    lens = Lens(Sentiment(), tokenizer=Words(), class_names=["against", "for"])
    made = built(lens, ["film bad"], "for", controls=True)
    assert ("input", "int64 (1, 2), 2 to 3") in made.panels[0].facts
    values = [check.value for check in made.checks if "controls" in check.name]
    assert values and all(re.fullmatch(r"-?[\d.]+(e-\d+)?", value) for value in values)
    assert any(float(value) != 0 for value in values)


def test_all_of_it_runs_in_bfloat16_and_for_a_zero_map(tmp_path):
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).to(torch.bfloat16)
    page = read(Lens(net).report(torch.randn(1, 5).bfloat16(), 0, tmp_path / "a.html", **QUICK))
    assert "bfloat16" in page.text
    dead = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    dead[0].bias.data.fill_(-1e6)
    page = read(Lens(dead).report(torch.randn(1, 5), 0, tmp_path / "a.html", **QUICK))
    assert "zero everywhere" in page.text


# -- wrong use, and being cancelled ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, error, says", [
    ({"path": "no/where.html"}, ResultFileError, "the folder no does not exist"),
    ({"path": "."}, ResultFileError, "it is a folder"),
    ({"methods": ["gradiant"]}, OptionError, "Closest: gradient"),
    ({"methods": "gradient"}, OptionError, "list of names"),
    ({"profiles": ["jacobean"]}, OptionError, "Closest: jacobian"),
    ({"labels": ["a"]}, OptionError, "1 label"),
    ({"labels": ["a", "a"]}, OptionError, "two samples have the label 'a'"),
    ({"targets": ["seven"]}, TargetError, "1 target"),
    ({"targets": "sevn"}, TargetError, "Closest: seven"),
    ({"layers": "blokcs.*"}, LayerNotFound, "blokcs"),
])  # fmt: skip
def test_wrong_use_ends_before_the_work(digits, tmp_path, monkeypatch, options, error, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample_section, "relevance", lambda *_, **__: pytest.fail("work was done"))
    lens, images = digits
    with pytest.raises(error, match=says):
        lens.report(images, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["sample_section.relevance", "page.render", "page.whole"])
def test_a_cancelled_report_leaves_what_was_there(digits, tmp_path, monkeypatch, place):
    def cancel(*_, **__):
        raise KeyboardInterrupt

    lens, images = digits
    (tmp_path / "report.html").write_text("the old one")
    monkeypatch.setattr(f"layerlens.report.{place}", cancel)
    with pytest.raises(KeyboardInterrupt):
        lens.report(images[:1], path=tmp_path / "report.html", **QUICK)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["the old one"]


def test_without_jinja2_the_error_says_what_to_install(digits, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(layerlens.errors.MissingPackage, match=r"layerlens-torch\[report\]"):
        digits[0].report(digits[1], path=tmp_path / "a.html")


def test_warnings_that_are_not_for_users_go_their_way(digits, monkeypatch, tmp_path):
    own = sample_section.relevance

    def warn(*args, **options):
        warnings.warn("old", DeprecationWarning, stacklevel=2)
        warnings.warn("mind this", UserWarning, stacklevel=2)
        return own(*args, **options)

    monkeypatch.setattr(sample_section, "relevance", warn)
    with pytest.warns(DeprecationWarning, match="old"):
        page = read(digits[0].report(digits[1][:1], path=tmp_path / "a.html", **QUICK))
    assert "mind this" in page.text


# -- parts -------------------------------------------------------------------------------------------------------------


def test_the_layers_shown_are_blocks_of_a_deep_model():
    block = lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))  # noqa: E731
    small, deep = nn.Sequential(block(), block()), nn.Sequential(*(block() for _ in range(30)))
    x = torch.ones(1, 2)
    assert main_layers(layerlens.layers(small, x)) == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]
    assert main_layers(layerlens.layers(deep, x)) == [str(k) for k in range(30)]
    listed = nn.ModuleDict({"blocks": nn.ModuleList([block()])})
    listed.forward = lambda x: listed["blocks"][0](x)
    assert main_layers(layerlens.layers(listed, x)) == ["blocks.0.0", "blocks.0.1", "blocks.0.2"]


def test_the_alternative_text_of_a_map():
    from layerlens.plotting.drawing.attribution_sample import Sample

    shown = Sample("image", torch.tensor([[1.0, -3.0], [0.0, 2.0]]).numpy(), True, "score", "a map", "", 1.0)
    text = of_map(shown, "gradient")
    assert text == (
        "Gradient, in units of score: values add up to 0 (3 for, 3 against); strongest at row 0, column 1 (-3), row 1, "
        "column 1 (2), row 0, column 0 (1); half of the size lies in 1 of 4 places."
    )


class Wrong(torch.autograd.Function):
    """2 x, with the derivative 3."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, g):
        return 3 * g


class Doubled(nn.Module):
    def forward(self, x):
        return Wrong.apply(x)


def test_a_wrong_gradient_names_its_layer_on_the_page(tmp_path):
    lens = Lens(nn.Sequential(nn.Linear(3, 4), Doubled(), nn.Linear(4, 2)))
    path = lens.report(torch.ones(1, 3), path=tmp_path / "r.html", controls=False, profiles=())
    text = path.read_text(encoding="utf-8")
    assert "The gradient agrees with finite differences" in text
    assert "wrong in 1 (the backward pass of Wrong)" in text
