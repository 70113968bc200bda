"""Explorers of odd models and inputs: each opens, and what is not shown is named."""

import numpy as np
import pytest
import torch
from torch import nn

from layerlens import Lens, input_of

from .conftest import layer_named, read

NAMES = ["</script><b>", "\"quoted\" 'names' & `ticks`", "猫 🐈", "שלום עולם", "\u202egnp.tac", "a\u2028b", ""]


class Odd(nn.Module):
    """Layers that return what is seldom returned."""

    class Mean(nn.Module):
        def forward(self, x):
            return x.mean()

    class Spectrum(nn.Module):
        def forward(self, x):
            return x + 1j * x.flip(1)

    class Mask(nn.Module):
        def forward(self, x):
            return x > 0

    class Log(nn.Module):
        def forward(self, x):
            return (x - x).log()

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(4, 6), nn.Linear(6, 2)
        self.mean, self.spectrum, self.mask, self.log = self.Mean(), self.Spectrum(), self.Mask(), self.Log()

    def forward(self, x):
        x = self.first(x)
        self.log(x)
        return self.out(self.spectrum(x).real * self.mask(x)) + self.mean(x)


class Loop(nn.Module):
    """A layer that runs three times."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        for _ in range(3):
            x = self.cell(x).tanh()
        return self.out(x)


class Two(nn.Module):
    """Two inputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(3, 2), nn.Conv1d(2, 2, 3)

    def forward(self, table, series):
        return self.left(table) + self.right(series).mean(-1)


def encoder():
    """A transformer of torch, whose attention is nn.MultiheadAttention."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Embedding(9, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 9)).eval()


def named(explorer, *parts):
    """Whether one note holds all these texts."""
    notes = [note for note in explorer.content["notes"] if all(text in note for text in parts)]
    assert len(notes) == 1, (parts, explorer.content["notes"])


def test_odd_layers_are_shown_or_named():
    explorer = Lens(Odd()).explore(torch.rand(2, 4), targets=[0], methods=[])
    shown = {one["path"] for one in explorer.content["layers"]}
    everything = {"first", "mean", "spectrum", "mask", "log", "out"}
    for path in everything - shown:
        named(explorer, f"Layer {path} is not shown: ")
    assert {"first", "out"} <= shown
    named(explorer, "Layer log is not shown", "NaN or infinity")
    named(explorer, "Layer mean is not shown", "batch")
    for place, one in enumerate(explorer.content["layers"]):
        for sample in explorer.content["samples"]:
            if sample["layers"][place]["relevance"] is None:
                named(explorer, f"elevance of layer {one['name']} is not shown")


def test_every_call_of_a_layer_that_runs_three_times():
    lens, x = Lens(Loop()), torch.rand(2, 4)
    explorer = lens.explore(x, targets=[0, 1], methods=[])
    for call, name in enumerate(("cell", "cell #1", "cell #2")):
        values = explorer.content["samples"][1]["layers"][layer_named(explorer, name)]
        own = lens.relevance(x[1:], target=1, layers="cell").layers["cell"][call]
        np.testing.assert_allclose(read(explorer, values["relevance"], 1), own[0], rtol=1e-5, atol=1e-7)
    assert not explorer.content["notes"]


def test_several_inputs_each_have_a_map():
    x = {"table": torch.rand(2, 3), "series": torch.rand(2, 2, 9)}
    explorer = Lens(Two()).explore(x, targets=[0])
    parts = explorer.content["samples"][0]["parts"]
    assert {one["name"]: one["form"] for one in parts} == {"table": "vector", "series": "series"}
    total = sum(read(explorer, one["maps"], 0, 0).sum() for one in parts)
    assert total == pytest.approx(explorer.content["samples"][0]["ledger"]["sums"][0][1], rel=1e-5)


def test_a_hundred_thousand_units_fit():
    lens = Lens(nn.Sequential(nn.Linear(3, 100_000), nn.ReLU(), nn.Linear(100_000, 2)))
    x = torch.rand(2, 3)
    explorer = lens.explore(x, targets=[0], methods=[], size=300_000)
    assert len(explorer.to_html()) < 400_000
    layer = layer_named(explorer, "1")
    wide, values = explorer.content["layers"][layer], explorer.content["samples"][0]["layers"][layer]
    own = lens.relevance(x[:1], target=0, layers="1").layers["1"][0][0]
    assert wide["units"] == len(own) == 100_000 and 10 < len(wide["known"]) <= 2048
    np.testing.assert_allclose(read(explorer, values["relevance"], 0), own[wide["known"]], rtol=1e-5, atol=1e-9)
    assert int(own.abs().argmax()) in wide["known"]


def test_heads_of_multihead_attention_have_relevance_by_token():
    lens, x = Lens(encoder()), torch.tensor([[1, 2, 3], [4, 5, 6]])
    explorer = lens.explore(x, targets=[(-1, 2), (-1, 3)], methods=[])
    named(explorer, "Relevance of layer 0 is not shown")
    assert len(explorer.content["notes"]) == 1
    parts, with_tokens = (explorer.content["heads"][name] for name in ("parts", "withTokens"))
    assert [parts[place]["head"] for place in with_tokens] == [0, 1, 0, 1]
    for number, sample in enumerate(explorer.content["samples"]):
        heads = sample["heads"]
        assert heads["attention"] is not None
        for target in (0, 1):
            own = lens.relevance(x[[number]], target=(-1, 2 + target), layers=input_of("**.out_proj")).layers
            values = torch.cat([one[0][:, 0] for one in own.values()], dim=1)  # (token, unit of both layers)
            expected = values.unflatten(1, (4, 4)).sum(2).T
            found = read(explorer, heads["tokens"], target)
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
            total = read(explorer, heads["total"], target)[with_tokens]
            np.testing.assert_allclose(found.sum(1), total, rtol=1e-5, atol=1e-7)


class Deep(nn.Module):
    """Runs its layer as often as the input says."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        for _ in range(int(x[0, 0])):
            x = self.cell(x)
        return self.out(x)


