"""The other metrics, the leaderboard, and the tasks, each against its definition."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens
from layerlens.analyzers.common.leaves.leaves import Leaf
from layerlens.analyzers.common.statistics import spearman
from layerlens.analyzers.faithfulness.controls import center, random, sobel
from layerlens.analyzers.saliency import gradient, input_x_gradient
from layerlens.errors import InputError, OptionError
from layerlens.faithfulness import (
    METRICS,
    additive_model,
    cascading_randomization,
    complexity,
    evaluate,
    infidelity,
    known_shapley,
    local_lipschitz_estimate,
    masked_objects,
    max_sensitivity,
    planted_watermark,
    pointing_game,
    random_logit,
    relevance_mass,
    relevance_rank,
    sparsity,
)
from layerlens.results import Leaderboard
from tests.cases import normal
from tests.snapshot import Snapshot


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)).double()


PICTURES = normal(4, 1, 8, 8).double()


def test_localization_by_hand():
    values = torch.tensor([[[4.0, 1.0], [3.0, -9.0]], [[0.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor([[[True, False], [False, True]], [[False, True], [True, True]]])
    assert pointing_game(values, masks).tolist() == [1, 0]
    assert relevance_mass(values, masks).tolist() == [0.5, 0]
    assert relevance_rank(values, masks).tolist() == [0.5, pytest.approx(2 / 3)]
    assert relevance_mass(values.unsqueeze(1).expand(2, 3, 2, 2), masks).tolist() == [0.5, 0]
    with pytest.raises(InputError, match="empty"):
        pointing_game(values, torch.zeros(2, 2, 2, dtype=torch.bool))
    with pytest.raises(InputError, match="do not fit"):
        pointing_game(values, masks[:1])


def test_sparsity_is_the_gini_index():
    values = normal(3, 2, 5).abs().double()
    for row in range(3):
        own = values[row].flatten()
        pairs = sum(abs(a - b) for a, b in itertools.product(own.tolist(), repeat=2))
        assert float(sparsity(-values)[row]) == pytest.approx(pairs / (2 * 10 * float(own.sum())))
    assert sparsity(torch.zeros(1, 4)).tolist() == [0]


def test_rank_correlation_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    first, second = normal(3, 20).round(decimals=1), normal(3, 20, seed=1).round(decimals=1)
    for row, value in enumerate(spearman(first, second).tolist()):
        assert value == pytest.approx(stats.spearmanr(first[row], second[row]).statistic)
    assert spearman(torch.ones(1, 4), normal(1, 4)).tolist() == [0]


def test_infidelity_is_zero_for_the_gradient_of_a_linear_model_only():
    model, x = nn.Linear(6, 1).double(), normal(3, 6).double()
    right = model.weight.detach().expand(3, 6)
    assert float(infidelity(model, x, right, target=0, normalize=False).max()) < 1e-24
    wrong = infidelity(model, x, right * 2, target=0, normalize=False, samples=4000, batch_size=500)
    variance = (0.1 * float(x.std())) ** 2 * float(model.weight.detach().square().sum())  # E[(I.w)^2]
    assert wrong.tolist() == pytest.approx([variance] * 3, rel=0.1)
    with pytest.raises(InputError, match="one number per value"):
        infidelity(model, x, torch.rand(3, 2), target=0)


def test_sensitivity_of_a_gradient_that_grows_with_the_input():
    class Square(nn.Module):
        def forward(self, x):
            return x.square().sum(dim=1, keepdim=True)

    x = torch.tensor([[1.0, 0.0], [3.0, 4.0]]).double()
    found = max_sensitivity(Square(), x, gradient, target=0, radius=0.01, samples=50)
    bound = 0.01 * 4 * math.sqrt(2)  # the range of x is 4; the gradient is 2x
    assert 0.5 * bound < float(found[0]) <= bound and 0.1 * bound < float(found[1]) <= bound / 5
    assert max_sensitivity(nn.Linear(2, 3).double(), x, gradient).tolist() == [0, 0]


def test_steadiness_of_methods_that_copy_the_sample_with_a_target_for_each():
    model, target = net(), torch.tensor([1, 0, 2, 1])
    explain = partial(layerlens.saliency, method="smooth_grad", samples=3)
    together = max_sensitivity(model, PICTURES, explain, target=target, radius=1e-9, samples=1)
    assert together.shape == (4,) and float(together.max()) < 1e-5
    seen = []

    def spying(model, x, target, forward):
        found = explain(model, x, target=target, forward=forward)
        seen.append(float(found.score))
        return found

    max_sensitivity(model, PICTURES, spying, target=target, radius=1e-9, samples=1)
    right = model(PICTURES).gather(1, target.unsqueeze(1)).flatten()
    torch.testing.assert_close(torch.tensor(seen[:4], dtype=right.dtype), right.detach(), rtol=1e-4, atol=1e-4)


def test_randomization_gives_every_bit_back_and_sees_who_looks_at_the_model():
    model = net()
    before = Snapshot(model, PICTURES)
    looked = cascading_randomization(model, PICTURES, "gradient", target=1)
    before.check()
    assert looked.layers == ("3", "0") and looked.values.shape == (2, 2)
    assert abs(float(looked.values[-1, 0])) < 0.6

    def edges(model, x, *, target, forward):
        found = layerlens.saliency(model, x, target=target, method="gradient")
        return type(found)(**{**vars(found), "values": x.first if hasattr(x, "first") else PICTURES})

    assert cascading_randomization(model, PICTURES, edges, target=1).values.tolist() == [[1, 1], [1, 1]]
    again = cascading_randomization(model, PICTURES, partial(edges), target=1)
    assert again.method == "cascading randomization of edges" and again.values.tolist() == [[1, 1], [1, 1]]

    calls = []

    def failing(model, x, *, target, forward):
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return layerlens.saliency(model, x, target=target, method="gradient")

    with pytest.raises(KeyboardInterrupt):
        cascading_randomization(model, PICTURES, failing, target=1)
    before.check()
    with pytest.raises(InputError, match="parameters"):
        cascading_randomization(nn.Sequential(nn.Tanh(), nn.Flatten()), normal(2, 3), target=0)


def test_controls_know_nothing_of_the_model():
    leaf = Leaf(torch.zeros(2, 3, 9, 9).index_fill(3, torch.tensor([5, 6, 7, 8]), 1.0))
    edges = sobel(leaf, 0)
    assert edges.shape == (2, 9, 9) and bool((edges[:, :, 4:6] == 4).all()) and float(edges[:, :, :4].sum()) == 0
    assert int(center(leaf, 0)[0].argmax()) == 40
    assert torch.equal(random(leaf, 1), random(leaf, 1)) and not torch.equal(random(leaf, 1), random(leaf, 2))


def test_a_leaderboard_of_maps_methods_and_functions():
    model = net()
    given = layerlens.saliency(model, PICTURES, target=1, method="input_x_gradient")
    board = evaluate(
        model, PICTURES, {"ig": "integrated_gradients", "given": given, "function": gradient}, target=1,
        fills=("zero", "blur"), steps=8,
    )  # fmt: skip
    assert set(board.methods) == {"ig", "given", "function", "random", "sobel", "center"}
    assert board.controls == ("random", "sobel", "center") and board.best() == "ig"
    assert board.metrics[0] == "insertion - deletion" and len(board.metrics) == 5
    put, taken = (
        torch.stack([board.of("ig", f"{part} ({fill})") for fill in ("zero", "blur")]).mean(dim=0)
        for part in ("insertion", "deletion")
    )
    torch.testing.assert_close(board.of("ig"), put - taken)
    one = layerlens.faithfulness.insertion(model, PICTURES, given, target=1, steps=8)
    torch.testing.assert_close(board.of("given", "insertion (zero)"), one.area)
    means = [board.mean(name) for name in board.methods]
    assert means == sorted(means, reverse=True)
    change, low, high = board.difference("random", "ig")
    assert low <= change <= high < 0 and board.difference("ig", "ig") == (0, 0, 0)
    assert "random (control)" in repr(board) and "less ig" in repr(board)


def test_every_metric_by_name():
    model, masks = net(), torch.ones(4, 8, 8, dtype=torch.bool)
    methods = {"gradient": "gradient"}
    board = evaluate(model, PICTURES, methods, target=1, metrics=tuple(METRICS), masks=masks, controls=False, steps=4)
    columns = 1 + sum(1 + metric.per_fill for metric in METRICS.values())  # two fills, and insertion - deletion
    assert board.values.shape == (1, columns, 4) and bool(board.values.isfinite().all())
    with pytest.raises(OptionError, match="needs masks"):
        evaluate(model, PICTURES, methods, target=1, metrics=("pointing_game",))
    with pytest.raises(OptionError, match="as a method"):
        evaluate(model, PICTURES, {"map": PICTURES}, target=1, metrics=("max_sensitivity",))
    with pytest.raises(OptionError, match="insertion"):
        evaluate(model, PICTURES, methods, target=1, metrics=("insertions",))


def test_controls_take_part_in_localization():
    masks = torch.zeros(4, 8, 8, dtype=torch.bool)
    masks[:, 2:6, 2:6] = True
    board = evaluate(net(), PICTURES, ["gradient"], target=1, metrics=("relevance_mass", "sparsity"), masks=masks)
    leaf = Leaf(PICTURES)
    torch.testing.assert_close(board.of("center", "relevance_mass"), relevance_mass(center(leaf, 0), masks))
    torch.testing.assert_close(board.of("random", "sparsity"), sparsity(random(leaf, 0)))


def test_warnings_where_numbers_would_mislead():
    model = net()
    other = layerlens.saliency(model, PICTURES, target=2, method="gradient")
    with pytest.warns(UserWarning, match="explains 'class 2'"):
        evaluate(model, PICTURES, {"other": other}, target=1, steps=2)
    with pytest.warns(UserWarning, match="one sample"):
        evaluate(model, PICTURES[:1], ["gradient"], target=1, steps=2)
    with pytest.warns(UserWarning, match="one group"):
        evaluate(model, PICTURES, ["gradient"], target=1, steps=2, groups=["a"] * len(PICTURES))
    with pytest.raises(InputError, match=r"groups must hold one .*, 4 in all; got 2 of them"):
        evaluate(model, PICTURES, ["gradient"], target=1, steps=2, groups=["a", "b"])
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate(model, PICTURES, {})
    with pytest.raises(OptionError, match="as a control is"):
        evaluate(model, PICTURES, {"random": "gradient"}, target=1)


def test_intervals_are_over_groups_of_samples_that_are_alike():
    board = evaluate(net(), PICTURES, ["gradient"], target=1, steps=4, groups=torch.tensor([7, 3, 7, 7]))
    assert board.groups == ("7", "3", "7", "7") and board.samples == "4 samples of 2 groups"
    values = board.of("gradient")
    both, seven, three = values.mean(), values[[0, 2, 3]].mean(), values[1]
    low, high = board.interval("gradient")  # of 2 groups, the same is drawn twice in half of the draws
    wide = (12.7062 / 1.95996) * 2**0.5  # Student's t of one degree of freedom, from a table
    ends = sorted(float(both + wide * (end - both)) for end in (seven, three))
    assert (low, high) == pytest.approx(ends, rel=1e-4)
    assert board.mean("gradient") == pytest.approx(float(both))
    assert "4 samples of 2 groups" in repr(board)


def test_intervals_over_groups_are_those_of_a_slow_bootstrap():
    values = normal(2, 1, 30).double() + torch.arange(30).div(10, rounding_mode="floor").double()
    groups = tuple("abc"[k // 10] for k in range(30))
    fields = (("one", "other"), ("insertion",), values, (True,), (), "cat", {})
    board, plain = Leaderboard(*fields, groups), Leaderboard(*fields)
    generator = torch.Generator().manual_seed(1)
    means = []
    for _ in range(4000):
        drawn = ["abc"[k] for k in torch.randint(3, (3,), generator=generator).tolist()]
        rows = [row for name in drawn for row in range(30) if groups[row] == name]
        means.append(float(values[0, 0, rows].mean()))
    center, wide = float(values[0].mean()), (4.30265 / 1.95996) * 1.5**0.5  # of three groups
    ends = torch.tensor(means).quantile(torch.tensor([0.025, 0.975])).tolist()
    expected = [center + wide * (end - center) for end in ends]
    assert board.interval("one") == pytest.approx(expected, abs=0.05)
    narrow = plain.interval("one")
    assert narrow[1] - narrow[0] < 0.3 * (expected[1] - expected[0])
    own = Leaderboard(*fields, tuple(str(k) for k in range(30)))  # each for itself
    assert own.interval("one") == pytest.approx(narrow, abs=0.05)
    assert board.difference("one", "other")[0] == pytest.approx(float((values[0] - values[1]).mean()))


@pytest.mark.parametrize("size", [3, 5, 11, 30])
@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_intervals_of_few_samples_hold_the_mean(size, kind):
    """95 % intervals, of values with a known mean: a bootstrap alone holds it in 72 to 86 % for 3 and 5."""
    generator = torch.Generator().manual_seed(size)
    held = 0
    for _ in range(300):
        values = torch.randn(size, generator=generator, dtype=torch.float64)
        if kind == "skewed":  # a share between 0 and 1, most of them small
            values = values.sigmoid() ** 2 - 0.29338
        low, high = Leaderboard(("one",), ("gain",), values[None, None], (True,), (), "cat", {}).interval("one")
        held += low <= 0 <= high
    assert 0.88 <= held / 300 <= 0.99


def test_a_lens_reads_names_and_the_model_is_as_before():
    model = net()
    lens = Lens(model, class_names=["a", "b", "c"])
    before = Snapshot(model, PICTURES)
    board = lens.evaluate(PICTURES, ["gradient", "grad_cam"], target="b", steps=4)
    before.check()
    assert board.target == "b"


@pytest.mark.parametrize(
    ("task", "right", "wrong"),
    [
        (additive_model, ["feature_ablation", "shapley_sampling", "kernel_shap", "integrated_gradients"], "gradient"),
        (known_shapley, ["shapley_sampling", "kernel_shap", "integrated_gradients"], "feature_ablation"),
    ],
)
def test_tasks_of_values(task, right, wrong):
    made = task()
    options = {"integrated_gradients": {"tolerance": 1e-5}, "shapley_sampling": {"permutations": 200}}
    for method in right:
        error = float(made.score(method, **options.get(method, {}))["error"].max())
        assert error < (0.25 if method == "shapley_sampling" and task is known_shapley else 1e-3), (method, error)
    assert float(made.score(wrong)["error"].mean()) > 0.1


def test_known_shapley_values_by_all_orders():
    made = known_shapley(batch=2, columns=4, products=5)
    for row in range(2):
        total = torch.zeros(4).double()
        for order in itertools.permutations(range(4)):
            kept, last = torch.zeros(4).double(), torch.tensor(0.0).double()
            for column in order:
                kept[column] = 1
                score = made.model((made.x[row] * kept)[None])[0, made.target[row]].detach()
                total[column] += score - last
                last = score
        torch.testing.assert_close(made.values[row], total / 24)


@pytest.mark.parametrize("task", [masked_objects, planted_watermark])
def test_tasks_of_localization(task):
    made = task(batch=8)
    found = made.score("integrated_gradients")
    assert float(found["pointing_game"].mean()) > 0.8 and float(found["relevance_mass"].mean()) > 0.4

    def blind(model, x, *, target):
        own = layerlens.saliency(model, x, target=target, method="gradient")
        edges = sobel(Leaf(made.x), 0).unsqueeze(1)
        return type(own)(**{**vars(own), "values": edges})

    assert float(made.score(blind)["relevance_mass"].mean()) < 0.5 * float(found["relevance_mass"].mean())


def test_the_watermark_decides_and_the_model_knows_it():
    made = planted_watermark(batch=32)
    assert bool((made.model(made.x).argmax(dim=1) == made.target).all())
    moved = made.x.clone()
    moved[:, :, :7, :7] = made.x[torch.arange(31, -1, -1), :, :7, :7]
    assert torch.equal(made.model(moved).argmax(dim=1), made.target.flip(0))


def test_infidelity_of_the_controls_of_images():
    board = evaluate(net(), normal(2, 1, 8, 8).double(), "gradient", metrics=["infidelity"], target=0)
    color = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(32, 2)).double()
    found = evaluate(color, normal(2, 3, 6, 6).double(), ["gradient"], metrics=["infidelity"], target=0)
    assert found.methods[0] == board.methods[0] == "gradient" and len(found.methods) == 4
    assert float(found.values[0].max()) < 1e-12 < float(found.values[1:].min())


def test_one_region_says_that_it_cannot_compare_maps():
    x = normal(2, 1, 8, 8).double()
    with pytest.warns(UserWarning, match="patch_size=8 makes one region of each sample, so all maps are equal"):
        layerlens.faithfulness.region_perturbation(net(), x, x, target=0, patch_size=8)
    maps = {"map": x, "opposite": -x}
    board = evaluate(net(), x, maps, metrics=["region_perturbation"], fills=["zero"], target=0, controls=False)
    assert float((board.values[0] - board.values[1]).abs().max()) > 0  # by default regions are smaller


def test_what_is_not_a_method_or_a_map_is_said():
    model, x = nn.Linear(3, 2), torch.rand(2, 3)
    for metric in (local_lipschitz_estimate, random_logit, max_sensitivity):
        with pytest.raises(OptionError, match=r"it needs a method and not a map, got float32 \(2, 3\)"):
            metric(model, x, x, target=0)
    by_name, by_function = (max_sensitivity(model, x, how, target=0) for how in ("input_x_gradient", input_x_gradient))
    assert torch.equal(by_name, by_function) and float(by_name.min()) > 0
    for metric in (sparsity, complexity):
        with pytest.raises(InputError, match="the map holds NaN or infinite values"):
            metric(torch.tensor([[math.nan, 1.0]]))
        with pytest.raises(InputError, match=r"a map is an Attribution or an array \(batch, \.\.\.\), got str"):
            metric("gradient")
    one, several = (
        evaluate(model, x, "gradient", metrics=metrics, fills=fills, target=0)
        for metrics, fills in (("completeness", "zero"), (["completeness"], ["zero"]))
    )
    assert torch.equal(one.values, several.values) and one.metrics == several.metrics
