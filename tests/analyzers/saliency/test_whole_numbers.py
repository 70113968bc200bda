"""Inputs of whole numbers and booleans: methods that need no gradient attribute to them, next to others too."""

import pytest
import torch
from torch import nn

from layerlens import Lens
from layerlens.errors import InputError, OptionError
from tests.cases import normal

WEIGHTS = torch.tensor([1.0, 2.0, 3.0])
EXACT = ("feature_ablation", "occlusion", "shapley_sampling", "kernel_shap", "rise")
WHOLE = {
    "int64": torch.tensor([[2, 5, 1], [1, 0, 4]]),
    "int32": torch.tensor([[2, 5, 1], [1, 0, 4]], dtype=torch.int32),
    "uint8": torch.tensor([[2, 5, 1], [1, 0, 4]], dtype=torch.uint8),
    "bool": torch.tensor([[True, False, True], [True, True, True]]),
}


class Linear(nn.Module):
    def forward(self, x):
        return (x.double() * WEIGHTS).sum(dim=1)


class Mixed(nn.Module):
    def forward(self, x, counts):
        return 2 * x.sum(dim=1) + (counts.float() * torch.tensor([1.0, 10.0])).sum(dim=1)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.rnn(packed)[1][0][0]


class OneHot(nn.Module):
    def forward(self, x, kind):
        return x.sum(dim=1) + (nn.functional.one_hot(kind, 4) * torch.arange(1.0, 5.0)).sum(dim=(1, 2))


class Bytes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.conv(x.float() / 255).relu().mean(dim=(2, 3)))


@pytest.mark.parametrize("method", EXACT)
@pytest.mark.parametrize("kind", WHOLE)
def test_a_linear_score_is_split_exactly(kind, method):
    x = WHOLE[kind]
    before = x.clone()
    found = Lens(Linear()).saliency(x, method=method)
    assert torch.allclose(found.tensor.double(), x.double() * WEIGHTS, atol=1e-5)
    assert torch.equal(x, before) and x.dtype == before.dtype and found.axes == ("batch", "feature")


class Counted(nn.Module):
    def forward(self, x):
        return (x * torch.tensor([1, 2, 3])).sum(dim=1)


@pytest.mark.parametrize("method", EXACT)
def test_numbers_below_zero_are_no_padding_and_whole_scores_are_not_cut_off(method):
    x = torch.tensor([[-3, 1, 2], [4, -5, 6]])
    found = Lens(Counted()).saliency(x, method=method).tensor
    torch.testing.assert_close(found.double(), torch.tensor([[-3.0, 2, 6], [4, -10, 18]]).double(), atol=1e-4, rtol=0)
    if "shap" in method:
        product = Lens(Counted(), forward=lambda model, x: (x[:, 0] * x[:, 1]).clamp(max=1))  # 1 of two
        half = torch.tensor([[0.5, 0.5, 0.0]] * 2).double()
        torch.testing.assert_close(product.saliency(x.abs(), method=method).tensor, half)


def test_samples_with_numbers_below_zero_stay_together():
    x = torch.tensor([[-3, 1, 2], [4, 5, 6]])
    found = Lens(Counted()).saliency(x, method="permutation", draws=1, perm_func=lambda x, labels: x.flip(0))
    assert found.tensor.tolist() == [[-7, -8, -12], [7, 8, 12]]


def test_a_baseline_of_booleans():
    found = Lens(Linear()).saliency(WHOLE["bool"][:1], method="feature_ablation", baseline=True)
    assert torch.allclose(found.tensor, torch.tensor([[0.0, -2.0, 0.0]]).double())


@pytest.mark.parametrize("method", ["permutation", "lime", "sobol"])
def test_other_perturbations_run_too(method):
    assert bool(Lens(Linear()).saliency(WHOLE["int64"], method=method).tensor.isfinite().all())


@pytest.mark.parametrize("method", EXACT[:-1])
def test_next_to_floats_both_have_values(method):
    x, counts = normal(2, 2), torch.tensor([[3, 5], [1, 2]])
    found = Lens(Mixed()).saliency((x, counts), method=method)
    assert torch.allclose(found.values["0"], 2 * x, atol=1e-4)
    assert torch.allclose(found.values["1"].float(), counts * torch.tensor([1.0, 10.0]), atol=1e-4)


def test_gradients_leave_them_as_they_are():
    x, counts = normal(2, 2), torch.tensor([[3, 5], [1, 2]])
    assert torch.equal(Lens(Mixed()).saliency((x, counts), method="gradient").tensor, torch.full((2, 2), 2.0))
    with pytest.raises(InputError, match="a method without gradients, such as feature_ablation"):
        Lens(Linear()).saliency(WHOLE["int64"], method="gradient")


def test_lengths_and_indices_are_held_fixed():
    x, lengths = normal(2, 5, 3), torch.tensor([5, 3])
    torch.manual_seed(0)
    model = Packed()
    found = Lens(model).saliency((x, lengths), method="shapley_sampling", target=0)
    alone = Lens(model, forward=lambda model, x: model(x, lengths[:1].expand(len(x)))).saliency(
        x[:1], method="shapley_sampling", target=0
    )
    assert found.settings["hold"] == "1" and torch.allclose(found.tensor[:1], alone.tensor, atol=1e-6)


