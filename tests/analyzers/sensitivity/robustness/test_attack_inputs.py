"""The changed inputs of an attack, against captum's and against closed forms of linear models, in float64."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from layerlens import Lens
from layerlens.analyzers.sensitivity import attack, attack_curve
from layerlens.errors import InputError, OptionError, TargetError
from layerlens.inputs.inputs import as_inputs
from layerlens.model.trees import first_tensor
from layerlens.results import load
from tests.cases import CASES, double, normal
from tests.snapshot import Snapshot

robust = pytest.importorskip("captum.robust")
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor . did not already require gradients")


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 4)).double()


def cross_entropy(output, labels):
    return nn.functional.cross_entropy(output, labels, reduction="none")


X = normal(3, 3, 6, 6).double().sigmoid()
LABELS = torch.tensor([0, 3, 1])


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_changed_inputs_are_those_of_captum(targeted, masked):
    model = net()
    mask = (normal(1, 1, 6, 6, seed=3) > 0).double() if masked else None
    theirs = {"mask": None if mask is None else mask.expand_as(X), "targeted": targeted}
    one = {"mask": mask, "targeted": targeted, "bounds": (0, 1), "keep": "last", "restarts": 0}
    fgsm = robust.FGSM(model, cross_entropy, 0.0, 1.0).perturb(X, 0.1, LABELS, **theirs)
    torch.testing.assert_close(attack(model, X, LABELS, eps=0.1, method="fgsm", **one).inputs, fgsm)
    pgd = robust.PGD(model, cross_entropy, 0.0, 1.0).perturb(X, 0.1, 0.03, 7, LABELS, **theirs)
    found = attack(model, X, LABELS, eps=0.1, step_size=0.3, steps=7, **one)
    torch.testing.assert_close(found.inputs, pgd)
    torch.testing.assert_close(found.original, X)
    after = model(found.inputs).argmax(dim=1)
    assert torch.equal(found.after, after) and torch.equal(found.before, model(X).argmax(dim=1))
    assert torch.equal(found.success, (after == LABELS) == targeted)
    if masked:
        assert float((found.change * (1 - mask)).abs().max()) == 0 < float(found.change.abs().max())


def test_attacks_go_before_preprocessing():
    """Against captum's attacks of the two functions as one, and the curve against the same."""
    model, raw = net(), normal(3, 3, 12, 12).double().sigmoid() * 255

    def halved(x):
        return nn.functional.avg_pool2d(x / 255, 2).sqrt()

    def whole(x):
        return model(halved(x))

    one = {"preprocess": halved, "bounds": (0, 255), "restarts": 0}
    theirs = robust.FGSM(whole, cross_entropy, 0.0, 255.0), robust.PGD(whole, cross_entropy, 0.0, 255.0)
    theirs[0].zero_thresh = theirs[1].fgsm.zero_thresh = 0.0  # 1e-6: a slope below moves nothing
    fgsm = theirs[0].perturb(raw, 8.0, LABELS)
    found = attack(model, raw, LABELS, eps=8, method="fgsm", keep="last", **one)
    torch.testing.assert_close(found.inputs, fgsm)
    pgd = theirs[1].perturb(raw, 8.0, 2.4, 5, LABELS)
    found = attack(model, raw, LABELS, eps=8, step_size=0.3, steps=5, keep="last", **one)
    torch.testing.assert_close(found.inputs, pgd)
    assert found.settings["preprocess"] == "halved" and torch.equal(found.after, whole(found.inputs).argmax(dim=1))
    curve = attack_curve(model, raw, LABELS, eps=(0, 8), method="fgsm", null=False, **one)
    expected = [float((whole(x).argmax(dim=1) == LABELS).double().mean()) for x in (raw, fgsm)]
    assert curve.values[0].tolist() == pytest.approx([expected[0], min(expected)])
    ways = (lambda x: (halved(x),), lambda x: {"input": halved(x)})
    for way in ways:
        again = attack(model, raw, LABELS, eps=8, step_size=0.3, steps=5, keep="last", **{**one, "preprocess": way})
        assert torch.equal(again.inputs, found.inputs)
    for bad in ({"preprocess": "halved"}, {"normalized": (0, 1)}):
        with pytest.raises(OptionError, match="preprocess= is a function of raw inputs"):
            attack(model, raw, LABELS, eps=8, **{**one, **bad})


