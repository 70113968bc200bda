"""The data of an explorer: every number is an analyzer's, names are escaped, and the file stays small."""

import base64
import hashlib
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from layerlens import Lens
from layerlens.errors import InputError, LayerNotFound, OptionError, ResultFileError, TargetError
from layerlens.explorer.packing import CELLS, averaged, block_size, cells_of, pooled
from layerlens.targets.target import as_target

from .conftest import HOSTILE, Sensors, layer_named, read


def close(found, expected):
    return np.testing.assert_allclose(found, np.asarray(expected, dtype=np.float32), rtol=1e-5, atol=1e-7)


def blocks(values, block):
    """The sums over blocks of rows and columns, one by one."""
    rows, columns = (range(0, size, block) for size in values.shape)
    return [[values[r : r + block, c : c + block].sum() for c in columns] for r in rows]


def known(layer):
    return range(layer["units"]) if layer["known"] is None else layer["known"]


def test_the_maps_of_pictures_are_those_of_the_analyzers(digits):
    lens, images, explorer = digits
    for place in range(len(images)):
        one = images[place : place + 1]
        (part,) = explorer.content["samples"][place]["parts"]
        for target, spec in enumerate((7, "three")):
            relevance = lens.relevance(one, target=spec).values[0].sum(0).double().numpy()
            gradient = lens.saliency.gradient(one, target=spec).values[0].sum(0).double().numpy()
            for method, values in enumerate((relevance, gradient)):
                shown = read(explorer, part["maps"], method, target)
                close(shown, blocks(values, part["block"]))
                assert np.isclose(shown.sum(), values.sum(), rtol=1e-4)
        assert explorer.content["samples"][place]["scores"][0] == pytest.approx(
            float(lens.model(one).detach()[0, 7]), rel=1e-6
        )


def test_layers_and_units_are_those_of_the_analyzers(digits):
    lens, images, explorer = digits
    name = "blocks.1.conv2"
    layer = layer_named(explorer, name)
    about, values = explorer.content["layers"][layer], explorer.content["samples"][1]["layers"][layer]
    relevance = lens.relevance(images[1:2], target="three", layers=name).layers[name][0][0].double()
    active = lens.activation_maps(images[1:2], name).values[0].double()
    assert about["units"] == len(active) and about["places"] == ("height", "width")
    close(read(explorer, values["relevance"], 1), relevance.sum((1, 2))[known(about)])
    close(read(explorer, values["activation"]), active.amax((1, 2))[known(about)])
    close(read(explorer, values["map"], 1), blocks(relevance.sum(0).numpy(), values["block"]))
    for place, unit in enumerate(values["kept"]):
        close(read(explorer, values["maps"], 1, place), blocks(relevance[unit].numpy(), values["unitBlock"]))
    numbers = read(explorer, values["numbers"])[:, 1]
    assert numbers[0] == pytest.approx(float(relevance.sum()), rel=1e-5)
    assert numbers[1] == pytest.approx(float(relevance.abs().sum()), rel=1e-5)
    by_unit = relevance.sum((1, 2)).abs()
    assert numbers[2] == pytest.approx(float(by_unit.max() / by_unit.sum()), rel=1e-5)
    assert numbers[3] == pytest.approx(float(active.abs().mean()), rel=1e-5)
    assert numbers[4] == pytest.approx(float((active.abs().amax((1, 2)) == 0).double().mean()))
    both = [lens.relevance(images[1:2], target=spec, layers=name).layers[name][0][0] for spec in (7, "three")]
    shares = [one.sum((1, 2)).abs() / one.sum((1, 2)).abs().sum() for one in both]
    assert numbers[5] == pytest.approx(float((shares[0] - shares[1]).abs().sum() / 2), rel=1e-5)
    strongest = max(known(about), key=lambda unit: float(by_unit[unit]))
    assert strongest in values["kept"]


