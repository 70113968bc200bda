"""Influence of training samples, against gradients and Hessians written out."""

import copy
import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call

from layerlens import Data, Lens, influence
from layerlens.errors import InputError, MissingPackage, OptionError

CLASSES = 3


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, CLASSES)).double()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    return x, torch.arange(9) % CLASSES


def gradients(net, x, y, names=None):
    """Gradient of the loss of each sample, a row each, one by one."""
    net = copy.deepcopy(net).eval()
    parameters = [one for name, one in net.named_parameters() if names is None or name in names]
    rows = []
    for sample, label in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(net(sample[None]), label[None])
        rows.append(torch.cat([one.flatten() for one in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows)


def states(net, count=3):
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        state = net.state_dict()
        yield {name: one + 0.3 * torch.randn(one.shape, generator=generator).double() for name, one in state.items()}


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_tracin_is_the_sum_of_products_of_gradients(net, data, batch_size, tmp_path):
    x, y = data
    kept, rates, expected, alone = list(states(net)), [1.0, 0.5, 0.1], 0, 0
    files = [kept[0], tmp_path / "one.pt", tmp_path / "two.safetensors"]
    torch.save(kept[1], files[1])
    __import__("safetensors.torch").torch.save_file(kept[2], files[2])
    for state, rate in zip(kept, rates, strict=True):
        other = copy.deepcopy(net)
        other.load_state_dict(state)
        rows = gradients(other, x, y)
        expected, alone = expected + rate * rows[:5] @ rows.T, alone + rate * rows.square().sum(dim=1)
    before = {name: one.clone() for name, one in net.state_dict().items()}
    options = {"checkpoints": files, "learning_rates": rates, "batch_size": batch_size}
    found = influence(net, x[:5], y[:5], training=Data(x, labels=y), **options)
    torch.testing.assert_close(found.values, expected)
    itself = influence(net, training=Data(x, labels=y), **options)
    torch.testing.assert_close(itself.values, alone[None])
    assert found.ranked(2)[0][0] == int(expected[2].argmax()) and found.ranked(2, 1, harmful=True)[0][1] < 0
    assert "9 training samples" in repr(found) and found.to_pandas().shape == (9, 6)
    assert all(torch.equal(before[name], one) for name, one in net.state_dict().items()) and net.training


def test_tracin_fast_is_tracin_of_the_weight_of_the_last_layer(net, data):
    x, y = data
    rows = gradients(net, x, y, {"3.weight"})
    found = influence(
        net, x[:4], y[:4], training=list(zip(x, y.tolist(), strict=True)), method="tracin_fast", batch_size=3
    )
    torch.testing.assert_close(found.values, rows[:4] @ rows.T)
    with pytest.raises(OptionError, match="method='tracin' with layers="):  # captum differentiates the wrong tensor
        influence(nn.Sequential(*net, nn.Softmax(1)), training=Data(x, labels=y), method="tracin_fast")


def test_influence_functions_are_products_with_the_inverse_hessian(net, data):
    x, y = data
    net.eval()
    names = ("3.weight", "3.bias")
    shapes = [net.get_parameter(name).shape for name in names]

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        given = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(functional_call(net, given, x), y, reduction="sum")

    flat = torch.cat([net.get_parameter(name).detach().flatten() for name in names])
    damped = torch.autograd.functional.hessian(loss, flat) + 1e-3 * torch.eye(len(flat)).double()
    rows = gradients(net, x, y, names)
    expected = rows @ torch.linalg.solve(damped, rows.T)
    net[3].weight.requires_grad_(False)
    state = torch.get_rng_state()
    options = {"training": Data(x, labels=y), "layers": "3", "batch_size": 4}
    exact = influence(net, x, y, method="influence_functions_exact", damping=1e-3, **options)
    torch.testing.assert_close(exact.values, expected)
    itself = influence(net, method="influence_functions_exact", damping=1e-3, **options)
    torch.testing.assert_close(itself.values[0], expected.diagonal())
    near = influence(net, x, y, method="influence_functions", **options)
    assert torch.corrcoef(torch.stack([near.values.flatten(), expected.flatten()]))[0, 1] > 0.98
    assert torch.equal(state, torch.get_rng_state()) and not net[3].weight.requires_grad


def test_memory_is_fenced(net, data):
    x, y = data
    training = Data(x, labels=y)
    small = influence(net, x, y, training=training, memory=5e-6)
    assert small.settings["batch_size"] == 3
    torch.testing.assert_close(small.values, influence(net, x, y, training=training).values)
    for method in ("influence_functions", "influence_functions_exact"):
        with pytest.raises(OptionError, match=r"GiB for 43 parameters, and memory=1e-06.*layers="):
            influence(net, x, y, training=training, method=method, memory=1e-6)


def test_layers_that_the_loss_does_not_depend_on_are_left_out(data):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, CLASSES), nn.Linear(4, 4)

        def forward(self, x):
            return {"logits": self.used(x), "other": 1}

    x, y = data
    found = influence(Odd().double(), x[:2], y[:2], training=Data(x, labels=y))
    assert found.settings["parameters"] == ["used.weight", "used.bias"]
    with pytest.raises(OptionError, match="depends on no parameter of layers"):
        influence(Odd().double(), x[:2], y[:2], training=Data(x, labels=y), layers="unused")


def test_names_of_classes_and_an_own_loss(net, data):
    x, y = data
    lens = Lens(net, class_names=["a", "b", "c"])
    named = lens.influence(x[:2], ["a", "b"], training=Data(x, labels=y))
    own = influence(net, x[:2], y[:2], training=Data(x, labels=y), loss=nn.CrossEntropyLoss(reduction="none"))
    torch.testing.assert_close(named.values, own.values)


def test_what_is_refused(net, data, tmp_path):
    x, y = data
    training = Data(x, labels=y)
    torch.save(net, tmp_path / "whole.pt")
    torch.save({"other": x}, tmp_path / "other.pt")
    for error, text, options in [
        (InputError, "label of every sample of x", {"labels": None}),
        (InputError, "label of every sample of the training data", {"training": x}),
        (InputError, "labels 0 to 7 for 3 classes", {"training": Data(x, labels=[0, 7, *[1] * 7])}),
        (InputError, r"\(\) for 9 samples", {"loss": nn.CrossEntropyLoss()}),
        (InputError, "cannot read checkpoint .*whole.pt", {"checkpoints": [tmp_path / "whole.pt"]}),
        (InputError, "does not fit this model", {"checkpoints": [tmp_path / "other.pt"]}),
        (InputError, "cannot read checkpoint", {"checkpoints": [tmp_path / "none.pt"]}),
        (InputError, "checkpoint 0 is a Sequential", {"checkpoints": [net]}),
        (InputError, "one per checkpoint", {"checkpoints": net.state_dict()}),
        (InputError, "read only once", {"training": iter([(x[0], 1)])}),
        (OptionError, "2 learning rates for 1", {"learning_rates": [1, 2]}),
        (OptionError, "belong to method='influence_functions'", {"damping": 0.1}),
        (OptionError, "belongs to method='tracin'", {"learning_rates": [1], "method": "trak"}),
        (OptionError, "one checkpoint, got 2", {"checkpoints": list(states(net, 2)), "method": "influence_functions"}),
        (OptionError, "belongs to method='tracin'", {"learning_rates": [1], "method": "influence_functions"}),
        (OptionError, "tracin", {"method": "arnoldi"}),
        (OptionError, "memory must be above 0", {"memory": 0}),
    ]:
        with pytest.raises(error, match=text):
            influence(net, x, **{"labels": y, "training": training, **options})
    with pytest.raises(OptionError, match="labels= are those of x"):
        influence(net, labels=y, training=training)


@pytest.mark.slow  # dattri takes 3 s to import
def test_trak_is_a_regression_on_gradients_of_the_log_odds(net, data, capfd):
    trak = pytest.importorskip("dattri.algorithm.trak")
    x, y = data
    net = nn.Sequential(nn.BatchNorm1d(4).double(), *net)  # its buffers are what torch.func.vmap refuses
    kept, damping, defaults = list(states(net, 2)), 0.3, dict(trak.DEFAULT_PROJECTOR_KWARGS)

    def written_out(project):
        regressions, residuals = [], []
        for number, state in enumerate(kept):
            other = copy.deepcopy(net).eval()
            other.load_state_dict(state)
            rows, wrong = [], []
            for sample, label in zip(x, y, strict=True):
                p = other(sample[None]).softmax(1)[0, label]
                rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(p.logit(), [*other.parameters()])]))
                wrong.append(1 - p.detach())
            phi = project(torch.stack(rows), number)
            found = phi @ torch.linalg.inv(phi.T @ phi + damping * torch.eye(phi.shape[1]).double()) @ phi.T
            regressions.append(found)
            residuals.append(torch.stack(wrong))
        return sum(regressions) / 2 * sum(residuals)[None] / 2

    def normal(rows, number):
        generator = torch.Generator().manual_seed(5 + 100_000 * number)
        return rows @ torch.empty(rows.shape[1], 4).double().normal_(generator=generator) / 2

    options = {"training": Data(x, labels=y), "method": "trak", "checkpoints": kept, "damping": damping, "seed": 5}
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    for rank, project in ((51, lambda rows, number: rows), (4, normal)):
        expected = written_out(project)
        found = influence(net, x[:5], y[:5], rank=rank, batch_size=2, **options)
        torch.testing.assert_close(found.values, expected[:5])
        itself = influence(net, rank=rank, **options)
        torch.testing.assert_close(itself.values[0], expected.diagonal())
    own = influence(net, x[:5], y[:5], rank=4, loss=nn.CrossEntropyLoss(reduction="none"), **options)
    torch.testing.assert_close(own.values, found.values)
    assert net.training and torch.equal(state, torch.get_rng_state()) and defaults == trak.DEFAULT_PROJECTOR_KWARGS
    assert all(torch.equal(before[name], one) for name, one in net.state_dict().items())
    assert capfd.readouterr() == ("", "") and trak.tqdm.__module__.startswith("tqdm")
    for text, error, more in [
        ("as -log p above 0, and got", InputError, {"loss": lambda output, labels: output[:, 0]}),
        ("GiB for 51 parameters", OptionError, {"memory": 1e-6}),
        ("not finite", InputError, {"loss": lambda output, labels: output.square().sum(1) + torch.inf}),
    ]:
        with pytest.raises(error, match=text):
            influence(net, **{**options, **more})
    with pytest.raises(InputError, match="method='trak' takes class labels"):
        influence(nn.Linear(4, 1).double(), training=Data(x, labels=y.double()), method="trak")