def test_several_inputs_of_captum_and_a_mask_for_one():
    case = CASES["two_inputs"]
    model, x = case.build().double(), double(case.example())
    inputs = as_inputs(x).named_for(model)
    names, labels = list(inputs.floating()), torch.tensor([1, 0])

    def forward(*tensors):
        return first_tensor(inputs.replace(dict(zip(names, tensors, strict=True))).run(model))

    theirs = robust.FGSM(forward, cross_entropy).perturb(tuple(inputs.floating().values()), 0.2, labels)
    found = attack(model, x, labels, eps=0.2, method="fgsm", keep="last")
    for name, one in zip(names, theirs, strict=True):
        torch.testing.assert_close(found.inputs[name], one)
    name = names[0]
    masks = (torch.zeros(1), torch.ones(1))
    held = attack(model, x, labels, eps=0.2, method="fgsm", keep="last", mask={name: torch.zeros(1)})
    ordered = attack(model, x, labels, eps=0.2, method="fgsm", keep="last", mask=masks)
    assert all(torch.equal(held.inputs[one], ordered.inputs[one]) for one in names)
    fixed = attack(model, x, labels, eps=0.2, method="fgsm", keep="last", hold=name)  # captum's additional arguments
    torch.testing.assert_close(fixed.inputs, held.inputs[names[1]])
    assert float(held.change[name].abs().max()) == 0 < float(held.change[names[1]].abs().max())
    bounded = attack(model, x, labels, eps=90.0, method="fgsm", bounds={name: (-50, 50)}, keep="last")
    assert float(bounded.inputs[name].abs().max()) <= 50 < float(bounded.inputs[names[1]].abs().max())


def test_bounds_by_channel_and_units_before_normalization():
    mean, std = torch.tensor([0.4, 0.5, 0.6]).double(), torch.tensor([0.1, 0.2, 0.5]).double()
    model = net()
    normalize = lambda x: (x - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)  # noqa: E731
    for norm in ("linf", "l2"):
        for method in ("fgsm", "pgd"):
            options = {"eps": 0.2, "norm": norm, "method": method, "steps": 4}
            whole = attack(nn.Sequential(Normalize(normalize), model), X, LABELS, bounds=(0, 1), **options)
            inner = attack(model, normalize(X), LABELS, bounds=(0, 1), normalized=(mean, std), **options)
            torch.testing.assert_close(inner.inputs, normalize(whole.inputs))
    low, high = normalize(torch.zeros(3, 1, 1).double()).flatten(), normalize(torch.ones(3, 1, 1).double()).flatten()
    found = attack(model, normalize(X), LABELS, eps=5.0, bounds=(low.tolist(), high.tolist()))
    assert bool((found.inputs.amin(dim=(0, 2, 3)) >= low - 1e-9).all())
    torch.testing.assert_close(found.inputs.amax(dim=(0, 2, 3)), high)
    with pytest.raises(OptionError, match=r"bounds of shape \(2,\) do not fit input"):
        attack(model, X, LABELS, eps=0.1, bounds=((0, 0), (1, 1)))