def test_a_layer_that_runs_twice_has_both_calls(digits):
    names = [one["name"] for one in digits[2].content["layers"]]
    assert {"blocks.0.relu", "blocks.0.relu #1"} <= set(names)
    (row,) = (row for row in digits[2].content["tree"] if row["path"] == "blocks.0.relu")
    assert [names[place] for place in row["layers"]] == ["blocks.0.relu", "blocks.0.relu #1"]


@pytest.mark.parametrize("made", ["digits", "words", "series"])
def test_the_ledger_adds_up_to_the_score(made, request):
    lens, x, explorer = request.getfixturevalue(made)
    for place, sample in enumerate(explorer.content["samples"]):
        for target, (score, *sums) in enumerate(sample["ledger"]["sums"]):
            assert score == pytest.approx(sum(sums), rel=1e-5, abs=1e-6)
            amounts = read(explorer, sample["ledger"]["amounts"], target)
            for kind, total in zip(("input", "additive", "absorbed"), sums, strict=False):
                rows = [row for row, entry in enumerate(explorer.content["entries"]) if entry["kind"] == kind]
                assert amounts[rows].sum() == pytest.approx(total, rel=1e-4, abs=1e-5)
            if made != "words":
                spec = {"digits": (7, "three"), "series": (0, 1)}[made][target]
                own = lens.relevance(x[place : place + 1], target=spec).ledger
                assert [score, *sums[:3]] == pytest.approx(
                    [float(part[0]) for part in (own.score, own.inputs, own.additive, own.absorbed)], rel=1e-5, abs=1e-7
                )


def test_where_heads_look_is_summed_over_blocks_where_there_is_little_room(words):
    lens, text = words[0], " ".join("a" * (1 + place % 9) for place in range(1000))
    explorer = lens.explore([text], targets=[(-1, 4)], methods=[], size=12_000)
    looks, own = explorer.content["samples"][0]["heads"]["attention"], lens.attention(text)
    assert looks["queries"] == [999] and 1 < looks["block"] < 50
    assert any(f"over blocks of {looks['block']} tokens" in note for note in explorer.content["notes"])
    for row, place in enumerate(looks["parts"]):
        one = explorer.content["heads"]["parts"][place]
        weights = own[one["layer"]][0, one["head"], -1]
        expected = [part.double().sum() for part in weights.split(looks["block"])]
        close(read(explorer, looks["weights"], row, 0), expected)


def test_tokens_heads_and_attention_are_those_of_the_analyzers(words):
    lens, texts, explorer = words
    content = explorer.content
    assert explorer.views == ("Input", "Layers", "Tokens", "Heads", "Ledger")
    (note,) = content["notes"]
    assert note.startswith("Relevance of layer embed is not shown: it is 0 everywhere")
    assert not lens.relevance(texts[0], target=(-1, 5), layers="embed").layers["embed"][0].any()
    for place, text in enumerate(texts):
        sample = content["samples"][place]
        (part,) = sample["parts"]
        ids = lens.inputs(text)
        relevance = lens.relevance(text, target=(-1, 5), layers="blocks.*")
        close(read(explorer, part["maps"], 0, 1), relevance.tensor[0])
        assert part["tokens"] == [f"<b>{len(word)}</b>" for word in text.split()]
        contributions = lens.contributions(ids, parts="head", target=(-1, 5))
        assert [one["name"] for one in content["heads"]["parts"]] == list(contributions.items)
        close(read(explorer, sample["heads"]["direct"], 1), contributions.direct[:, 0])
        close(read(explorer, sample["heads"]["total"], 1), contributions.total[:, 0])
        cut = content["heads"]["withTokens"]
        assert len(cut) == 4
        close(read(explorer, sample["heads"]["tokens"], 1).sum(1), read(explorer, sample["heads"]["total"], 1)[cut])
        looks = sample["heads"]["attention"]
        attention = lens.attention(text)
        for row, number in enumerate(looks["parts"]):
            one = content["heads"]["parts"][number]
            close(read(explorer, looks["weights"], row), attention[one["layer"]][0, one["head"]])
        layer = layer_named(explorer, "blocks.0")
        close(read(explorer, sample["layers"][layer]["map"], 1), relevance.layers["blocks.0"][0][0].sum(-1))