def test_trak_names_its_package_where_it_is_missing(net, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "dattri", None)
    with pytest.raises(MissingPackage, match=r"needs dattri: pip install 'layerlens-torch\[trak\]'"):
        influence(net, training=Data(data[0], labels=data[1]), method="trak")


@pytest.mark.slow
def test_a_mislabeled_digit_is_found():
    """Its self influence is among the largest, and it harms most a test image that it makes an error."""
    datasets = pytest.importorskip("sklearn.datasets")
    pytest.importorskip("dattri")
    pixels, digits = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32) / 16, torch.tensor(digits)
    found = []
    for wrong in (37, 120, 305):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        labels = y[:600].clone()
        labels[wrong] = (labels[wrong] + 3) % 10
        optimizer, kept = torch.optim.SGD(net.parameters(), 0.2, 0.9), []
        for step in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[:600]), labels).backward()
            optimizer.step()
            if step % 50 == 49:
                kept.append(copy.deepcopy(net.state_dict()))
        lens, training = Lens(net), Data(x[:600], labels=labels)
        itself = lens.influence(training=training, checkpoints=kept).ranked()
        near = x[600:][(x[600:] - x[wrong]).square().sum(dim=1).argsort()[:20]]
        truth = y[600:][(x[600:] - x[wrong]).square().sum(dim=1).argsort()[:20]]
        worst = int(nn.functional.cross_entropy(net(near), truth, reduction="none").argmax())
        one = slice(worst, worst + 1)
        error = lens.influence(near[one], truth[one], training=training, checkpoints=kept).ranked(harmful=True)
        regressed = lens.influence(training=training, method="trak", checkpoints=kept[-1:]).ranked()
        found.append([[index for index, _ in one].index(wrong) for one in (itself, error, regressed)])
    print(found)
    assert max(rank for one in found for rank in one) < 10, found
