"""An attribution over plausible models: against closed forms, against models written out, and what it leaves behind."""

import dataclasses
import math
import signal
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import layerlens
from layerlens import Lens
from layerlens.analyzers.saliency.saliency import known_methods
from layerlens.analyzers.uncertainty.dropout import WithDropout
from layerlens.errors import InputError, MissingPackage, OptionError
from layerlens.inputs.inputs import as_inputs
from tests.cases import normal

P = 0.3


class Masked(nn.Module):
    """Multiply with a given mask instead of dropout."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor.to(x)


def picture_net(first=None, second=None):
    """A network with both kinds of dropout, or with masks in their place."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(P) if first is None else first,
        nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Dropout(P) if second is None else second, nn.Linear(16, 3),
    )  # fmt: skip


def masks_of(net, x, draw):
    """What each call of dropout multiplies with in a draw."""
    run = WithDropout(None, net, 0)
    run.prepare(net, as_inputs(x))
    with torch.no_grad():
        run.chosen(draw)(net, x)
    return [mask / (1 - P) for mask in run.masks.values()]


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_the_deviation_of_dropout_in_a_linear_net_has_a_closed_form(p):
    """Of w_i x_i m_i / (1 - p) the variance is p / (1 - p) (w_i x_i)^2."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Dropout(p), nn.Linear(12, 1)).double()
    x = normal(2, 12).double()
    draws = 300
    found = layerlens.model_uncertainty(net, x, method="input_x_gradient", draws=draws)
    true = net[1].weight[0].detach() * x
    expected = math.sqrt(p / (1 - p)) * true.abs()
    ratio = (found.deviation / expected).flatten()
    assert (ratio - 1).abs().max() < 0.2 and ratio.mean() == pytest.approx(1, abs=0.03)
    assert ((found.tensor - true).abs() < 4.5 * expected / math.sqrt(draws)).all()
    kept = 1 - p
    agree = torch.where(found.agreement > 0, found.agreement, torch.nan)
    assert (agree - kept).abs().max() < 0.1  # those that are dropped have no sign
    assert found.standard_error is None and torch.equal(found.deviation[0] > 0, torch.ones(12, dtype=torch.bool))


def test_a_draw_of_dropout_is_one_model_in_every_pass_and_for_every_sample():
    """The mean and deviation are those of networks with the masks of the draws written into them."""
    net = picture_net().double().eval()
    x = normal(3, 2, 6, 6).double()
    for method, options in (
        ("gradient", {}),
        ("integrated_gradients", {"steps": 6, "tolerance": math.inf}),
        ("relevance", {}),
        ("kernel_shap", {"features": 4, "samples": 16}),
    ):
        found = layerlens.model_uncertainty(net, x, target=1, method=method, draws=4, options=options)
        each = []
        for draw in range(4):
            masks = masks_of(picture_net().double().eval(), x, draw)
            own = picture_net(*map(Masked, masks)).double().eval()
            assert len(masks) == 2 and masks[0].shape == (1, 6, 1, 1)
            each.append(layerlens.saliency(own, x, target=1, method=method, **options).tensor)
        every = torch.stack(each)
        torch.testing.assert_close(found.tensor, every.mean(dim=0), rtol=1e-6, atol=1e-9, msg=method)
        torch.testing.assert_close(found.deviation, every.std(dim=0), rtol=1e-5, atol=1e-9, msg=method)
        assert float(found.deviation.max()) > 0


TEXT = {"centered_relevance", "leave_one_out"}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(known_methods().keys() - TEXT))
def test_every_method_can_be_asked(name):
    net = picture_net().eval()
    if name == "cam":
        net = nn.Sequential(*net[:6], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    x = normal(2, 2, 6, 6)
    row = known_methods()[name]
    options = {key: 4 for key in ("steps", "permutations", "draws", "units") if key in row.parameters}
    options |= {"samples": 600 if name == "kernel_shap" else 80} if "samples" in row.parameters else {}
    options |= {"unit": 2} if name == "neuron_conductance" else {}
    options |= {"tolerance": math.inf} if "tolerance" in row.parameters else {}
    where = "4" if row.needs.startswith("a layer (where=)") else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of maps that are zero in one of the draws
        found = layerlens.model_uncertainty(net, x, target=1, method=name, where=where, draws=2, options=options)
    assert found.models == 2 and bool(found.deviation.isfinite().all()) and float(found.deviation.max()) > 0


def test_dropout_as_a_function_and_in_other_layouts():
    class Sequence(nn.Module):
        """Time first, a dropout of what has no batch axis, one for each step, alpha dropout."""

        def __init__(self):
            super().__init__()
            self.places, self.head = nn.Parameter(torch.ones(5, 1, 4)), nn.Linear(4, 2)

        def forward(self, x):
            x = x.transpose(0, 1) * functional.dropout(self.places, 0.4, self.training)
            x = functional.dropout(x, p=0.5, training=self.training)
            x = torch.stack([functional.alpha_dropout(step, 0.2, self.training) for step in x])
            return self.head(x.sum(dim=0))

    torch.manual_seed(0)
    net, x = Sequence().double(), normal(2, 5, 4).double()
    run = WithDropout(None, net, 0)
    with layerlens.borrowed(net):
        run.prepare(net, as_inputs(x))
        assert [call.axis for call in run.calls] == [None, 1, *[0] * 5]
        assert [call.shape for call in run.calls] == [(5, 1, 4), (5, 1, 4), *[(1, 4)] * 5]
        one, again = run(net, x), run(net, x[[1, 0, 0]])
        torch.testing.assert_close(again, one[[1, 0, 0]])
        other = run.chosen(1)(net, x)
        assert not torch.allclose(one, other)
    found = layerlens.model_uncertainty(net, x, target=0, method="gradient", draws=3)
    assert float(found.deviation.min()) >= 0 and float(found.deviation.max()) > 0


def test_alpha_dropout_is_torchs():
    """With the mask that torch drew, the numbers are torch's."""
    x = normal(400).double()
    torch.manual_seed(0)
    theirs = functional.alpha_dropout(x, 0.3, True)
    dropped = theirs == theirs.mode().values  # all that are dropped have one value
    net = nn.Sequential(nn.AlphaDropout(0.3))
    run = WithDropout(None, net, 0)
    run.prepare(net, as_inputs(x[None]))
    run.masks = {(0, (1, 400)): ~dropped[None]}
    torch.testing.assert_close(run(net, x[None])[0], theirs)