def test_series_and_tables(series):
    lens, x, explorer = series
    sample = explorer.content["samples"][1]
    (part,) = sample["parts"]
    assert part["form"] == "series" and part["rows"] == ["east", "<i>north</i>", "up"]
    close(read(explorer, part["values"]), x[1].T)
    close(read(explorer, part["maps"], 0, 1), lens.relevance(x[1:], target=1).values[0].T)
    layer = layer_named(explorer, "rnn/output")
    active = lens.activation_maps(x[1:], "rnn").values[0]
    close(read(explorer, sample["layers"][layer]["activation"]), active.amax(1))
    table = torch.arange(6.0).reshape(2, 3)
    made = Lens(nn.Linear(3, 2), feature_names=["age", "bmi", "sex"]).explore(table, targets=0)
    (part,) = made.content["samples"][1]["parts"]
    assert part["form"] == "vector" and part["rows"] == ["age", "bmi", "sex"] and made.views == ("Input", "Ledger")
    close(read(made, part["values"]), table[1])


def test_a_video_is_shown_slice_by_slice():
    net = nn.Sequential(nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 2 * 4 * 4, 2))
    lens, x = Lens(net), torch.rand(1, 1, 4, 6, 6)
    (part,) = lens.explore(x, targets=1).content["samples"][0]["parts"]
    assert part["sizes"] == [4, 6, 6] and part["form"] == "image" and len(part["axes"]) == 3
    made = lens.explore(x, targets=1)
    values = lens.relevance(x, target=1).values[0].sum(0)
    close(read(made, made.content["samples"][0]["parts"][0]["maps"], 0, 0).sum(), values.sum())


# -- the page ----------------------------------------------------------------------------------------------------------


def test_nothing_that_a_user_names_is_code(digits):
    text = digits[2].to_html()
    assert HOSTILE not in text and "<b>seven" not in text
    assert len(re.findall(r"<script\b", text)) == 3 and len(re.findall(r"</script>", text)) == 3
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    assert not set("<>&") & set(data)
    shown = json.loads(data)
    assert shown["samples"][0]["label"] == HOSTILE and shown["results"][0]["title"] == HOSTILE
    assert HOSTILE in shown["samples"][0]["targets"][0]


def test_the_policy_names_the_script_and_the_styles_by_their_hash(digits):
    text = digits[2].to_html()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    digest = lambda code: base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()  # noqa: E731
    script = re.search(r'<script type="module">(.*?)</script>', text, re.S)[1]
    style = re.search(r"<style>(.*?)</style>", text, re.S)[1]
    assert f"script-src &#x27;sha256-{digest(script)}&#x27;;" in policy and f"sha256-{digest(style)}" in policy
    assert policy.startswith("default-src &#x27;none&#x27;; img-src data:;") and "http" not in policy
    assert "innerHTML" not in script and "fetch(" not in script and "eval(" not in script
    assert not re.search(r'(src|href)="(?!data:|#)', text)


def test_it_shows_itself_and_writes_itself(digits, tmp_path):
    explorer = digits[2]
    assert explorer.views == ("Input", "Layers", "Ledger", HOSTILE, "Layers (2)")
    assert "3 samples, 2 targets, 2 methods" in repr(explorer) and "Ledger" in repr(explorer)
    assert explorer._repr_html_().startswith("<iframe") and 'sandbox="allow-scripts"' in explorer._repr_html_()
    path = explorer.save(tmp_path / "explorer.html")
    assert path.read_text() == explorer.to_html()
    for wrong, says in ((tmp_path / "no" / "a.html", "no"), (tmp_path / "a.png", "png")):
        with pytest.raises(ResultFileError, match=says):
            explorer.save(wrong)


# -- size --------------------------------------------------------------------------------------------------------------


