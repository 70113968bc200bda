import itertools

import numpy as np
import pytest
import torch
from torch import nn

import layerlens
from layerlens.analyzers.activation.feature_visualization import feature_visualization
from layerlens.analyzers.activation.feature_visualization.canvas import Canvas
from layerlens.analyzers.activation.feature_visualization.objectives import Objectives, similarity_of_copies
from layerlens.analyzers.activation.feature_visualization.transforms import Transforms, sample_through
from layerlens.errors import OptionError, RecordError, TargetError
from layerlens.targets.target import as_target
from layerlens.targets.units import deep_dream, direction, neuron
from tests.cases import CASES, normal
from tests.snapshot import Snapshot

STILL = {"shift": 0.0, "rotate": 0.0, "zoom": (1.0, 1.0), "noise": 0.0}
CPU = torch.device("cpu")


def canvas(shape, axes=None, kind="fourier", decay=1.0, decorrelate=False, bounds=None, spread=1.0):
    return Canvas(
        shape, axes, kind, decay=decay, decorrelate=decorrelate, bounds=bounds, spread=spread, dtype=torch.float64,
        device=CPU,
    )  # fmt: skip


def drawn(one, count=1):
    generator = torch.Generator().manual_seed(0)
    return one.draw(torch.stack([one.start(generator) for _ in range(count)]))


# -- the canvas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 9, 14), (1, 33), (1, 6, 7, 8)])
@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_the_values_have_the_spread_that_was_asked_for(shape, decay):
    values = drawn(canvas(shape, decay=decay, spread=0.5), 600)
    # the mean of an image is one more coefficient, so the spread is that over images, at every place
    assert float(values.square().mean().sqrt()) == pytest.approx(0.5, rel=0.05)


def test_the_spectrum_falls_as_asked():
    values = drawn(canvas((1, 32, 32), decay=1.25), 400)[:, 0]
    power = np.abs(np.fft.fft2(values.numpy())) ** 2
    rms = np.sqrt(power.mean(axis=0))
    for one, other in itertools.pairwise((1, 2, 4, 8)):
        assert rms[one, 0] / rms[other, 0] == pytest.approx(2**1.25, rel=0.25)
        assert rms[0, one] / rms[0, other] == pytest.approx(2**1.25, rel=0.25)


def test_colours_are_correlated_as_in_photographs():
    values = drawn(canvas((3, 16, 16), decorrelate=True), 50).movedim(1, 0).flatten(1)
    found = np.corrcoef(values.numpy())
    assert found[0, 1] > 0.8 and found[1, 2] > 0.8 and found[0, 2] > 0.7
    other = np.corrcoef(drawn(canvas((3, 16, 16)), 50).movedim(1, 0).flatten(1).numpy())
    assert abs(other[0, 1]) < 0.2


def test_axes_are_laid_out_as_the_model_takes_them():
    one = canvas((20, 3), ("time", "feature"))
    values = drawn(one, 2)
    assert values.shape == (2, 3, 20) and one.to_input_axes(values).shape == (2, 20, 3)
    assert torch.equal(one.to_input_axes(values)[1, :, 2], values[1, 2])
    image = canvas((6, 8, 3), ("height", "width", "channel"))
    assert image.to_input_axes(drawn(image)).shape == (1, 6, 8, 3)
    assert canvas((5,), kind="auto").kind == "plain" and canvas((100, 1, 1), kind="auto").kind == "plain"
    assert canvas((1, 8, 8), kind="auto").kind == "fourier"


# -- transformations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 9), (2, 3, 8, 9), (2, 1, 5, 6, 7)])
def test_nothing_is_moved_by_the_map_that_does_nothing(shape):
    values, places = normal(*shape).double(), len(shape) - 2
    maps = torch.eye(places, places + 1).double().expand(2, places, places + 1)
    assert torch.allclose(sample_through(values, maps, places), values, atol=1e-12)
    generators = [torch.Generator().manual_seed(k) for k in range(2)]
    assert torch.allclose(Transforms(0, 0, (1, 1), 0)(values, generators, places, 1.0), values, atol=1e-12)