def test_a_category_is_removed_to_the_first_one():
    x, kind = normal(2, 2), torch.tensor([[3], [1]])
    found = Lens(OneHot()).saliency((x, kind), method="kernel_shap")
    assert torch.allclose(found.values["1"].float(), kind.float(), atol=1e-5)  # 1, 2, 3, 4 for 0, 1, 2, 3
    with pytest.raises(InputError, match="does not run with other whole numbers in input 1"):
        Lens(OneHot()).saliency((x, kind), method="kernel_shap", baseline={"1": 9})


def test_the_baseline_is_a_whole_number():
    with pytest.raises(OptionError, match="must be of whole numbers, as the input is; got 0"):
        Lens(Linear()).saliency(WHOLE["int64"], method="feature_ablation", baseline=0.5)
    found = Lens(Linear()).saliency(WHOLE["int64"], method="feature_ablation", baseline=2)
    assert torch.equal(found.tensor, (WHOLE["int64"] - 2).double() * WEIGHTS)


@pytest.mark.parametrize("method", ["grad_cam", "score_cam", "layer_cam", "feature_ablation", "rise", "occlusion"])
@pytest.mark.parametrize("baseline", [None, "mean", "blur", "noise"])
def test_pictures_of_bytes(method, baseline):
    if baseline is not None and method.endswith("cam"):
        pytest.skip("a CAM has no baseline")
    torch.manual_seed(0)
    x = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    options = {} if baseline is None else {"baseline": baseline}
    whole = Lens(Bytes()).saliency(x, method=method, target=0, **options)
    assert bool(whole.values.isfinite().all()) and bool((whole.values != 0).any())


def test_a_map_of_bytes_is_that_of_the_same_floats():
    torch.manual_seed(0)
    x, lens = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8), Lens(Bytes())
    for method in ("feature_ablation", "occlusion", "grad_cam"):
        whole, floats = (lens.saliency(one, method=method, target=0).tensor for one in (x, x.float()))
        assert torch.allclose(whole, floats, atol=1e-6)


def test_whole_numbers_are_evaluated_and_varied():
    x, lens = WHOLE["int64"].repeat(2, 1), Lens(Linear())
    board = lens.evaluate(x, ["feature_ablation", "kernel_shap"], controls=False)
    assert board.methods == ("feature_ablation", "kernel_shap")
    indices = lens.sobol(x[:1], ranges=(0, 100), samples=512, replicates=1).column("total order")
    assert torch.allclose(indices, torch.tensor([1, 4, 9]).double() / 14, atol=0.05)
    rows = torch.randint(0, 9, (200, 3))
    assert lens.sobol(rows, samples=64, replicates=1).items == ("feature 0", "feature 1", "feature 2")


class Signed(nn.Module):
    def forward(self, x, flag):
        return torch.where(flag, x.sum(dim=1), -x.sum(dim=1))


@pytest.mark.filterwarnings("ignore:.*are zero everywhere")
def test_one_number_for_each_sample():
    x, flag = normal(3, 2), torch.tensor([True, False, True])
    total = x.sum(dim=1)
    found = Lens(Signed()).saliency((x, flag), method="kernel_shap")
    assert torch.allclose(found.values["1"].float(), total * flag, atol=1e-5)  # half of the way from -total to total
    assert torch.allclose(found.values["0"], -x * ~flag[:, None], atol=1e-5)
    for method in ("feature_ablation", "shapley_sampling", "occlusion", "permutation", "lime", "sobol"):
        assert Lens(Signed()).saliency((x, flag), method=method).values["1"].shape == (3,)
    gain = Lens(Mixed(), forward=lambda model, x, gain: x.sum(dim=1) * gain)
    found = gain.saliency((x, total), method="kernel_shap")  # a floating-point one too
    assert torch.allclose(found.values["1"], total * total / 2, atol=1e-5)


def test_evaluate_compares_methods_on_the_same_inputs():
    x, counts, lens = normal(3, 2), torch.tensor([[3, 5], [1, 2], [2, 2]]), Lens(Mixed())
    board = lens.evaluate((x, counts), ["gradient", "feature_ablation"], controls=False)
    assert set(board.methods) == {"gradient", "feature_ablation"}
    assert lens.evaluate((x, counts), ["feature_ablation"], hold="x", controls=False).methods == ("feature_ablation",)


def test_rise_masks_the_one_input_of_floats():
    class Noisy(nn.Module):
        def forward(self, sample, timestep):
            return (sample * timestep.float()[:, None, None, None]).mean(dim=(1, 2, 3))

    x, step = normal(2, 3, 8, 8), torch.tensor([5, 9])
    assert Lens(Noisy()).saliency((x, step), method="rise").tensor.shape == x.shape
    assert set(Lens(Noisy()).saliency((x, step), method="feature_ablation").values) == {"0", "1"}
