"""Watching a training: right numbers, the training unchanged to the bit, nothing left on the model."""

import copy
import warnings

import pytest
import torch
from torch import nn

from layerlens import Lens, errors, watch
from layerlens.analyzers.dynamics import similarity
from tests.cases import CASES, normal
from tests.snapshot import Snapshot


def small(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)


def data(seed=0):
    return normal(16, 4, seed=seed).double(), torch.arange(16) % 3


def loop(model, optimizer, steps=6, watching=None):
    losses = []
    for step in range(steps):
        x, y = data(step)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if watching is not None:
            watching.log(loss=loss)
    return losses


def test_the_numbers_are_those_of_the_step():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = copy.deepcopy(model)
    with watch(model, optimizer, every=1) as watching:
        losses = loop(model, optimizer, 1, watching)
    history = watching.history
    x, y = data(0)
    hidden = start[:2](x).detach()
    nn.functional.cross_entropy(start(x), y).backward()
    for path in ("0", "2"):
        layer = start.get_submodule(path)
        gradient = torch.cat([one.grad.flatten() for one in layer.parameters()]).norm()
        weight = torch.cat([one.detach().flatten() for one in layer.parameters()]).norm()
        assert history.curve("gradient norm", path).item() == pytest.approx(float(gradient), rel=1e-12)
        assert history.curve("weight norm", path).item() == pytest.approx(float(weight), rel=1e-12)
        # plain SGD: lr ||g|| / ||W||
        assert history.curve("update ratio", path).item() == pytest.approx(float(0.1 * gradient / weight), rel=1e-9)
    assert history.curve("zeros", "1").item() == pytest.approx(float((hidden == 0).double().mean()))
    assert history.curve("activation mean", "1").item() == pytest.approx(float(hidden.mean()), rel=1e-12)
    assert history.curve("activation std", "1").item() == pytest.approx(float(hidden.std(unbiased=False)), rel=1e-9)
    dead = (hidden == hidden[0]).all(dim=0).double().mean()
    assert history.curve("constant units", "1").item() == pytest.approx(float(dead))
    assert history.logged["loss"].tolist() == [[0.0, losses[0]]]
    assert history.rows.tolist() == [16]


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_training_is_the_same_to_the_bit(optimizer):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
            self.drop, self.b = nn.Dropout(0.4), nn.Linear(6, 3)

        def forward(self, x):
            return self.b(self.drop(self.norm(self.a(x)).relu_()))

    torch.manual_seed(0)
    plain = Net().double()
    watched = copy.deepcopy(plain)
    torch.manual_seed(5)
    expected = loop(plain, optimizer(plain.parameters(), lr=0.05))
    own = optimizer(watched.parameters(), lr=0.05)
    torch.manual_seed(5)
    with watch(watched, own, every=2, data=data(9)[0]) as watching:
        assert loop(watched, own) == expected
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True)
    )
    assert watching.history.steps.tolist() == [0, 2, 4]


def test_nothing_stays_on_model_and_optimizer(hooks_of):
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt), watch(model, optimizer) as watching:
        loop(model, optimizer, 2)
        model(data()[0])
        raise KeyboardInterrupt
    assert hooks_of(model) == 0 and len(watching.history) >= 1
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks
    with watch(model, optimizer, every=100):
        loop(model, optimizer, 1)
        assert hooks_of(model) == 0  # between measured steps nothing stands on the model
        loop(model, optimizer, 1)


def test_validation_is_not_counted_and_accumulated_batches_are():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    parts = [data(1)[0], data(2)[0] * 5]
    with watch(model, optimizer, every=1) as watching:
        for x in parts:
            nn.functional.cross_entropy(model(x), data()[1]).backward()
            with torch.no_grad():
                model(1000 * x)
        hidden = torch.cat([model[:2](x) for x in parts]).detach()
        optimizer.step()
    # the last two calls, made with gradients for the comparison, hold the same values
    assert watching.history.curve("activation mean", "1").item() == pytest.approx(float(hidden.mean()))


