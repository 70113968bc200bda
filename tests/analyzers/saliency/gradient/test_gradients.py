import pytest
import torch
from torch import nn

from layerlens.analyzers.saliency import gradient, input_x_gradient
from layerlens.errors import InputError, TargetError
from layerlens.inputs.inputs import as_inputs
from tests.cases import CASES, normal


def double(x):
    return as_inputs(x).map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


def values_of(result):
    return result.values if isinstance(result.values, dict) else {"": result.values}


@pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "hf_vit", "nested"])
def test_gradient_is_the_diagonal_of_the_dense_jacobian(name):
    case = CASES[name]
    model, given = case.build().double(), double(case.example())
    result = gradient(model, given, target=case.target)
    ((key, x),) = given.floating().items()

    def scores(x):
        output = given.replace({key: x}).run(model)
        if callable(case.target):
            return case.target(output)
        logits = output if isinstance(output, torch.Tensor) else output.logits
        classes = torch.as_tensor(case.target).expand(2)
        return logits[torch.arange(2), classes]

    jacobian = torch.autograd.functional.jacobian(scores, x)  # (2, 2, ...)
    dense = torch.stack([jacobian[k, k] for k in range(2)])
    torch.testing.assert_close(result.tensor, dense, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(result.score, scores(x).detach())
    torch.testing.assert_close(
        input_x_gradient(model, given, target=case.target).tensor, dense * x, rtol=1e-9, atol=1e-12
    )


def test_gradient_agrees_with_captum():
    from captum.attr import InputXGradient, Saliency

    case = CASES["depthwise"]
    model, x = case.build().double(), case.example().double()
    start = x.clone().requires_grad_()
    torch.testing.assert_close(gradient(model, x, target=3).tensor, Saliency(model).attribute(start, 3, abs=False))
    expected = InputXGradient(model).attribute(start, 3).detach()
    torch.testing.assert_close(input_x_gradient(model, x, target=3).tensor, expected)


def test_magnitude_is_the_absolute_value_and_unsigned():
    case = CASES["cnn"]
    plain, size = (gradient(case.build(), case.example(), target=2, magnitude=m) for m in (False, True))
    assert plain.signed and not size.signed and size.settings == {"magnitude": True}
    assert torch.equal(size.tensor, plain.tensor.abs())
    assert plain.units == "score per unit of input" and plain.axes == ("batch", "channel", "height", "width")


def test_gradients_start_at_the_embedding_of_token_ids():
    case = CASES["encoder"]
    model, ids = case.build().double(), case.example()["ids"]
    embedded = model.embedding(ids).detach().requires_grad_()
    hidden = model.encoder(embedded + model.position_embeddings[:, : ids.shape[1]]).mean(dim=1)
    (slope,) = torch.autograd.grad(model.fc(hidden)[:, 1].sum(), embedded)
    result = input_x_gradient(model, {"ids": ids}, target=1)
    torch.testing.assert_close(result.tensor, (slope * embedded).sum(dim=-1).detach())
    assert result.axes == ("batch", "token") and torch.equal(result.inputs, ids)


def test_an_input_that_the_score_does_not_use_gets_zero():
    class OnlyFirst(nn.Module):
        def forward(self, a, b):
            return a**2

    result = gradient(OnlyFirst(), {"a": normal(2, 3), "b": normal(2, 4)}, target=0)
    assert result.values["b"].shape == (2, 4) and not result.values["b"].any()
    assert torch.equal(result.values["a"][:, 0], 2 * normal(2, 3)[:, 0])


@pytest.mark.parametrize("cut", [lambda out: out.argmax(dim=1).double(), lambda out: out[:, 0].detach()])
def test_a_score_without_gradient_is_an_error(cut):
    with pytest.raises(TargetError, match=r"no gradient flows from the score .* cannot be differentiated"):
        gradient(CASES["mlp"].build(), CASES["mlp"].example(), target=cut)


def test_a_flat_score_warns_and_names_the_sample():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    net[0].weight.data.fill_(1.0)
    with pytest.warns(UserWarning, match=r"gradient: the values of sample\(s\) 1 are zero everywhere"):
        result = gradient(net, torch.tensor([[1.0], [-1.0]]))
    assert result.tensor.tolist() == [[1.0], [0.0]]


def test_integers_without_an_embedding_are_an_error():
    with pytest.raises(InputError, match=r"it runs with x\.float\(\)"):
        gradient(nn.Linear(3, 1), torch.ones(1, 3, dtype=torch.long))


def test_a_model_that_writes_into_its_input_leaves_the_callers_alone():
    class Writes(nn.Module):
        def forward(self, x):
            x.mul_(3.0)
            return x

    x = normal(2, 3)
    result = gradient(Writes(), x, target=0)
    assert torch.equal(x, normal(2, 3)) and result.tensor[0].tolist() == [3.0, 0.0, 0.0]


def test_a_model_that_spoils_its_own_backward_pass_is_named():
    class Spoils(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(3, 2)

        def forward(self, x):
            y = self.f(x).exp()
            return y + y.add_(1)

    from layerlens import relevance

    for analyzer in (gradient, relevance):
        with pytest.raises(InputError, match=r"Spoils cannot be differentiated, by layerlens or by loss.backward"):
            analyzer(Spoils(), torch.ones(1, 3), target=0)


def test_a_list_of_classes_must_fit_the_batch():
    for classes in ([0, 1, 2, 3], [0]):
        with pytest.raises(TargetError, match=r"a list of \d for a batch of 2"):
            gradient(nn.Linear(3, 4), torch.ones(2, 3), target=classes)