def test_a_quarter_turn_a_shift_and_a_zoom():
    values = normal(1, 2, 8, 8).double()
    turn = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]]).double()
    assert torch.allclose(sample_through(values, turn, 2), torch.rot90(values, 1, (2, 3)), atol=1e-12)
    shift = torch.tensor([[[1.0, 0.0, 2 * 3 / 8], [0.0, 1.0, 0.0]]]).double()  # three columns of eight
    assert torch.allclose(sample_through(values, shift, 2)[..., :5], values[..., 3:], atol=1e-12)
    assert torch.allclose(
        sample_through(values, shift, 2)[..., 5:], values[..., [7, 6, 5]], atol=1e-12
    )  # its mirror image
    series = torch.arange(8.0).double().reshape(1, 1, 8)
    magnified = sample_through(series, torch.tensor([[[0.5, 0.0]]]).double(), 1)
    assert torch.allclose(magnified[0, 0], torch.arange(8).double() * 0.5 + 1.75, atol=1e-12)


def test_the_random_maps_stay_within_what_was_asked():
    transforms, generator = Transforms(0.25, 30, (0.5, 2.0), 0.0), torch.Generator().manual_seed(0)
    maps = torch.stack([transforms.random_map(2, generator) for _ in range(500)])
    zoom = 1 / torch.linalg.det(maps[:, :, :2]).sqrt()
    angle = torch.atan2(maps[:, 1, 0], maps[:, 0, 0]).rad2deg()
    assert 0.5 <= float(zoom.min()) < 0.53 and 1.9 < float(zoom.max()) <= 2
    assert 28 < float(angle.max()) <= 30 and -30 <= float(angle.min()) < -28
    assert 0.47 < float(maps[:, :, 2].abs().max()) <= 0.5  # in halves of the length
    assert 0.4 < float((zoom < 1).double().mean()) < 0.6  # as often smaller as larger


# -- what is found -----------------------------------------------------------------------------------------------------


def test_a_linear_score_is_raised_to_its_maximum():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False)).double()
    made = feature_visualization(net, 1, (1, 4, 4), bounds=(-2, 3), parametrization="plain", steps=400, **STILL)
    best = torch.where(net[1].weight[1] > 0, 3.0, -2.0).double()
    assert float(made.score) > 0.97 * float(best @ net[1].weight[1].detach())
    assert made.images.amin() >= -2 and made.images.amax() <= 3
    assert torch.equal(made.images.flatten() > 0.5, best > 0.5)


@pytest.mark.parametrize("kind", ["plain", "fourier"])
def test_a_direction_with_a_penalty_has_a_closed_form(kind):
    """max of v . W x - l2/2 mean(x^2) is x = n W^T v / l2."""
    net = nn.Linear(12, 5, bias=False).double()
    vector = normal(5, seed=4).double()
    made = feature_visualization(
        net, direction("", vector), (12,), axes=("length",), bounds=None, parametrization=kind, l2=4.0, steps=1500,
        decay=0.5, **STILL,
    )  # fmt: skip
    expected = 12 * (vector @ net.weight.detach()) / 4
    assert torch.allclose(made.images[0], expected, atol=0.02 * float(expected.abs().max()))


def test_a_neuron_changes_what_it_sees_and_nothing_else():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Conv2d(2, 2, 3, padding=1)).double()
    target = neuron("2", 1, place=(4, 4))
    made = feature_visualization(
        net, target, (1, 12, 12), bounds=None, parametrization="plain", steps=3, spread=1.0, **STILL
    )
    start = canvas((1, 12, 12), kind="plain").start(torch.Generator().manual_seed(0))
    changed = (made.images[0] - start).abs()[0] > 1e-9
    expected = torch.zeros(12, 12, dtype=torch.bool)
    expected[2:7, 2:7] = True
    assert torch.equal(changed, expected)