def test_a_planted_dead_unit_layer_and_step_are_named():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        model[0].bias[2] = -1e6
        model[2].bias[:] = -1e6
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, every=1) as watching:
        loop(model, optimizer, 3)
    told = " ".join(watching.history.findings())
    assert watching.history.curve("constant units", "1").tolist() == pytest.approx([1 / 6] * 3)
    assert watching.history.curve("constant units", "3").tolist() == [1, 1, 1]
    assert "No gradient: 0, 2." in told and "16 samples of a step: 3 (1)" in told
    healthy = small()
    own = torch.optim.SGD(healthy.parameters(), lr=0.1)
    with watch(healthy, own, every=1) as watching:
        loop(healthy, own, 3)
    assert not [line for line in watching.history.findings() if "gradient" in line]


def test_gradients_that_overflow_are_named():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e200)
    with watch(model, optimizer, every=1) as watching:
        loop(model, optimizer, 3)
    assert any("not finite" in line for line in watching.history.findings())


def test_drift_is_zero_without_training_and_grows_with_it():
    model = small()
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    x = normal(64, 4, seed=3).double()
    with watch(model, still, every=1, data=x) as watching:
        loop(model, still, 2)
    assert float(watching.history.values["drift"].abs().max()) < 1e-9
    optimizer, began = torch.optim.SGD(model.parameters(), lr=2.0), copy.deepcopy(model)
    with watch(model, optimizer, every=1, data=x) as watching:
        loop(model, optimizer, 30)
    drift = watching.history.curve("drift", "2")
    both = similarity(began, x, "2", other=model, other_layers="2", pool="mean", batch_size=64, permutations=0)
    assert float(drift[-1]) == pytest.approx(1 - float(both.values[0, 0]), abs=1e-9)
    assert float(drift[-1]) > float(drift[0]) > 0