@pytest.mark.parametrize("often", [(1, 3, 2), (3, 1, 2)])
def test_inputs_of_one_shape_that_take_different_routes(often):
    x = torch.cat([torch.tensor(often)[:, None], torch.rand(3, 3)], dim=1)
    lens = Lens(Deep())
    explorer = lens.explore(x, targets=[0], methods=[])
    for sample, count in enumerate(often):
        own = lens.relevance(x[[sample]], target=0, layers="cell").layers["cell"]
        for call in range(3):
            values = explorer.content["samples"][sample]["layers"][
                layer_named(explorer, f"cell #{call}" if call else "cell")
            ]
            assert (values is not None) == (call < count == len(own))
            if values is not None:
                np.testing.assert_allclose(read(explorer, values["relevance"], 0), own[call][0], rtol=1e-5, atol=1e-7)
    assert not explorer.content["notes"]


def test_a_layer_that_the_first_input_does_not_take_is_named():
    class Branched(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = (nn.Sequential(nn.Linear(4, 3), nn.ReLU()) for _ in range(2))
            self.out = nn.Linear(3, 2)

        def forward(self, x):
            return self.out(self.left(x) if x[0, 0] > 0 else self.right(x))

    x = torch.tensor([[1.0, 2, 3, 4], [-1, 2, 3, 4]])
    explorer = Lens(Branched()).explore(x, targets=[0], methods=[])
    named(explorer, "sample 1: right did not run for the first input")
    assert not Lens(Branched()).explore(x[[0, 0]], targets=[0], methods=[]).content["notes"]


def test_a_note_of_some_samples_names_them():
    class Log(nn.Module):
        def forward(self, x):
            return x.log()

    class Beside(nn.Module):
        """Computes a layer that its answer does not use."""

        def __init__(self):
            super().__init__()
            self.log, self.out = Log(), nn.Linear(4, 2)

        def forward(self, x):
            self.log(x)
            return self.out(x)

    explorer = Lens(Beside()).explore(torch.tensor([[1.0, 2, 3, 4], [0, 2, 3, 4]]), targets=[0], methods=[])
    named(explorer, "sample 1: layer log is not shown", "NaN or infinity")


def test_layers_for_which_there_is_no_room_are_counted():
    blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(6)]
    net = nn.Sequential(nn.Conv2d(1, 16, 3), *blocks, nn.Flatten(), nn.Linear(16 * 30 * 30, 2))
    explorer = Lens(net).explore(torch.rand(3, 1, 32, 32), targets=[0, 1], methods=[], size=60_000)
    hidden = [row for row in explorer.content["tree"] if row["path"] and row["calls"] and not row["layers"]]
    assert hidden
    named(explorer, f"{len(hidden)} layers inside those that are shown do not fit", "60,000")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_odd_names_are_read_as_they_are(browser, tmp_path):
    lens = Lens(nn.Linear(2, 7), class_names=NAMES, feature_names=[NAMES[0], NAMES[3]])
    explorer = lens.explore(torch.rand(7, 2), targets=[0, 3], labels=NAMES, title=NAMES[1])
    page, troubles = browser.new_page(), []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("dialog", lambda dialog: troubles.append(dialog.message) or dialog.dismiss())
    page.goto(explorer.save(tmp_path / "names.html").as_uri())
    assert page.locator("#input-a option").evaluate_all("all => all.map(one => one.textContent)") == NAMES
    assert page.locator("#target-a option").evaluate_all("all => all.map(one => one.textContent)") == [
        NAMES[0],
        NAMES[3],
    ]
    assert page.title() == NAMES[1] and troubles == []
    page.close()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_of_multihead_attention_opens_everywhere(browser, tmp_path):
    explorer = Lens(encoder()).explore(torch.tensor([[1, 2, 3], [4, 5, 6]]), targets=[(-1, 2)], methods=[])
    page, troubles = browser.new_page(), []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.goto(explorer.save(tmp_path / "encoder.html").as_uri())
    for name in (*explorer.views, "About"):
        page.get_by_role("tab", name=name, exact=True).click()
    page.get_by_role("tab", name="Heads", exact=True).click()
    page.locator(".cells button").first.click()
    shown = page.locator("#panel").inner_text()
    assert "Where it looks" in shown and "place by place" in shown and troubles == []
    page.close()


@pytest.mark.slow
def test_thirty_two_pictures_stay_below_five_megabytes():
    net = nn.Sequential(nn.Conv2d(3, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(32, 4))  # fmt: skip
    explorer = Lens(net).explore(torch.rand(32, 3, 224, 224), targets=[0, 1])
    assert len(explorer.to_html().encode()) < 5_000_000