def test_an_ensemble_has_the_mean_and_deviation_of_its_models():
    nets = [picture_net() for _ in range(3)]
    for number, net in enumerate(nets):
        net[-1].weight.data += 0.1 * normal(3, 16, seed=number)
        net.eval()
    x = normal(2, 2, 6, 6)
    lens = Lens(nets[0])
    found = lens.model_uncertainty(x, models=[Lens(nets[0]), *nets[1:]], method="gradient")
    predicted = nets[0](x).argmax(dim=1)
    each = torch.stack([layerlens.saliency(net, x, target=predicted, method="gradient").tensor for net in nets])
    torch.testing.assert_close(found.tensor, each.mean(dim=0))
    torch.testing.assert_close(found.deviation, each.std(dim=0))
    signs = (each.sign() == found.tensor.sign()).float().mean(dim=0)
    torch.testing.assert_close(found.agreement, signs)
    scores = torch.stack([net(x).gather(1, predicted[:, None])[:, 0] for net in nets]).detach()
    torch.testing.assert_close(found.score, scores.mean(dim=0))
    torch.testing.assert_close(found.checks["score deviation"].float(), scores.std(dim=0))
    assert found.target_of(0).endswith("(predicted)") and found.settings["models"] == "given"


def test_what_the_draws_of_a_method_add_is_taken_from_the_deviation():
    """Of one model again and again the deviation is 0, although every map differs; of others it is the true one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    x = 2 * normal(1, 6).double()
    options = {"permutations": 4}
    same = layerlens.model_uncertainty(net, x, models=[net] * 24, target=0, method="shapley_sampling", options=options)
    assert same.checks["sampling share"].item() == pytest.approx(1, abs=0.2)
    assert float(same.deviation.square().sum()) < 0.3 * float(24 * same.standard_error.square().sum())
    nets = []
    for number in range(24):
        own = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).double()
        own.load_state_dict(net.state_dict())
        own[2].weight.data *= 1 + 0.3 * normal(1, 16, seed=number)
        nets.append(own)
    every = {"method": "kernel_shap", "options": {"samples": 64}}
    exact = layerlens.model_uncertainty(nets[0], x, models=nets, target=0, **every)
    assert exact.standard_error is None and "sampling share" not in exact.checks  # all coalitions
    found = layerlens.model_uncertainty(nets[0], x, models=nets, target=0, method="shapley_sampling", options=options)
    raw = found.deviation.square() + 24 * found.standard_error.square()
    true = exact.deviation.square()
    assert float(raw.sum()) > 1.15 * float(true.sum())
    assert float(found.deviation.square().sum()) == pytest.approx(float(true.sum()), rel=0.15)


def test_intervals_hold_another_model_of_a_bayesian_linear_regression():
    """Weights from a normal posterior: w_i x_i of a new draw lies in the interval in 90 % of cases."""
    torch.manual_seed(0)
    mean, deviation, x = normal(8).double(), normal(8, seed=1).double().abs() + 0.1, normal(1, 8, seed=2).double()
    held = []
    for seed in range(40):
        weights = mean + deviation * normal(11, 8, seed=3 + seed).double()
        nets = []
        for row in weights[:10]:
            nets.append(nn.Linear(8, 1, bias=False).double())
            nets[-1].weight.data = row[None].clone()
        found = layerlens.model_uncertainty(nets[0], x, models=nets, method="input_x_gradient")
        low, high = found.interval(0.9)
        another = weights[10] * x
        held.append(((low <= another) & (another <= high)).double().mean().item())
    assert sum(held) / len(held) == pytest.approx(0.9, abs=0.05)


def state_of(net):
    return (
        [one.clone() for one in [*net.parameters(), *net.buffers()]],
        [one.data_ptr() for one in [*net.parameters(), *net.buffers()]],
        [(one.requires_grad, one.grad) for one in net.parameters()],
        [one.training for one in net.modules()],
        [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in net.modules()],
        torch.get_rng_state(),
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return all(map(same, one, other)) if isinstance(one, (list, tuple)) else one == other


@pytest.mark.parametrize("stop", [None, "error", "interrupt"])
def test_the_model_is_as_it_was(stop):
    net = picture_net().train()
    net[1](normal(4, 6, 3, 3))
    before, calls = state_of(net), []

    def forward(model, x):
        calls.append(x)
        assert not any(one.training for one in model.modules())
        if len(calls) == 14 and stop == "error":
            raise RuntimeError("no more")
        if len(calls) == 14 and stop == "interrupt":
            signal.raise_signal(signal.SIGINT)
        return model(x)

    x = normal(2, 2, 6, 6)
    given = x.clone()

    def run():
        layerlens.model_uncertainty(net, x, target=0, method="smooth_grad", options={"samples": 2}, forward=forward)

    if stop is None:
        run()
    else:
        with pytest.raises(RuntimeError if stop == "error" else KeyboardInterrupt):
            run()
    assert len(calls) >= 14 and same(before, state_of(net)) and torch.equal(x, given)


def test_errors_say_what_else_to_do():
    net, x = nn.Linear(3, 2), normal(1, 3)
    with pytest.raises(InputError, match=r'no call of dropout was seen in a pass of Linear.*models=\[...\].*"laplace"'):
        layerlens.model_uncertainty(net, x)
    with pytest.raises(OptionError, match="two or more; got 1"):
        layerlens.model_uncertainty(net, x, models=[net])
    with pytest.raises(OptionError, match="a list of models is taken whole"):
        layerlens.model_uncertainty(net, x, models=[net, net], draws=3)
    with pytest.raises(OptionError, match="models must be"):
        layerlens.model_uncertainty(net, x, models=[net, 3])
    with pytest.raises(OptionError, match="needs the data the model was trained on"):
        layerlens.model_uncertainty(net, x, models="laplace")
    with pytest.raises(OptionError, match='belong to models="laplace"'):
        layerlens.model_uncertainty(net, x, models=[net, net], training=[])
    with pytest.raises(OptionError, match="auto has no option 'samples'"):
        layerlens.model_uncertainty(net, x, models=[net, net], options={"samples": 3})
    with pytest.raises(InputError, match="values of different shapes"):
        several = [nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2)) for width in (4, 5)]
        layerlens.model_uncertainty(several[0], x, models=several, method="gradient", where="0")

    class Noisy(nn.Module):
        def forward(self, x):
            return functional.dropout(x, 0.5, self.training) + torch.rand_like(x)

    with pytest.raises(InputError, match="draws numbers of its own, or mixes samples"):
        layerlens.model_uncertainty(Noisy(), x, target=0, method="gradient")
    attention = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.2, batch_first=True)
    with pytest.warns(UserWarning, match="dropout inside of self_attn stays off"):
        layerlens.model_uncertainty(
            attention, normal(1, 3, 4), target=lambda output: output[:, 0, 0], method="input_x_gradient", draws=2
        )


class Total(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(P)

    def forward(self, x):
        return self.dropout(x).square().sum()


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout, self.head = nn.Dropout(P), nn.Linear(3, 2)

    def forward(self, temperature, x):
        return self.head(self.dropout(x)) / temperature


def test_dropout_of_one_value_and_next_to_a_number():
    x = normal(2, 3)
    with pytest.warns(UserWarning, match="one value for the batch"):
        found = layerlens.model_uncertainty(Total(), x, method="gradient", draws=3)
    kept = found.tensor[0] / x[0] / (found.tensor[1] / x[1])
    torch.testing.assert_close(kept[~kept.isnan()], torch.ones(int((~kept.isnan()).sum())))  # the same units of both
    net = Tempered()
    run = WithDropout(None, net, 0)
    run.prepare(net, as_inputs((torch.tensor(2.0), x)))
    one = run(net, torch.tensor(2.0), x[:1])
    torch.testing.assert_close(run(net, torch.tensor(2.0), x[[0, 0]]), one[[0, 0]])


def test_models_that_do_not_fit_and_options_of_its_own():
    x = normal(2, 3)
    net = nn.Sequential(nn.Dropout(P), nn.Linear(3, 4))

    def run(**given):
        layerlens.model_uncertainty(net, x, **{"target": 0, "method": "gradient", **given})

    with pytest.raises(InputError, match=r"model 1 of models= has shape \(5,\) for a sample.*itself \(4,\)"):
        run(models=[net, nn.Linear(3, 5)])
    for name, value in (("target", 1), ("where", "1"), ("method", "rise")):
        with pytest.raises(OptionError, match=f"{name}= is an option of model_uncertainty itself"):
            run(options={name: value})
    with pytest.raises(OptionError, match="seed must be a whole number, got None"):
        run(method="smooth_grad", options={"seed": None})
    with pytest.raises(OptionError, match="draws must be a whole number of at least 2, got 1"):
        run(draws=1)
    with pytest.raises(OptionError, match="a list of modules; got Sequential"):
        run(models=net)

    class Pairs(nn.Module):
        def forward(self, x):
            return net(x.view(2, 3))

    with pytest.raises(InputError, match=r"Pairs does not run on one sample \(.*invalid for input of size 3"):
        layerlens.model_uncertainty(Pairs(), x, target=0, method="gradient")


def test_laplace_says_what_to_install(monkeypatch):
    import importlib

    real = importlib.import_module

    def without(name, *args):
        if name == "laplace":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    data = layerlens.Data(normal(4, 3), labels=[0, 1, 0, 1])
    with pytest.raises(MissingPackage, match=r"pip install 'layerlens-torch\[laplace\]'"):
        layerlens.model_uncertainty(nn.Linear(3, 2), normal(1, 3), models="laplace", training=data)


def test_it_draws_is_saved_and_says_what_is_settled(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1))
    found = layerlens.model_uncertainty(net, normal(1, 5), method="input_x_gradient", draws=6)
    low, high = found.interval()
    assert torch.equal(found.settled(), (low > 0) | (high < 0))
    unsettled = int((~found.settled()).sum())
    assert sum(bool(bar.get_hatch()) for bar in found.plot("bars").axes[0].patches) == unsettled > 0
    assert dict(found.summary())["settled"].startswith(f"the sign of {5 - unsettled} of 5 values")
    again = layerlens.load(found.save(tmp_path / "found"))
    assert type(again) is type(found) and torch.equal(again.deviation, found.deviation)
    assert type(found - dataclasses.replace(found)).__name__ == "Attribution"
