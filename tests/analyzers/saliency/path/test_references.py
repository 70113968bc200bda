"""Expected gradients and DeepSHAP against means of their parts and closed forms."""

import pytest
import torch
from torch import nn

from layerlens.analyzers.saliency import deep_lift, integrated_gradients, saliency
from layerlens.analyzers.saliency.deeplift.deep_shap import deep_shap
from layerlens.analyzers.saliency.path.gradient_shap import gradient_shap
from layerlens.errors import OptionError
from layerlens.inputs.batches import Data
from layerlens.inputs.inputs import as_inputs
from tests.cases import CASES, normal


class Product(nn.Module):
    """S = x0 x1 + x2^2."""

    def forward(self, x):
        return (x[:, 0] * x[:, 1] + x[:, 2].square()).unsqueeze(1)


X = torch.tensor([[2.0, -1.0, 3.0], [0.5, 4.0, 1.0]]).double()
REFERENCES = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, -1.0], [0.5, 0.5, 0.5]]).double()


def closed(x, start):
    """Integrated gradients of the product: each gets its difference times the other's mean on the way."""
    first = (x[:, 0] - start[0]) * (x[:, 1] + start[1]) / 2
    second = (x[:, 1] - start[1]) * (x[:, 0] + start[0]) / 2
    return torch.stack([first, second, x[:, 2].square() - start[2] ** 2], dim=1)


def test_expected_gradients_in_closed_form():
    expected = torch.stack([closed(X, start) for start in REFERENCES]).mean(dim=0)
    found = gradient_shap(Product(), X, baselines=REFERENCES, samples=6000)
    torch.testing.assert_close(found.tensor, expected, rtol=1e-3, atol=1e-3)
    assert float(found.checks["completeness gap"].max()) < 1e-3
    few = gradient_shap(Product(), X, baselines=REFERENCES, samples=60)
    assert bool(((few.tensor - expected).abs() < 4 * few.standard_error + 1e-9).all())
    assert few.settings["samples"] == 60
    assert gradient_shap(Product(), X, baselines=REFERENCES, samples=1).settings["samples"] == 3


def test_one_reference_is_integrated_gradients():
    model, x = CASES["cnn"].build().double(), CASES["cnn"].example().double()
    found = gradient_shap(model, x, target=1, baselines=["zero"], samples=2000)
    exact = integrated_gradients(model, x, target=1, steps=200, tolerance=1.0)
    assert float((found.tensor - exact.tensor).norm() / exact.tensor.norm()) < 0.01


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_deep_shap_is_the_mean_of_deep_lift_and_of_captum():
    from captum.attr import DeepLiftShap

    torch.manual_seed(0)
    model, x, starts = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), X.float(), REFERENCES.float()
    found = deep_shap(model, x, target=1, baselines=starts)
    parts = torch.stack([deep_lift(model, x, target=1, baseline=start).tensor for start in starts])
    torch.testing.assert_close(found.tensor, parts.mean(dim=0))
    torch.testing.assert_close(found.standard_error, parts.double().std(dim=0) / 3**0.5)
    torch.testing.assert_close(found.tensor, DeepLiftShap(model).attribute(x, starts, target=1), rtol=1e-4, atol=1e-5)
    assert float(found.checks["completeness gap"].max()) < 1e-4


def test_points_of_several_references_run_at_once():
    model, x = CASES["mlp"].build().double(), CASES["mlp"].example().double()
    starts = torch.stack([x[0] * 0, x[0] * 0 + 1, -x[1]])
    one = gradient_shap(model, x, target=1, baselines=starts, samples=12, batch_size=1)
    for size in (2, 5, 100):
        found = gradient_shap(model, x, target=1, baselines=starts, samples=12, batch_size=size)
        torch.testing.assert_close(found.tensor, one.tensor)
        torch.testing.assert_close(found.standard_error, one.standard_error)
        torch.testing.assert_close(found.checks["completeness gap"], one.checks["completeness gap"])
    apart, together = (gradient_shap(model, x, baselines=starts[:1], samples=9, batch_size=n) for n in (1, 100))
    torch.testing.assert_close(apart.standard_error, together.standard_error)


@pytest.mark.parametrize("method", [gradient_shap, deep_shap])
def test_a_batch_gives_what_its_samples_give_alone_and_a_seed_gives_it_again(method):
    model, x = CASES["mlp"].build().double(), as_inputs(CASES["mlp"].example().double())
    whole = method(model, x, target=1, seed=3)
    for row in (0, 1):
        alone = method(model, x.rows(torch.tensor([row])), target=1, seed=3)
        torch.testing.assert_close(whole.tensor[row], alone.tensor[0])
    assert torch.equal(whole.tensor, method(model, x, target=1, seed=3).tensor)
    assert not torch.equal(whole.tensor, method(model, x, target=1, seed=4).tensor)