def test_a_budget_bounds_the_steps_that_are_measured():
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    always = [0, 1, 2, 4, 7, 11, 17, 26, 40, 61, 92]
    with (
        pytest.warns(UserWarning, match=r"watch: 7 of 20 steps were measured, .* watch\(\.\.\., every=2\) measures 10"),
        watch(model, optimizer, budget=1e-9) as watching,
    ):
        loop(model, optimizer, 20)
    assert watching.history.steps.tolist() == always[:7]
    with watch(model, optimizer, budget=1e-9) as watching:  # enough of them, so nothing to say
        loop(model, optimizer, 120)
    assert watching.history.steps.tolist() == always
    with watch(model, optimizer, budget=1e-9) as watching:
        loop(model, optimizer, 4)
    assert watching.history.steps.tolist() == always[:3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # how many steps fit is a matter of the machine
        with watch(model, optimizer, budget=0.999) as watching:
            loop(model, optimizer, 20)
    assert len(watching.history) > 1
    assert 0 < float(watching.history.checks["share of time"]) < 1


@pytest.mark.parametrize("name", ["cnn", "lstm", "hf_bert", "gan", "vae", "early_exit"])
def test_any_model_can_be_watched(name, hooks_of):
    case = CASES[name]
    model = case.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = hooks_of(model)
    from layerlens.inputs.inputs import as_inputs
    from layerlens.targets.outputs import main_output

    with Lens(model).watch(optimizer, every=1) as watching:
        for _ in range(2):
            main_output(as_inputs(case.example()).run(model)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert hooks_of(model) == before
    history = watching.history
    assert history.steps.tolist() == [0, 1] and bool((history.values["gradient norm"].nan_to_num() >= 0).all())
    assert len(history.layers["activation mean"]) > 1
    assert "measured of 2" in repr(history)


def test_a_watch_is_lent_the_model_for_drift_only():
    case = CASES["cnn"]
    model, x = case.build().train(), case.example()
    x = torch.cat([x] * (8 // len(x) + 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = Snapshot(model, x)
    with watch(model, optimizer, every=1, data=x):
        optimizer.step()
    before.check()


def test_what_cannot_be_watched_is_refused():
    model, other = small(), small()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(errors.OptionError, match="moves none of the parameters of Sequential"):
        watch(model, optimizer)
    with pytest.raises(errors.OptionError, match="there is no optimizer to watch"), watch(model):
        pass
    with pytest.raises(errors.OptionError, match="budget must be a share"):
        watch(other, optimizer, budget=5)
    with pytest.raises(errors.OptionError, match="every must be a whole number of at least 1 or 'auto'"):
        watch(other, optimizer, every=0)
    with pytest.raises(errors.OptionError, match=r"torch\.optim\.Optimizer, got str"):
        watch(other, "sgd")
    with pytest.raises(errors.InputError, match="at least 8 samples, got 2"):
        watch(other, optimizer, data=torch.ones(2, 4).double())
    with pytest.warns(UserWarning, match="no step of the optimizer was seen"), watch(other, optimizer):
        pass
    with watch(other, optimizer) as watching:
        loop(other, optimizer, 1)
        with pytest.raises(errors.OptionError, match="already on"):
            watching.__enter__()
        with pytest.raises(errors.OptionError, match=r"log\(loss=...\) takes one number"):
            watching.log(loss=torch.ones(3))
    with pytest.raises(errors.OptionError, match="unknown quantity 'los'"):
        watching.history.of("los")


@pytest.mark.parametrize("keyword", [True, False])
def test_a_closure_that_runs_inside_of_the_step_is_seen(keyword):
    model = small()
    expected, closed = copy.deepcopy(model), copy.deepcopy(model)
    own = torch.optim.SGD(expected.parameters(), lr=0.1)
    with watch(expected, own, every=1) as plain:
        losses = loop(expected, own, 4)
    optimizer = torch.optim.SGD(closed.parameters(), lr=0.1)
    with watch(closed, optimizer, every=1) as watching:
        for step in range(4):
            x, y = data(step)

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(closed(x), y)
                loss.backward()
                return loss

            loss = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
            assert loss.item() == losses[step]
    for quantity, values in plain.history.values.items():
        assert torch.equal(watching.history.values[quantity], values)


def test_lbfgs_is_measured_at_the_first_call_of_its_closure():
    model = small()
    start, (x, y) = copy.deepcopy(model), data()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=5)
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        calls.append(loss.item())
        return loss

    with watch(model, optimizer, every=1) as watching:
        optimizer.step(closure)
    nn.functional.cross_entropy(start(x), y).backward()
    gradient = torch.cat([one.grad.flatten() for one in start[0].parameters()]).norm()
    moved = torch.cat(
        [(a - b).detach().flatten() for a, b in zip(model[2].parameters(), start[2].parameters(), strict=True)]
    )
    weight = torch.cat([one.detach().flatten() for one in start[2].parameters()]).norm()
    assert len(calls) > 1
    assert watching.history.curve("gradient norm", "0").item() == pytest.approx(float(gradient), rel=1e-12)
    assert watching.history.curve("update ratio", "2").item() == pytest.approx(float(moved.norm() / weight), rel=1e-9)
    assert watching.history.rows.tolist() == [16]


def test_layers_are_in_the_order_in_which_they_run_also_those_whose_parameters_another_layer_reads():
    net = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    with watch(net, optimizer, every=1) as watching:
        net(normal(3, 5, 4)).sum().backward()
        optimizer.step()
    found = watching.history.layers
    inside = ["1.self_attn", "1.self_attn.out_proj", "1.norm1", "1.linear1", "1.linear2", "1.norm2"]
    assert list(found["gradient norm"]) == ["0", *inside, "2"]
    ran = ["1.dropout1", "1.norm1", "1.linear1", "1.dropout", "1.linear2", "1.dropout2", "1.norm2"]
    assert list(found["zeros"]) == ["0", *ran, "2"]
