"""Values that are no numbers, seeds that are none, inputs that say nothing: an error or a warning, never silence."""

import inspect
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import layerlens
from layerlens.analyzers.saliency.saliency import known_methods
from layerlens.errors import InputError, LayerLensError, OptionError, TargetError
from tests.cases import normal

EVERY = list(known_methods().values())


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def having(option):
    return pytest.mark.parametrize(
        "method",
        [one for one in EVERY if option in inspect.signature(one.function).parameters and one.needs != "token ids"],
        ids=lambda method: method.name,
    )


FEW = {"steps": 4, "max_steps": 4, "samples": 8, "draws": 2, "tolerance": 1e9}


def few(method, **more):
    """Options that make a method quick, those that it has."""
    parameters = inspect.signature(method.function).parameters
    unused = {"tolerance"} if "until" in parameters else set()  # there it is an old name
    return {name: value for name, value in (FEW | more).items() if name in parameters.keys() - unused}


def ask(method, x, model=None, **options):
    where = {"where": "0"} if "a layer (where=)" in method.needs else {}
    where |= {"unit": 0} if "unit=" in method.needs else {}
    return layerlens.saliency(net() if model is None else model, x, target=1, method=method.name, **where, **options)


class Direction(nn.Module):
    """Reads the direction of its input, which a zero has none of."""

    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        return self.inner(x / x.flatten(1).norm(dim=1)[:, None, None, None])


@having("seed")
@pytest.mark.parametrize("seed", ["a", 1.5, None, True])
def test_a_seed_is_a_whole_number(method, seed):
    with pytest.raises(OptionError, match=r"seed must be a whole number, got"):
        ask(method, normal(2, 3, 8, 8), seed=seed)


WORD: Any = "a"


@pytest.mark.parametrize(
    "call",
    [
        lambda model, x: layerlens.evaluate(model, x, "gradient", target=1, seed=WORD),
        lambda model, x: layerlens.faithfulness.insertion(model, x, x, target=1, seed=WORD),
        lambda model, x: layerlens.faithfulness.infidelity(model, x, x, target=1, seed=WORD),
        lambda model, x: layerlens.cascading_randomization(model, x, "gradient", target=1, seed=WORD),
        lambda model, x: layerlens.compare_groups(model, x, [0, 1], target=1, seed=WORD),
        lambda model, x: layerlens.explain_errors(model, x, [0, 1], seed=WORD),
        lambda model, x: layerlens.receptive_field(model, x, "0", seed=WORD),
        lambda model, x: layerlens.feature_visualization(model, 1, x.shape[1:], seed=WORD),
    ],
)
def test_a_seed_is_a_whole_number_elsewhere_too(call):
    with pytest.raises(OptionError, match=r"seed must be a whole number, got 'a'"):
        call(net(), normal(2, 3, 8, 8))


@having("baseline")
@pytest.mark.parametrize("value", [float("nan"), torch.full((3, 8, 8), torch.inf)], ids=["nan", "inf"])
def test_a_baseline_is_made_of_numbers(method, value):
    with pytest.raises(OptionError, match="baseline of input '0' holds NaN or infinity"):
        ask(method, normal(2, 3, 8, 8), baseline=value)


@pytest.mark.parametrize(
    "name",
    ["integrated_gradients", "deep_lift", "guided_ig", "layer_conductance", "kernel_shap", "shapley_sampling"],
)
def test_a_baseline_without_a_score_is_no_reference(name):
    method, x = known_methods()[name], normal(2, 3, 8, 8)
    with pytest.raises(TargetError, match=r"of the baseline is not finite for sample\(s\) 0, 1 \(nan\)"):
        if name == "layer_conductance":
            layerlens.saliency(Direction(), x, target=1, method=name, where="inner.0")
        else:
            ask(method, x, model=Direction())
    if name != "layer_conductance":
        quick = few(method, samples=200 if name == "kernel_shap" else 8)
        assert ask(method, x, model=Direction(), baseline="noise", **quick).tensor.isfinite().all()


def test_a_gradient_that_is_none_is_told():
    class Root(nn.Module):
        def forward(self, x):
            return (x - 1).sqrt()

    with pytest.warns(UserWarning, match=r"gradient: the values of sample\(s\) 1 hold NaN or infinity"):
        found = layerlens.saliency(Root(), torch.tensor([[2.0], [1.0]]), target=0, method="gradient")
    assert found.tensor.isinf().tolist() == [[False], [True]]


def test_an_infinite_input_is_told_from_an_overflow_inside():
    x = normal(2, 3, 8, 8)
    x[1, 0, 0, 0] = torch.inf
    with pytest.raises(TargetError, match="Input '0' itself holds infinite values"):
        layerlens.saliency(net(), x, target=1, method="gradient")