class Normalize(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def test_the_smallest_size_of_each_sample_is_the_margin_of_a_linear_model():
    model, x = nn.Linear(6, 2).double(), normal(5, 6).double()
    with torch.no_grad():
        scores, difference = model(x), model.weight[1] - model.weight[0]
        margins = (scores[:, 0] - scores[:, 1]).abs()
    for norm, length in (("linf", difference.abs().sum()), ("l2", difference.norm())):
        exact = margins / length
        sizes = torch.linspace(0.01, float(exact.max()) * 1.1, 6).tolist()
        found = attack(model, x, eps=sizes, norm=norm, refine=30)
        torch.testing.assert_close(found.eps, exact, atol=1e-7, rtol=0)
        assert bool(found.success.all()) and torch.equal(model(found.inputs).argmax(dim=1), 1 - found.before)
        coarse = attack(model, x, eps=sizes, norm=norm)
        expected = torch.tensor([next(size for size in sizes if size > one) for one in exact.tolist()]).double()
        torch.testing.assert_close(coarse.eps, expected)
    none = attack(model, x, eps=(1e-9, 2e-9), refine=2)
    assert none.eps.isinf().all() and not none.success.any()
    wrong = attack(model, x, (1 - found.before), eps=(0.1, 0.2))
    assert wrong.eps.tolist() == [0] * 5  # they were wrong before


def test_a_function_is_an_attack_and_its_smallest_size_is_that_of_captum():
    model, x = nn.Linear(6, 2).double(), normal(4, 6).double()

    def fade(x, size):
        return x * (1 - size / 10) - size * 0.2

    found = attack(model, x, eps=list(range(1, 40)), method=fade)
    search = robust.MinParamPerturbation(model, lambda x, size: fade(x, size), "size", 1, 40, 1)
    for row in range(4):
        _, smallest = search.evaluate(x[row : row + 1], target=int(model(x[row : row + 1]).argmax()))
        assert float(found.eps[row]) == (float("inf") if smallest is None else smallest)
    fine = attack(model, x, eps=list(range(1, 40)), method=fade, refine=10)
    assert bool((fine.eps <= found.eps).all())
    curve = attack_curve(model, x, eps=(1, 20, 39), method=("fgsm", fade), inputs=True, null=False)
    assert curve.series[1] == "fade" and curve.checks["inputs"].shape == (2, 3, 4, 6)
    with pytest.raises(InputError, match=r"method= must return the changed input '0', \(4, 6\), for \(x, size\)"):
        attack(model, x, eps=1.0, method=lambda x, size: x[:1])


def test_scores_data_sets_tokens_and_files(tmp_path):
    model = net()
    before = Snapshot(model, X)
    for targeted in (False, True):
        found = attack(model, X, target=2, eps=0.05, method="fgsm", targeted=targeted)
        assert found.success is None and bool(((found.after > found.before) == targeted).all())
    low, score = float(model(X)[:, 2].detach().min()) - 0.3, lambda x: model(x)[:, 2].detach()
    below = attack(model, X, target=2, eps=(0.05, 0.2, 2.0), threshold=low, refine=12)
    assert below.success.all() and bool((score(below.inputs) < low).all())
    torch.testing.assert_close(score(below.inputs), torch.full((3,), low).double(), atol=0.01, rtol=0)
    data = attack(model, TensorDataset(X, LABELS), eps=(0.05, 0.3), batch_size=2)
    whole = attack(model, X, LABELS, eps=(0.05, 0.3))
    torch.testing.assert_close(data.inputs, whole.inputs)
    before.check()
    mask = (normal(3, 1, 6, 6, seed=3) > 0).double()  # one for each sample, also in chunks
    one, other = (attack(model, X, LABELS, eps=0.1, mask=mask, batch_size=size).inputs for size in (2, 64))
    torch.testing.assert_close(one, other)
    again = load(whole.save(tmp_path / "found.npz"))
    assert torch.equal(again.inputs, whole.inputs) and "changed" in repr(whole) and len(whole) == 3
    assert torch.equal(Lens(model).attack(X, LABELS, eps=(0.05, 0.3)).inputs, whole.inputs)
    ids = torch.tensor([[1, 2, 3, 0], [4, 1, 2, 2]])
    words = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(16, 2)).double()
    only = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])
    first = attack(words, ids, eps=0.5, mask=torch.tensor([1, 0, 0, 0]))
    assert torch.equal((first.change != 0).any(dim=2), torch.tensor([[True, False, False, False]] * 2))
    found = attack(words, ids, eps=0.5, mask=only)
    assert torch.equal((found.change != 0).any(dim=2), only.bool())


