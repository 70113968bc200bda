"""The benchmark by kind of input: its exact values, its measures, and that the page says what was measured."""

import itertools
import math
import pathlib
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import layerlens
from benchmarks import kinds
from benchmarks.kinds_methods import SERIES, TABLES, options_for
from benchmarks.kinds_report import STORED, Stored, chosen, interval, report, summary, verdict
from benchmarks.kinds_series import planted_pairs, planted_where
from benchmarks.kinds_task import BACKGROUND, STEPS, Curves, Subject, Task, by_segment, exact_shapley, mass, ordered
from layerlens.analyzers.common.registry import METHODS
from layerlens.faithfulness import deletion, insertion

ROOT = pathlib.Path(__file__).parents[2]


def by_orders(score, x, rows, labels):
    """Shapley values as the mean over all orders of the players (Shapley 1953)."""
    count = int(labels.max()) + 1
    values = torch.zeros(count, dtype=torch.float64)
    for order in itertools.permutations(range(count)):
        mixed = rows.clone()
        before = score(mixed).mean()
        for player in order:
            mixed = torch.where(labels == player, x, mixed)
            after = score(mixed).mean()
            values[player] += (after - before) / math.factorial(count)
            before = after
    return values


def test_exact_values_are_the_mean_over_all_orders():
    draw = torch.Generator().manual_seed(0)
    x, rows = (torch.randn(n, 2, 7, generator=draw, dtype=torch.float64) for n in (3, 4))
    labels = torch.tensor([0, 0, 1, 2, 2, 3, 3]).reshape(1, 1, 7)

    def score(one):
        return one.prod(dim=2).sum(dim=1) + one[:, 0].amax(dim=1) * one[:, 1, 2]

    found = exact_shapley(lambda one, number: (number + 1) * score(one), x, rows, labels, at_once=10)
    for number in range(3):
        expected = (number + 1) * by_orders(score, x[number], rows, labels)
        torch.testing.assert_close(found[number], expected)


@pytest.mark.filterwarnings("ignore:no layer shows which axis")
@pytest.mark.parametrize(("shape", "unit"), [((6, 3, 11), 1), ((6, 11, 3), 2), ((6, 11), None), ((6, 2, 5, 4), 1)])
def test_areas_are_those_of_insertion_and_deletion(shape, unit):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape[1:]), 3)).eval()
    x, values, fill = (torch.randn(shape) for _ in range(3))
    target = [0, 1, 2, 0, 1, 2]
    found = SimpleNamespace(tensor=values)
    area = Curves(model, x, target, (torch.zeros_like(x), fill), unit)(found)
    places = found.tensor.double() if unit is None else found.tensor.double().sum(dim=unit)
    features = None if unit is None else torch.arange(places[0].numel()).reshape(places.shape[1:]).unsqueeze(unit - 1)
    expected = torch.zeros(6, dtype=torch.float64)
    for one in (torch.zeros_like(x), fill):
        for curve, sign in ((insertion, 1), (deletion, -1)):
            options = {"fill": one, "steps": STEPS, "measure": "probability"}
            if features is not None:
                options["features"] = features
            expected += sign * curve(model, x, found.tensor, target=target, **options).area.double() / 2
    torch.testing.assert_close(area, expected, rtol=1e-4, atol=1e-5)


def test_measures_of_a_map_by_hand():
    mask = torch.tensor([[True, True, False, False]])
    found = SimpleNamespace(tensor=torch.tensor([[[3.0, -1.0, 1.0, 0.0], [0.0, 0.0, 0.0, -1.0]]]))
    assert mass(mask, 1)(found).tolist() == [0.75]
    assert ordered(mask, 1)(found).tolist() == [0.625]  # of four pairs 3 > 1, 3 > -1; -1 < 1, -1 = -1
    assert by_segment(torch.tensor([0, 0, 1, 1]), 1)(found).tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("make", [planted_where, planted_pairs])