@pytest.mark.parametrize("method", [one for one in EVERY if one.needs != "token ids"], ids=lambda method: method.name)
def test_a_black_image_has_a_map_or_a_warning(method):
    """A map of zeros never comes without a word."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = ask(method, torch.zeros(2, 3, 8, 8), **few(method, samples=200 if method.name == "kernel_shap" else 8))
    said = " ".join(str(one.message) for one in told)
    empty = found.tensor.flatten(1).eq(0).all(dim=1)
    assert not empty.any() or "zero everywhere" in said


def test_the_same_sample_twice_permutes_into_nothing_and_says_so():
    x = normal(1, 3, 8, 8).expand(2, -1, -1, -1)
    with pytest.warns(UserWarning, match=r"permutation: the values of sample\(s\) 0, 1 are zero everywhere"):
        layerlens.saliency(net(), x, target=1, method="permutation")


@pytest.mark.parametrize("method", ["deep_lift", "deep_shap"])
def test_the_layout_of_the_memory_does_not_matter(method):
    x, references = normal(2, 3, 8, 8), normal(2, 3, 8, 8, seed=1)
    given = {"baseline": references[0]} if method == "deep_lift" else {"baselines": references}
    model = net().double()
    expected = layerlens.saliency(model, x.double(), target=1, method=method, **given).tensor
    turned = x.double().to(memory_format=torch.channels_last)
    torch.testing.assert_close(layerlens.saliency(model, turned, target=1, method=method, **given).tensor, expected)


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.see, self.read = net(), nn.Embedding(9, 3)

    def forward(self, image, ids):
        return self.see(image) + self.read(ids).mean(dim=1)


BOTH = {"image": normal(2, 3, 8, 8), "ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}


def test_a_text_beside_an_image_is_not_blurred_and_that_is_said():
    with pytest.warns(UserWarning, match="input 'ids' has no places next to each other"):
        found = layerlens.saliency(Both(), BOTH, target=1, method="blur_ig", tolerance=1e9, steps=4)
    assert not found.values["ids"].any() and found.values["image"].any()


def test_extremal_masks_name_all_inputs_that_are_too_many():
    with pytest.raises(InputError, match=r"got image .*, ids .*shapley_sampling takes several inputs"):
        layerlens.saliency(Both(), BOTH, target=1, method="extremal_mask")


def test_several_inputs_are_evaluated_beside_a_random_control():
    board = layerlens.evaluate(Both(), BOTH, ["input_x_gradient"], target=1, steps=4)
    assert set(board.methods) == {"input_x_gradient", "random"} and board.controls == ("random",)
    assert board.settings["fills"] == ["zero"]
    assert not layerlens.evaluate(Both(), BOTH, "gradient", target=1, controls=False, steps=2).controls


def test_a_generator_of_images_for_one_input_only():
    with pytest.raises(InputError, match="feature_visualization makes one input, and Both takes more"):
        layerlens.feature_visualization(Both(), 1, (3, 8, 8), steps=1)
    ids = BOTH["ids"][:1]
    made = layerlens.feature_visualization(
        Both(), 1, (3, 8, 8), steps=10, learning_rate=0.5, forward=lambda model, x: model(x, ids.expand(len(x), -1))
    )
    assert made.images.shape == (1, 3, 8, 8)


def test_feature_visualization_in_inference_mode():
    model = net()
    expected = layerlens.feature_visualization(model, 1, (3, 8, 8), steps=4, spread=0.5)
    with torch.inference_mode():
        found = layerlens.feature_visualization(model, 1, (3, 8, 8), steps=4, spread=0.5)
    assert torch.equal(found.images, expected.images)


def test_attention_within_windows_has_no_rollout():
    weights = {"a": torch.rand(8, 2, 4, 4), "b": torch.rand(2, 2, 4, 4)}
    with pytest.raises(LayerLensError, match=r"\(4, 4\) for 2 and 8 rows: attention within windows"):
        layerlens.attention_rollout(layerlens.AttentionWeights("Net", weights, dict.fromkeys(weights, "by hand")))


class Normed(nn.Module):
    """A text whose embeddings go through a LayerNorm, which takes their mean away, or not."""

    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.word, self.norm = nn.Embedding(9, 8), nn.LayerNorm(8) if norm else nn.Identity()
        self.mix, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(torch.relu(self.mix(self.norm(self.word(ids)))).mean(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["gradient", "smooth_grad", "guided_backprop", "deconvnet"])
def test_gradients_that_cancel_over_the_features_of_a_token_are_told(method, dtype):
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with pytest.warns(UserWarning, match=rf"{method}: the values of each token of '0' cancel over the features"):
        found = layerlens.saliency(Normed(True).to(dtype), ids, target=1, method=method)
    layerlens.saliency(Normed(False).to(dtype), ids, target=1, method=method)
    with pytest.warns(UserWarning, match="input_x_gradient: the values of each token"):  # nor the size of it counts
        layerlens.saliency(Normed(True).to(dtype), ids, target=1, method="input_x_gradient")
    layerlens.saliency(Normed(False).to(dtype), ids, target=1, method="input_x_gradient")
    if method in ("gradient", "smooth_grad"):
        sure = layerlens.saliency(Normed(True).to(dtype), ids, target=1, method=method, magnitude=True)
        assert (sure.tensor > 20 * found.tensor.abs()).all()


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, temperature, x):
        return self.head(x) / temperature


@pytest.mark.parametrize("method", ["auto", "gradient", "kernel_shap", "smooth_grad", "rise"])
def test_a_single_number_next_to_the_samples_stays_as_it_is(method):
    net, x = Tempered(), normal(2, 3)
    found = layerlens.saliency(net, (torch.tensor(2.0), x), target=0, method=method)
    alone = layerlens.saliency(net, x, target=0, method=method, forward=lambda model, x: model(torch.tensor(2.0), x))
    torch.testing.assert_close(found.tensor, alone.tensor)


def test_complex_numbers_are_given_as_two():
    class Spectrum(nn.Module):
        def forward(self, x):
            return x.abs()

    x = torch.complex(normal(2, 3), normal(2, 3, seed=1))
    with pytest.raises(InputError, match=r"complex numbers .*view_as_complex\(x\)"):
        layerlens.saliency(Spectrum(), x, target=0)
    lens = layerlens.Lens(Spectrum(), forward=lambda model, x: model(torch.view_as_complex(x)))
    found = lens.saliency(torch.view_as_real(x), target=0, method="gradient").tensor
    torch.testing.assert_close(found[:, 0], torch.view_as_real(x)[:, 0] / x[:, 0].abs()[:, None])