def test_several_inputs_and_token_ids():
    case = CASES["two_inputs"]
    names = as_inputs(case.example()).tensors()
    given = {name: torch.stack([value[0] * 0 - 2, value[0] * 0 + 2]) for name, value in names.items()}
    for method in (gradient_shap, deep_shap):
        found = method(case.build(), case.example(), target=case.target, baselines=given)
        assert set(found.values) == set(names)
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 2))
    ids = torch.tensor([[3, 1, 4]])
    found = gradient_shap(net, ids, target=0, baselines=torch.tensor([[0, 0, 0], [5, 5, 5]]), samples=8)
    start = torch.stack([net[0](torch.full((3,), k)) for k in (0, 5)]).mean(dim=0)
    expected = ((net[0](ids)[0] - start) * net[2].weight[0].reshape(3, 4)).sum(dim=1)
    torch.testing.assert_close(found.tensor[0], expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [gradient_shap, deep_shap])
def test_what_does_not_fit_is_told(method):
    with pytest.raises(OptionError, match="no references"):
        method(Product(), X, baselines=[])
    with pytest.raises(OptionError, match="does not broadcast"):
        method(Product(), X, baselines=torch.zeros(2, 7))
    with pytest.raises(OptionError, match="cannot read references"):
        method(Product(), X, baselines="zero")
    with pytest.raises(OptionError, match="seed"):
        method(Product(), X, seed=0.5)


class Weighted(nn.Module):
    def forward(self, a, b):
        return ((a**2).sum(dim=1) * b.sum(dim=1)).unsqueeze(1)


@pytest.mark.parametrize("method", ["gradient_shap", "deep_shap", "kernel_shap"])
def test_references_from_a_data_set_or_a_function_are_those_of_the_array(method):
    data = torch.utils.data
    a, b, many_a, many_b = (normal(n, 3, seed=seed) for n, seed in ((2, 0), (2, 1), (5, 2), (5, 3)))
    net, model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), Weighted()
    expected = saliency(net, a, target=0, method=method, baselines=many_a)
    for given in (
        data.TensorDataset(many_a),
        data.DataLoader(data.TensorDataset(many_a, torch.arange(5)), batch_size=2),
        Data(many_a),
        lambda: many_a,
        lambda inputs: many_a + 0 * inputs.sum(),
        lambda inputs: (many_a,),
    ):
        found = saliency(net, a, target=0, method=method, baselines=given)
        torch.testing.assert_close(found.tensor, expected.tensor)
        assert found.settings["baselines"].startswith("given (5")
    expected = saliency(model, (a, b), method=method, baselines={"a": many_a, "b": many_b})
    for given in (Data({"a": many_a, "b": many_b}), lambda inputs: (many_a + 0 * inputs[0][:1], many_b)):
        found = saliency(model, (a, b), method=method, baselines=given)
        for name, values in expected.values.items():
            torch.testing.assert_close(found.values[name], values)


def test_draws_of_a_function_are_seeded_and_a_large_data_set_is_refused():
    net, x, state = nn.Linear(3, 2), normal(2, 3), torch.get_rng_state()

    def drawn(seed):
        given = saliency(
            net, x, target=0, method="gradient_shap", baselines=lambda inputs: torch.rand(4, 3), samples=4, seed=seed
        )
        return given.tensor

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    assert torch.equal(torch.get_rng_state(), state)
    many = torch.utils.data.TensorDataset(torch.zeros(1001, 3))
    with pytest.raises(OptionError, match=r"more than 1000 samples.*Subset"):
        saliency(net, x, target=0, method="deep_shap", baselines=many)


def test_a_function_without_a_signature_is_refused():
    with pytest.raises(OptionError, match=r"does not say whether it takes the inputs: give lambda x: \.\.\. or lambda"):
        gradient_shap(Product(), X, baselines=torch.zeros_like)


class Table(torch.utils.data.Dataset):
    """Samples as dicts."""

    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, row):
        return {name: column[row] for name, column in self.columns.items()}


class Masked(nn.Module):
    def forward(self, x, mask):
        return (x.square() * mask).sum(dim=1, keepdim=True)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("table", [False, True])
def test_a_data_set_with_masks_and_held_inputs(named, table):
    """They stay those of x; inputs go by position, or by the names of parameters."""
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    x = {"x": X, "mask": mask} if named else (X, mask)
    other = torch.zeros(3, 3, dtype=torch.int64)
    data = Table(x=REFERENCES, mask=other) if table else torch.utils.data.TensorDataset(REFERENCES, other)
    alone = saliency(Masked(), x, method="gradient_shap", baselines={"x": REFERENCES}, target=0)
    assert torch.equal(saliency(Masked(), x, method="gradient_shap", baselines=data, target=0).tensor, alone.tensor)
    floats = {"x": X, "mask": mask.double()} if named else (X, mask.double())
    held = saliency(Masked(), floats, method="gradient_shap", baselines=data, target=0, hold="mask")
    torch.testing.assert_close(held.tensor, alone.tensor)


def test_a_data_set_of_the_inputs_is_not_one_of_a_layer():
    class Layered(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.Tanh()

        def forward(self, x, mask):
            return (self.act(x) * mask).sum(dim=1, keepdim=True)

    data = torch.utils.data.TensorDataset(REFERENCES, torch.ones(3, 3).double())
    with pytest.raises(OptionError, match=r"TensorDataset of inputs 0, 1, and references of act are needed"):
        saliency(Layered(), (X, torch.ones(2, 3).double()), method="gradient_shap", where="act", baselines=data)