def test_blocks_sum_to_the_whole():
    values = np.random.default_rng(0).normal(size=(2, 9, 7))
    assert np.allclose(pooled(values, 2, 4), [blocks(one, 4) for one in values])
    assert np.allclose(pooled(values, 2, 4).sum(), values.sum()) and np.array_equal(pooled(values, 2, 1), values)
    assert np.allclose(averaged(np.ones((3, 9, 7)), 2, 4), 1)
    for sizes, most in (((224, 224), CELLS), ((500, 3), 4096), ((10_000,), 4096), ((4, 30, 30), 100), ((), 5)):
        cells = cells_of(sizes, block_size(sizes, most))
        assert np.prod(cells) <= most and (len(sizes) < 2 or max(cells) <= 64)


def test_a_small_file_keeps_the_best_units():
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Flatten(),
                        nn.Linear(64 * 900, 5))  # fmt: skip
    explorer = Lens(net).explore(torch.rand(4, 3, 32, 32), targets=[0, 1], size=250_000)
    assert len(explorer.to_html()) < 350_000
    for place, one in enumerate(explorer.content["layers"]):
        for sample in explorer.content["samples"]:
            values = sample["layers"][place]
            assert set(values["kept"]) <= set(known(one))
            strongest = int(np.abs(read(explorer, values["relevance"], 0)).argmax())
            assert list(known(one))[strongest] in values["kept"]  # of every input
            if values["map"]:
                total = read(explorer, values["numbers"])[0]
                close(read(explorer, values["map"]).sum((1, 2)), total)


def test_layers_are_chosen_and_what_is_left_out_is_said():
    lens, x = Lens(Sensors()), torch.randn(1, 9, 3)
    assert [one["path"] for one in lens.explore(x, targets=0, layers="head").content["layers"]] == ["head"]
    hidden = lens.explore(x, targets=0, layers=["rnn", "head"])
    assert {one["name"] for one in hidden.content["layers"]} >= {"rnn/output", "head"}
    with pytest.raises(LayerNotFound):
        lens.explore(x, targets=0, layers="nothing")


@pytest.mark.parametrize("options, error, says", [
    ({"targets": []}, TargetError, "explains nothing"),
    ({"targets": 9}, TargetError, "9"),
    ({"methods": "gradient"}, OptionError, "list of names"),
    ({"methods": ["gradinet"]}, OptionError, "Closest: gradient"),
    ({"units": 0}, OptionError, "units"),
    ({"size": 0}, OptionError, "size"),
    ({"results": [3]}, OptionError, "does not show itself"),
    ({"results": "text"}, OptionError, "list of results"),
    ({"labels": ["a", "b"]}, OptionError, "label"),
])  # fmt: skip
def test_what_cannot_be_used_is_refused(options, error, says):
    with pytest.raises(error, match=says):
        Lens(Sensors()).explore(torch.randn(1, 9, 3), **options)
    with pytest.raises(InputError):
        Lens(Sensors()).explore("a text")


def test_the_model_stays_as_it_was():
    model, x = Sensors().train(), torch.randn(1, 9, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = x.clone()
    Lens(model).explore(x, targets=as_target(0))
    assert model.training and torch.equal(x, kept) and all(part.grad is None for part in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_is_left_out_is_named():
    class Sorted(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x).abs().sort(1).values

    class Grows(nn.Module):
        def __init__(self):
            super().__init__()
            self.pick, self.out = nn.Identity(), nn.Linear(1, 2)

        def forward(self, x):
            return self.out(self.pick(x[:, : 2 + int(x[0, 0] > 0)] * 2).sum(1, keepdim=True))

    unknown = Lens(nn.Sequential(nn.Linear(6, 6), Sorted(), nn.Linear(6, 2))).explore(torch.rand(2, 6), targets=[0])
    assert any("Layer 1 is not shown: it is not known what the axes" in note for note in unknown.content["notes"])
    grows = Lens(Grows()).explore(torch.tensor([[1.0, 2, 3], [-1, 2, 3]]), targets=[0])
    assert any(note.startswith("Layer pick is shown only of the samples") for note in grows.content["notes"])