def test_a_direction_at_a_place_of_one_sample_behind_batch_norm():
    x, vector = normal(1, 4, 6, 5).double().requires_grad_(), normal(4, seed=2).double()
    output = nn.BatchNorm2d(4).double().eval()(x)
    for target in (direction("", vector, place=(2, 3)), direction("", vector, place=(2, 3), cosine=1.0)):
        score = target(output, at=("", 0))
        found = torch.autograd.grad(score.sum(), x, retain_graph=True)[0]
        elsewhere = found.clone()
        elsewhere[:, :, 2, 3] = 0
        assert not bool(elsewhere.any()) and bool(found.any())
    along = output[0, :, 2, 3].detach()
    cosine = (along @ vector / along.norm() / vector.norm()).clamp_min(0.1)
    assert float(score.detach()) == pytest.approx(float(along @ vector * cosine), abs=1e-12)


def test_the_picture_survives_transformations():
    """A score of single pixels is lost under shifts; the picture that is made for it under shifts keeps it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 4, 5, padding=2)).double()
    target = neuron("2", 3)
    still = feature_visualization(net, target, (1, 24, 24), steps=80, **{**STILL, "shift": 0.2, "noise": 0.0})
    assert float(still.checks["transformed"]) > float(still.checks["noise"])
    assert float(still.curve[0, -10:].mean()) > float(still.curve[0, :10].mean())


def test_targets_in_one_batch_are_as_alone():
    model = CASES["cnn"].build().double()
    shape = CASES["cnn"].example().shape[1:]
    layer = next(path for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
    targets = [0, neuron(layer, 1), deep_dream(layer), lambda output: output[:, 1] - output[:, 0]]
    options = {"steps": 5, "count": 2, "seed": 3}
    whole = feature_visualization(model, targets, shape, **options)
    assert whole.targets[:4] == ("class 0", "class 0", f"unit 1 of {layer}", f"unit 1 of {layer}")
    for batch_size in (1, 3):
        parts = feature_visualization(model, targets, shape, batch_size=batch_size, **options)
        assert torch.allclose(parts.images, whole.images, atol=1e-10)
    for index, target in enumerate(targets):
        alone = feature_visualization(model, target, shape, **options)
        assert torch.allclose(alone.images, whole.images[2 * index : 2 * index + 2], atol=1e-10)
        assert torch.allclose(alone.score, whole.score[2 * index : 2 * index + 2], atol=1e-10)
    assert not torch.allclose(whole.images[0], whole.images[1])
    again = feature_visualization(model, targets, shape, **{**options, "seed": 4})
    assert torch.equal(again.images[0], feature_visualization(model, 0, shape, steps=5, seed=4).images[0])


def test_the_score_is_that_of_the_model():
    model = CASES["cnn"].build()
    made = feature_visualization(model, [0, 1], CASES["cnn"].example().shape[1:], steps=3)
    scores = model(made.images)
    assert torch.allclose(made.score, torch.stack([scores[0, 0], scores[1, 1]]), atol=1e-6)
    assert made.curve.shape == (2, 3)


def test_likeness_written_out():
    values = normal(4, 3, 2, 2).double()
    total, pairs = 0.0, 0
    for one, other in ((0, 1), (2, 3)):
        grams = [torch.zeros(3, 3).double(), torch.zeros(3, 3).double()]
        for gram, row in zip(grams, (one, other), strict=True):
            for i, j, y, x in itertools.product(range(3), range(3), range(2), range(2)):
                gram[i, j] += values[row, i, y, x] * values[row, j, y, x]
        total += float((grams[0] * grams[1]).sum() / (grams[0].norm() * grams[1].norm()))
        pairs += 1
    assert float(similarity_of_copies(values, [0, 0, 5, 5])) == pytest.approx(total / pairs, abs=1e-12)
    assert float(similarity_of_copies(values, [0, 1, 2, 3])) == 0


def test_diversity_makes_copies_differ():
    model, shape = CASES["cnn"].build().double(), CASES["cnn"].example().shape[1:]
    layer = next(path for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
    found = []
    for diversity in (0.0, 30.0):
        made = feature_visualization(
            model, 0, shape, count=3, steps=40, diversity=diversity, diversity_layer=layer, **STILL
        )
        features = layerlens.activation_maps(model, made.images, layer).values
        found.append(float(similarity_of_copies(features, [0, 0, 0])))
    assert found[1] < found[0]


def test_layers_after_the_one_that_is_asked_for_do_not_run():
    ran = []

    class Late(nn.Module):
        def forward(self, x):
            ran.append(len(x))
            return x

    net = nn.Sequential(nn.Linear(4, 3), Late())
    feature_visualization(net, neuron("0", 1), (4,), steps=2)
    assert not ran
    feature_visualization(net, [neuron("0", 1), 2], (4,), steps=2)
    assert ran


# -- other inputs ------------------------------------------------------------------------------------------------------


def test_a_unit_of_an_lstm_over_a_series():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.LSTM(3, 5, batch_first=True)).double()
    made = feature_visualization(
        net, neuron("0/output", 2, place=-1), (12, 3), axes=("time", "feature"), bounds=(-1, 1), steps=80, noise=0.0
    )
    assert made.images.shape == (1, 12, 3) and made.axes == ("batch", "time", "feature")
    assert float(made.score) > float(made.checks["noise"]) + 0.1
    assert float(made.score) == pytest.approx(float(net(made.images)[0][0, -1, 2].detach()), abs=1e-12)


def test_latents_of_a_generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = nn.Sequential(nn.ConvTranspose2d(6, 4, 4), nn.Tanh(), nn.ConvTranspose2d(4, 1, 4, 2, 1)).double()
    made = feature_visualization(
        generator, neuron("0", 3), (6, 1, 1), bounds=None, spread=1.0, l2=1.0, steps=400, noise=0.0
    )
    # mean over places of a linear map of z: the best z is proportional to the mean weights
    along = generator[0].weight.detach()[:, 3].mean(dim=(1, 2))
    cosine = torch.nn.functional.cosine_similarity(made.images.flatten(), along, dim=0)
    assert float(cosine) > 0.999
    assert made.settings["parametrization"] == "plain"


def test_the_model_takes_what_preprocess_makes():
    seen = []

    class Net(nn.Module):
        def forward(self, x):
            seen.append((float(x.detach().min()), float(x.detach().max())))
            return x.flatten(1)

    made = feature_visualization(
        Net(), 3, (1, 4, 4), steps=3, preprocess=lambda x: 255 * x, noise=0.0, forward=lambda model, x: model(x) + 0
    )
    assert all(low >= 0 and 1 < high <= 255 for low, high in seen)
    assert float(made.images.min()) >= 0 and float(made.images.max()) <= 1


def test_the_model_and_the_generators_come_back():
    model = CASES["cnn"].build().train()
    before, state = Snapshot(model, None), torch.get_rng_state()
    feature_visualization(model, 0, CASES["cnn"].example().shape[1:], steps=2)
    before.check()
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError):
        feature_visualization(model, lambda output: 1 / 0, CASES["cnn"].example().shape[1:])
    before.check()


def test_half_precision_and_the_lens():
    model = CASES["cnn"].build().bfloat16()
    made = feature_visualization(model, 0, CASES["cnn"].example().shape[1:], steps=2)
    assert made.images.dtype == torch.float32 and bool(torch.isfinite(made.score).all())
    lens = layerlens.Lens(CASES["cnn"].build(), class_names=["cat", "dog", "bird", "fish"])
    assert lens.feature_visualization(["dog", 0], CASES["cnn"].example().shape[1:], steps=2).targets == ("dog", "cat")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"target": []}, OptionError, "target=\\[\\] asks for nothing"),
        ({"target": None}, TargetError, "depends on the input to be made"),
        ({"bounds": (1, 1)}, OptionError, "smallest and the largest value"),
        ({"steps": 0}, OptionError, "steps must be a whole number"),
        ({"zoom": (2, 1)}, OptionError, "smallest and the largest magnification"),
        ({"shift": 3}, OptionError, "fraction of the length"),
        ({"diversity": 1.0}, OptionError, "ask for several: count=4"),
        ({"diversity": 1.0, "count": 2}, OptionError, "name it with diversity_layer"),
        ({"shape": (4,), "parametrization": "fourier"}, OptionError, "needs an axis of places"),
        ({"axes": ("time",)}, OptionError, "does not name the axes of shape"),
        ({"target": neuron("0", 99)}, TargetError, "there is no unit 99"),
        ({"target": direction("0", torch.ones(3))}, TargetError, "the direction has 3"),
        ({"target": neuron("0", 0, call=2)}, RecordError, "there is no call 2"),
        ({"target": lambda output: output.argmax(dim=1).double()}, TargetError, "no gradient flows"),
        ({"target": lambda output: output[:, 0] / 0}, TargetError, "not finite at step 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(options, error, text):
    net = nn.Sequential(nn.Linear(4, 2), nn.Flatten(), nn.Linear(8, 2))
    options = {"target": 0, "shape": (1, 4, 4), "steps": 2, **options}
    if options["shape"] == (1, 4, 4):
        net = nn.Sequential(nn.Linear(4, 2), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(error, match=text):
        feature_visualization(net, options.pop("target"), options.pop("shape"), **options)


def test_a_unit_that_is_always_off_is_told():
    net = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    with torch.no_grad():
        net[0].bias.fill_(-100)
    with pytest.warns(UserWarning, match="unit 0 of 1 ended no higher than noise"):
        feature_visualization(net, neuron("1", 0), (4,), steps=2)


def test_objectives_read_a_nested_output():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return {"logits": self.fc(x), "none": None}

    net, x = Net(), normal(4, 3)
    targets = [as_target(lambda output, k=k: output["logits"][:, k]) for k in range(2)]
    scores, also = Objectives(net, targets, None)(x, [1, 0, 0, 1])
    expected = net(x)["logits"]
    assert torch.allclose(scores, expected[range(4), [1, 0, 0, 1]]) and also is None


@pytest.mark.slow
def test_a_class_of_efficientnet_is_recognised_under_other_views():
    from layerlens.demo import efficientnet

    net = efficientnet.load_efficientnet()
    made = feature_visualization(net, [1, 980], (3, 224, 224), bounds=(-1, 1))
    views = Transforms(shift=0.15, rotate=35.0, zoom=(0.8, 1.6), noise=0.02)
    for image, index in zip(made.images, (1, 980), strict=True):
        many = image.expand(8, 3, 224, 224)
        seen = views(many, [torch.Generator().manual_seed(900 + k) for k in range(8)], 2, 2.0)
        with torch.no_grad():
            assert float(net(seen).softmax(dim=1)[:, index].mean()) > 0.8


def test_a_layer_of_several_tensors_is_the_one_that_the_model_reads():
    class State(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.out(self.rnn(x)[1][0][-1])

    model = State()
    for unit in (lambda layer: neuron(layer, 1), deep_dream):
        bare, named, other = (
            feature_visualization(model, unit(layer), (5, 3), axes=("time", "feature"), steps=4)
            for layer in ("rnn", "rnn/h_n", "rnn/output")
        )
        torch.testing.assert_close(bare.images, named.images, rtol=0, atol=0)
        assert not torch.equal(bare.images, other.images)
    state = model.rnn(bare.images)[1][0][-1]  # of deep_dream: the mean square of the layer
    torch.testing.assert_close(bare.score, as_target(deep_dream("rnn"))(state, at=("rnn", 0)).detach())
