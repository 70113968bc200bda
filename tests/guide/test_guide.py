"""The guide: each of its calls runs as printed, takes about the passes that it says, and what is left out is named."""

import pathlib
import re

import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens
from layerlens.analyzers.saliency.fitting import fit_of
from layerlens.binding import bind
from layerlens.guide.guide import NEEDS, NEEDS_OF_MODEL
from layerlens.guide.questions import QUESTIONS

UNASKED = {"select", "probe", "guide", "basis", "insertion", "deletion", "road", "saliency_by_target"}
"""Methods of a lens that answer no question about a model by themselves, or that of `evaluate` for a finished map, or
that of another for several targets."""


class Series(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(3, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.blocks = nn.ModuleList(
            [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0) for _ in range(3)]
        )

    def forward(self, ids):
        stream, mask = self.embed(ids), nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        for block in self.blocks:
            stream = block(stream, src_mask=mask, is_causal=True)
        return self.head(stream)


def picture_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip


def generator():
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 1, 3, padding=1))


CASES = {
    "picture": (
        picture_net,
        lambda: torch.rand(1, 1, 12, 12),
        {"feature_visualization", "grad_cam", "receptive_field"},
    ),
    "table": (lambda: nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2)), lambda: torch.rand(4, 5), {"sobol"}),
    "series": (Series, lambda: torch.rand(2, 7, 3), {"recurrent_states", "grad_cam"}),
    "text": (Text, lambda: torch.randint(0, 11, (1, 6)), {"attention", "logit_lens"}),
    "generator": (generator, lambda: torch.randn(1, 4), {"latent_traversal"}),
}
"""Name -> model, input, and calls that are for its kind."""
OF_A_KIND = set().union(*(own for _, _, own in CASES.values()))


def case(name):
    torch.manual_seed(0)
    build, draw, own = CASES[name]
    return build().eval(), draw(), own


def names(calls):
    return {re.search(r"lens\.(\w+)", call)[1] for call in calls}


def test_every_method_of_a_lens_answers_a_question():
    methods = {name for name, one in vars(Lens).items() if isinstance(one, bind) or name == "compare_routes"}
    assert names(one.call for one in QUESTIONS) == methods - UNASKED
    assert {need for one in QUESTIONS for need in one.needs} <= {*NEEDS, *NEEDS_OF_MODEL}
    assert len({one.ask for one in QUESTIONS}) == len({one.call for one in QUESTIONS}) == len(QUESTIONS)
    assert all(one.ask.endswith("?") for one in QUESTIONS)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_it_asks_what_fits_and_says_what_it_left_out(name):
    model, x, own = case(name)
    found = Lens(model).guide(x)
    kept = names(found.calls)
    assert own <= kept
    left = "\n".join(found.notes)
    for one in names(one.call for one in QUESTIONS) - kept:
        assert f"{one}" in left
    if name in ("table", "generator"):
        assert not kept & (OF_A_KIND - own - {"logit_lens"})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_each_call_runs_and_takes_about_the_passes_that_it_says(name, tmp_path, monkeypatch):
    """Rows of the input, counted by a hook of torch; a factor of three is what a decision needs."""
    monkeypatch.chdir(tmp_path)
    model, x, _ = case(name)
    lens = Lens(model)
    found = lens.guide(x)
    fit = fit_of(model, x, target={"text": (-1, 5), "generator": score}.get(name))
    counts = {"block": 3, "layer": len(list(model.modules()))}
    rows = []
    model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    for row in found:
        if row.needs:
            assert row.seconds is None
            continue
        rows.clear()
        exec(row.call, {"lens": lens, "x": x, "layerlens": layerlens, "score": score})
        passes, expected = fit.passes(row.cost, **counts), sum(rows) / len(x)
        assert passes is not None and row.seconds > 0, row
        wanted = sum(passes) / (len(x) if row.cost.endswith("in all") else 1)
        if "or more" not in row.cost:
            assert wanted / 3 - 12 <= expected <= 3 * wanted + 12, (row.call, row.cost, expected)


def score(output):
    return output.flatten(1).mean(dim=1)


def test_without_an_input_it_lists_all_and_what_they_need():
    lens = Lens(nn.Linear(2, 2))
    found = lens.guide()
    assert len(found) == len(QUESTIONS) and not found.timed
    text, page = repr(found), found._repr_html_()
    assert "needs" in text.splitlines()[0] and "recurrent layers" in page and "{" not in text.replace("{layer:", "")
    assert page.count("<tr>") == len(QUESTIONS) + 1


def test_class_names_stand_in_the_calls_and_the_model_stays_as_it_was():
    model, x, _ = case("picture")
    model.train()
    before, state = torch.get_rng_state(), {name: one.clone() for name, one in model.state_dict().items()}
    found = Lens(model, class_names=["cat", "dog", "cow"]).guide(x)
    answer = ["cat", "dog", "cow"][int(model.eval()(x).argmax())]
    assert f"lens.relevance(x, target='{answer}')" in found.calls
    assert f"lens.feature_visualization('{answer}', x.shape[1:])" in found.calls
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())


def test_the_page_of_questions_has_the_same_calls():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "questions.md").read_text()
    listed = {
        name for pair in re.findall(r"lens\.(\w+)|`(\w+)`", page) for name in pair if name and hasattr(Lens, name)
    }
    assert listed - UNASKED == names(one.call for one in QUESTIONS)


def test_a_target_that_is_given_is_that_of_the_calls():
    model, x, _ = case("picture")
    found = Lens(model).guide(x, target=2)
    assert "lens.grad_cam(x, target=2)" in found.calls


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_output_without_classes_gets_a_target_and_says_so():
    model, x, _ = case("text")
    found = Lens(model).guide(x)
    answer = int(model(x)[0, -1].argmax())
    assert f"lens.relevance(x, target=(-1, {answer}))" in found.calls
    assert any("without a target there is no score" in note for note in found.notes)


def test_a_model_that_reads_with_ctc_is_asked_for_its_symbols():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(3, 3)
            nn.init.eye_(self.f.weight)

        def forward(self, x):
            return self.f(x)

    steps = nn.functional.one_hot(torch.tensor([[0, 1, 1, 0, 2, 0]]), 3).float() * 5
    (call,) = [call for call in Lens(Reader()).guide(steps).calls if "symbol" in call]
    assert exec(call, {"lens": Lens(Reader()), "x": steps, "layerlens": layerlens}) is None
    assert not [call for call in Lens(Reader()).guide(steps[..., [1, 0, 2]][:, 1:3]).calls if "symbol" in call]