def test_planted_places_hold_the_pattern_and_decide_the_class(make):
    x, label, mask = make(400, 1, 96, 2)
    again = make(400, 1, 96, 2)
    assert torch.equal(x, again[0]) and len(set(label.tolist())) > 1
    inside = x.abs().amax(dim=2)[mask].square().mean()
    assert inside > 1.3 * x.abs().amax(dim=2)[~mask].square().mean()
    if make is planted_where:
        assert all(int(label[row]) == int(mask[row].nonzero().min()) // 32 for row in range(400))
    if make is planted_pairs:
        signs = [x[row, :, :2][mask[row]].sum(dim=0).sign() for row in range(400)]
        agree = torch.stack([one[0] == one[1] for one in signs]).long()
        assert (agree == label).float().mean() > 0.8


def test_every_method_is_a_row():
    for rows in (SERIES, TABLES):
        assert set(METHODS) == {method for method, _ in rows.values()}
    assert options_for({"baselines": BACKGROUND, "samples": 3}, None) is None
    assert options_for({"samples": 3}, None) == {"samples": 3}


# -- storing -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch, tmp_path):
    """One quick task, stored elsewhere."""

    def build():
        torch.manual_seed(0)
        model, x = nn.Linear(4, 1), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
        exact = x.double() * model.weight.detach().double()

        def near(found):
            return -(found.tensor.double() - exact).abs().sum(dim=1)

        return Subject(model, x, None, {"zero": near}, 1.0, torch.tensor([0, 0, 1, 1, 2]))

    task = Task("a", "tables", build, {"auto": ("auto", {}), "rise": ("rise", {"samples": 4}), "cam": ("cam", {})})
    monkeypatch.setattr(kinds, "tasks", lambda: [task])
    monkeypatch.setattr(kinds, "STORED", tmp_path / "kinds.npz")
    return task


def test_only_what_is_missing_is_measured(small, monkeypatch):
    kinds.measure()
    first = Stored.load(kinds.STORED)
    assert first.rows["a", "auto"]["took"] == "kernel_shap" and first.tasks["a"]["groups"] == [0, 0, 1, 1, 2]
    assert np.abs(first.rows["a", "auto"]["zero"]).max() < 1e-3 and "image" in first.rows["a", "cam"]["why"]
    assert first.rows["a", "auto"]["passes"] == pytest.approx(17, abs=3)  # 2^4 coalitions, and a few to look
    asked = []
    real = kinds._row
    monkeypatch.setattr(kinds, "_row", lambda task, subject, name: asked.append(name) or real(task, subject, name))
    kinds.measure()
    assert asked == []
    kinds.again("rise")
    kinds.measure()
    assert asked == ["rise"]
    assert report(Stored.load(kinds.STORED)) == report(first).replace(*_seconds(first, Stored.load(kinds.STORED)))


def _seconds(first, second):
    """The seconds of the row that was measured again."""
    return tuple(f"{found.rows['a', 'rise']['seconds']:.4f}" for found in (first, second))


def test_a_network_that_is_not_the_stored_one_is_refused(small, monkeypatch):
    kinds.measure()
    found = Stored.load(kinds.STORED)
    found.scores["a"] += 1
    with kinds.STORED.open("wb") as file:
        found.save(file)
    kinds.again("rise")
    with pytest.raises(ValueError, match=r"not the one that was measured.*again 'a'"):
        kinds.measure()
    kinds.again("a")
    kinds.measure()
    assert Stored.load(kinds.STORED).rows["a", "rise"]["passes"] > 0


# -- intervals and choices ---------------------------------------------------------------------------------------------


def test_an_interval_draws_tasks_and_groups():
    random = np.random.default_rng(1)
    alike = np.repeat(random.normal(size=6), 10)  # ten copies of six numbers
    low, high = interval([alike], [list(range(60))])[1:]
    wide_low, wide_high = interval([alike], [np.repeat(np.arange(6), 10).tolist()])[1:]
    assert wide_high - wide_low > 2 * (high - low)
    lines = [np.full(60, value) for value in (0.0, 1.0, 2.0, 3.0)]  # tasks differ, their samples do not
    mean, low, high = interval(lines, [list(range(60))] * 4)
    assert mean == 1.5 and low < 0.8 and high > 2.2
    assert [verdict(span) for span in ((1, 0.1, 2), (-1, -2, -0.1), (0, -1, 1))] == ["better", "worse", "tied"]


def made_up(gain, tasks=9):
    """Numbers in which "other" is better than auto by a gain for each task."""
    found, random = Stored(), np.random.default_rng(0)
    for task in range(tasks):
        name = f"t{task}"
        found.tasks[name] = {"kind": "series", "real": False, "quality": 1.0, "groups": list(range(60))}
        found.scores[name] = np.zeros(60)
        base = random.normal(size=60)
        own = {"auto": base, "other": base + gain(task) + 0.1 * random.normal(size=60), "costly": base + 5}
        for method, line in own.items():
            passes = {"auto": 10, "other": 12, "costly": 13}[method]
            found.rows[name, method] = {"mass": line, "passes": passes, "seconds": 0.0, "took": method, "given": ""}
    return found


def test_a_choice_is_made_on_a_third_and_judged_on_the_others():
    choice = chosen(made_up(lambda task: 0.2), "series")
    assert (choice.method, choice.verdict) == ("other", "better") and choice.change[0] == pytest.approx(0.2, abs=0.02)
    choice = chosen(made_up(lambda task: 0.2 if task % 3 == 0 else -0.2), "series")
    assert (choice.method, choice.verdict) == ("other", "worse")
    assert chosen(made_up(lambda task: 0.2, tasks=3), "series") is None


# -- the page ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored():
    return Stored.load(STORED)


@pytest.mark.slow
def test_the_report_is_that_of_the_stored_numbers(stored):
    assert (ROOT / "benchmarks" / "kinds.md").read_text() == report(stored) + "\n"
    assert STORED.stat().st_size < 1_500_000
    assert all(len(task["groups"]) >= 50 for task in stored.tasks.values())


def test_auto_still_takes_what_was_measured(stored):
    (task,) = (task for task in kinds.tasks() if "their formula" in task.name)  # its model is not trained
    subject = task.build()
    found = layerlens.saliency(subject.model, subject.x)
    assert found.method == stored.rows[task.name, "auto"]["took"] == "shapley_sampling"
    area = subject.measures["curves"](found).numpy()
    np.testing.assert_allclose(area, stored.rows[task.name, "auto"]["curves"], atol=2e-3)


@pytest.mark.slow
def test_the_page_says_what_was_measured(stored):
    page = (ROOT / "docs" / "saliency.md").read_text()
    section = page[page.index("### Series and tables") :].partition("`lens.saliency.methods(for_input=x)`")[0]
    table = summary(stored)
    assert table in section and f"on {len(stored.tasks)} trained models" in " ".join(section.split())
    told = SPAN.findall(" ".join(section.replace(table, "").split()))
    assert told and all(span in report(stored) for span in told)
    assert set(stored.tasks) <= {task.name for task in kinds.tasks()}


SPAN = re.compile(r"[+-]\d\.\d{3} \[[+-]\d\.\d{3}, [+-]\d\.\d{3}\]")