def test_outputs_of_several_axes_and_probabilities():
    """What captum's own tests have: its loss -log(p), labels as places in an output of three axes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Softmax(dim=-1)).double()
    for x, place in ((normal(2, 3).double(), 1), (normal(2, 5, 3).double(), (2, 1))):
        theirs = robust.PGD(model).perturb(x, 0.2, 0.05, 6, place)
        found = attack(model, x, target=place, eps=0.2, step_size=0.25, steps=6, restarts=0, keep="last")
        torch.testing.assert_close(found.inputs, theirs)
    found = attack(model, normal(2, 3).double(), 1, eps=0.2, step_size=0.25, steps=6, restarts=0, keep="last")
    torch.testing.assert_close(found.inputs, robust.PGD(model).perturb(normal(2, 3).double(), 0.2, 0.05, 6, 1))


def test_what_does_not_fit_is_said():
    model = net()
    with pytest.raises(OptionError, match=r"targeted=True needs labels=, the class that each sample is to reach"):
        attack(model, X, eps=0.1, targeted=True)
    with pytest.raises(OptionError, match="a score has no answer that changes"):
        attack(model, X, target=1, eps=(0.1, 0.2))
    with pytest.raises(OptionError, match=r"threshold=0\.5 is for a score"):
        attack(model, X, eps=0.1, threshold=0.5)
    with pytest.raises(OptionError, match=r"mask holds 2 for 1 input\(s\)"):
        attack(model, X, eps=0.1, mask=[torch.ones(1), torch.ones(1)])
    with pytest.raises(OptionError, match="mask must hold 0 and 1"):
        attack(model, X, eps=0.1, mask=torch.full((1,), 0.5))
    with pytest.raises(OptionError, match=r"compare .* by attack_curve"):
        attack(model, X, eps=0.1, method=("fgsm", "pgd"))
    with pytest.raises(OptionError, match=r"refine=3 searches between sizes, and eps=0\.1 is one: give several"):
        attack(model, X, eps=0.1, refine=3)
    with pytest.raises(OptionError, match=r"loss='margin' is about classes, and target= is a score"):
        attack(model, X, eps=0.1, target=1, loss="margin")
    with pytest.raises(OptionError, match="mask is 0 everywhere, so nothing may change"):
        attack(model, X, eps=0.1, mask=torch.zeros(6, 6))
    with pytest.raises(OptionError, match=r"seed must be a whole number, got 0\.5"):
        attack(model, X, eps=0.1, seed=0.5)
    with pytest.raises(OptionError, match="unknown keep 'first'"):
        attack(model, X, eps=0.1, keep="first")
    with pytest.raises(OptionError, match="unknown input in mask 'y'"):
        attack(model, X, eps=0.1, mask={"y": torch.ones(1)})
    with pytest.raises(OptionError, match="with std above 0"):
        attack(model, X, eps=0.1, normalized=(0.5, 0.0))
    with pytest.raises(InputError, match=r"outside the bounds 0 to 0\.5"):
        attack(model, X, eps=0.1, bounds=(0, 0.5))


def test_a_sample_that_is_wrong_already_stays_as_it_is():
    model, before = net(), net()(X).argmax(dim=1)
    labels = torch.tensor([int(before[0]), int(before[1] + 1) % 4, int(before[2])])
    for method in ("fgsm", "pgd"):
        found = attack(model, X, labels, eps=(0.01, 0.5), method=method, refine=2)
        assert found.eps[1] == 0 and found.success[1] and found.after[1] == before[1]
        assert torch.equal(found.inputs[1], X[1]) and float(found.change[0].abs().max()) > 0
        assert found.loss[1] == nn.functional.cross_entropy(model(X)[1], labels[1])


def test_positional_inputs_go_by_the_names_of_their_parameters():
    class Two(nn.Module):
        def forward(self, picture, table):
            return torch.stack([picture.sum(dim=(1, 2)), table.sum(dim=1)], dim=1)

    x = (normal(2, 3, 3).double().sigmoid(), normal(2, 4, seed=1).double())
    found = attack(Two(), x, [0, 1], eps=0.5, bounds={"picture": (0, 1)}, mask={"table": torch.zeros(4)})
    assert float(found.inputs["0"].min()) >= 0 and float(found.inputs["0"].max()) <= 1
    assert torch.equal(found.inputs["1"], x[1])


def test_labels_by_the_names_of_classes():
    lens = Lens(net(), class_names=["a", "b", "c", "d"])
    named, numbered = (lens.attack(X, labels, eps=0.1) for labels in (["a", "d", "b"], LABELS))
    assert torch.equal(named.inputs, numbered.inputs)
    one, number = (lens.attack(X, labels, eps=0.1, targeted=True) for labels in ("c", 2))
    assert torch.equal(one.inputs, number.inputs)
    for run in (lens.attack_curve, lens.attack_drift, lens.corruption_curve):
        with pytest.raises(TargetError, match="no class is named 'e' among 4"):
            run(X, labels=["a", "e", "b"])
