"""A table with a column of ids, one for each sample, beside numbers: its embedding is one feature."""

import warnings

import pytest
import torch
from torch import nn

import layerlens
from layerlens.analyzers.saliency.saliency import known_methods
from layerlens.errors import InputError
from tests.cases import normal

EXACT = {
    "input_x_gradient", "integrated_gradients", "deep_lift", "guided_ig", "feature_ablation", "occlusion",
    "kernel_shap", "shapley_sampling", "relevance",
}  # fmt: skip


class Table(nn.Module):
    """The sum of a linear part of the numbers and an embedding of the id."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.fc = nn.Embedding(5, 2), nn.Linear(6, 2)

    def forward(self, numbers, kind):
        return self.fc(numbers) + self.kind(kind)


@pytest.fixture
def table():
    return Table().double(), {"numbers": normal(4, 6).double(), "kind": torch.tensor([0, 1, 2, 4])}


@pytest.mark.parametrize("method", sorted(EXACT))
def test_a_linear_model_gets_its_terms(table, method):
    model, x = table
    found = layerlens.saliency(model, x, target=1, method=method).values
    torch.testing.assert_close(found["numbers"], (model.fc.weight[1] * x["numbers"]).detach())
    torch.testing.assert_close(found["kind"], model.kind.weight[x["kind"], 1].detach())


REFUSED = {"leave_one_out": "takes token ids", "extremal_mask": "needs one image"}


@pytest.mark.parametrize(
    "method",
    [one.name for one in known_methods().values() if one.family in ("gradient", "perturbation")],
)
def test_the_id_alone(method):
    model, ids = nn.Sequential(nn.Embedding(5, 3), nn.ReLU()), torch.tensor([1, 2, 3])
    if method in REFUSED:
        with pytest.raises(InputError, match=REFUSED[method]):
            layerlens.saliency(model, ids, target=1, method=method)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a unit may be off
        found = layerlens.saliency(model, ids, target=1, method=method)
    assert found.tensor.shape == (3,) and found.tensor.isfinite().all()


def test_labels_of_features_may_be_one_for_each_sample(table):
    model, x = table
    labels = {"numbers": torch.arange(6), "kind": torch.full((4,), 6)}  # 0 would join it to the first number
    found = layerlens.saliency(model, x, target=1, method="feature_ablation", features=labels).values["kind"]
    torch.testing.assert_close(found, model.kind.weight[x["kind"], 1].detach())


def test_faithfulness_and_groups(table):
    model, x = table
    board = layerlens.evaluate(model, x, ["feature_ablation", "gradient"], target=1)
    assert board.methods[0] == "feature_ablation"
    data = {"numbers": normal(12, 6).double(), "kind": torch.arange(12) % 5}
    found = layerlens.compare_groups(model, data, [0, 1] * 6, target=1, permutations=19, method="input_x_gradient")
    assert found.attribution("kind").p.shape == (1, 1) and found.attribution("numbers").p.shape == (1, 6)
