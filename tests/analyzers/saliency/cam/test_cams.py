"""Every class activation map against its formula, written out in float64 with autograd and numpy."""

import numpy as np
import pytest
import torch
from torch import nn

import layerlens
from layerlens.analyzers.saliency import cam as family
from layerlens.analyzers.saliency.saliency import known_methods
from layerlens.errors import OptionError, TargetError
from tests.cases import CASES, normal

NAMES = [name for name, method in known_methods().items() if method.family == "cam"]
GRADIENT = [name for name in NAMES if name not in ("score_cam", "ablation_cam", "eigen_cam")]
EVERY = pytest.mark.parametrize("name", NAMES)


def net(inplace=False, pool=None, bias=True):
    """Two convolutions with ReLU, then pooling and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(inplace),
        nn.AdaptiveAvgPool2d(pool or 2),
        nn.Flatten(),
        nn.Linear(8 * (pool or 2) ** 2, 4, bias=bias),
    ).double()


def parts(model, x, layer, target):
    """Activation, gradient and score at a layer, by splitting the model."""
    a = model[: layer + 1](x).detach().requires_grad_()
    score = model[layer + 1 :](a)[:, target]
    (g,) = torch.autograd.grad(score.sum(), a)
    return a.detach().numpy(), g.numpy(), score.detach().numpy()


def by_hand(name, a, g):
    """The weighted sum of units, (batch, height, width), unit by unit in numpy."""
    cam = np.zeros((len(a), *a.shape[2:]))
    for b in range(len(a)):
        for k in range(a.shape[1]):
            A, G = a[b, k], g[b, k]
            if name == "grad_cam":
                cam[b] += G.mean() * A
            elif name == "hi_res_cam":
                cam[b] += G * A
            elif name == "layer_cam":
                cam[b] += np.maximum(G, 0) * A
            elif name == "x_grad_cam" and A.sum() != 0:
                cam[b] += (A / A.sum() * G).sum() * A
            elif name == "grad_cam_plus_plus":
                w = 0.0
                for i, j in np.ndindex(*A.shape):
                    if G[i, j] > 0:
                        w += G[i, j] ** 2 / (2 * G[i, j] ** 2 + A.sum() * G[i, j] ** 3) * G[i, j]
                cam[b] += w * A
    return cam


def enlarged(cam, x):
    """Linear interpolation between the centers of windows of 3 with padding 1, one every `stride` pixels from 0."""
    cam = np.asarray(cam)
    for axis, extent in ((1, x.shape[2]), (2, x.shape[3])):
        stride = -(-extent // cam.shape[axis])
        centers = stride * np.arange(cam.shape[axis])
        cam = np.apply_along_axis(lambda line, at=centers, n=extent: np.interp(np.arange(n), at, line), axis, cam)
    return torch.as_tensor(cam)


def test_all_are_there():
    assert set(NAMES) == set(family.__all__) and len(NAMES) == 12


@pytest.mark.parametrize("scale", [1.0, 1e-5])
@pytest.mark.parametrize("layer", [1, 3])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["grad_cam", "hi_res_cam", "layer_cam", "x_grad_cam", "grad_cam_plus_plus"])
def test_the_gradient_ones_by_hand(name, inplace, layer, scale):
    model, x = net(inplace), normal(2, 3, 10, 8).double()
    with torch.no_grad():
        model[6].weight *= scale  # small gradients must count as large ones do
    expected = by_hand(name, *parts(net_like(model), x, layer, 1)[:2])
    found = layerlens.saliency(model, x, target=1, method=name, where=str(layer), relu=False)
    torch.testing.assert_close(found.tensor, enlarged(expected, x), rtol=1e-9, atol=1e-18)
    rectified = layerlens.saliency(model, x, target=1, method=name, layer=str(layer)).tensor
    torch.testing.assert_close(rectified, enlarged(np.maximum(expected, 0), x), rtol=1e-9, atol=1e-18)


def net_like(model):
    """The same weights with no operation in place."""
    twin = net()
    twin.load_state_dict(model.state_dict())
    return twin


def test_before_a_relu_in_place_the_layer_is_what_it_returned():
    model, x = net(True), normal(1, 3, 8, 8).double()
    for name in ("layer_cam", "hi_res_cam", "x_grad_cam"):
        expected = by_hand(name, *parts(net(), x, 2, 0)[:2])
        found = layerlens.saliency(model, x, target=0, method=name, where="2", relu=False)
        torch.testing.assert_close(found.tensor, enlarged(expected, x))


def test_hi_res_cam_cam_and_grad_cam_agree_where_pooling_and_one_linear_layer_follow():
    model, x = net(pool=1), normal(2, 3, 9, 9).double()
    at = {"target": [2, 0], "where": "3", "relu": False}
    one, two, three = (layerlens.saliency(model, x, method=m, **at).tensor for m in ("grad_cam", "hi_res_cam", "cam"))
    torch.testing.assert_close(one, two)
    places = 5 * 5
    torch.testing.assert_close(three, one * places)
    a = model[:4](x).detach()
    zhou = torch.einsum("bk,bkhw->bhw", model[6].weight[[2, 0]].detach(), a)
    torch.testing.assert_close(three, enlarged(zhou, x))
    assert layerlens.saliency(model, x, method="cam").settings["layer"] == "3"


def test_cam_is_refused_where_the_model_ends_otherwise():
    x = normal(1, 3, 8, 8).double()
    with pytest.raises(OptionError, match=r"Sequential does not end in the mean over the places of layer '1' and one"):
        layerlens.saliency(net(pool=1), x, method="cam", where="1")
    with pytest.raises(OptionError, match="grad_cam works on other"):
        layerlens.saliency(net(pool=2), x, method="cam")
    with pytest.raises(OptionError, match="does not end in the mean"):
        layerlens.saliency(nn.Sequential(net(pool=1), nn.Softmax(1)), x, method="cam", where="0.3")


def test_conservation_and_sensitivity():
    """A network without biases is linear where it is: maps sum to the score, and a unit's map is what it adds."""
    model, x = net(bias=False), normal(2, 3, 8, 8).double()
    for name in ("hi_res_cam", "x_grad_cam"):
        found = layerlens.saliency(model, x, method=name, where="3", target=1, relu=False)
        assert found.checks["conservation gap"].max() < 1e-12
    a, g, score = parts(model, x, 3, 1)
    for k in range(8):
        less = a.copy()
        less[:, k] = 0
        lost = score - model[4:](torch.as_tensor(less))[:, 1].detach().numpy()
        np.testing.assert_allclose(lost, (a[:, k] * g[:, k]).sum(axis=(1, 2)), rtol=1e-9)
    biased = layerlens.saliency(net(), x, method="hi_res_cam", where="3", target=1, relu=False)
    a, g, score = parts(net(), x, 3, 1)
    gap = np.abs((a * g).sum((1, 2, 3)) - score) / np.abs(score)
    np.testing.assert_allclose(biased.checks["conservation gap"], gap)


def test_eigen_cam_is_the_projection_on_the_first_singular_vector_with_a_sign():
    model, x = net(), normal(2, 3, 8, 8).double()
    a, g, _ = parts(model, x, 3, 1)
    for name, values in (("eigen_cam", a), ("eigen_grad_cam", a * g)):
        found = layerlens.saliency(model, x, method=name, where="3", target=1, relu=False)
        for b in range(2):
            matrix = values[b].reshape(8, -1).T
            _, singular, v = np.linalg.svd(matrix)
            cam = matrix @ v[0]
            cam = cam * np.sign((cam * matrix.sum(1)).sum())
            one = enlarged(cam.reshape(1, 4, 4), x)[0]
            torch.testing.assert_close(found.tensor[b], one, rtol=1e-8, atol=1e-12)
            share = (singular**2)[0] / (singular**2).sum()
            assert float(found.checks["share of the component"][b]) == pytest.approx(share)
    one, two = (layerlens.saliency(model, x, method="eigen_cam", where="3", target=t).tensor for t in (0, 1))
    assert torch.equal(one, two) and (one > 0).any()
    smooth = layerlens.saliency(model, x, method="hi_res_cam", where="3", target=1, relu=False, eigen_smooth=True)
    torch.testing.assert_close(smooth.tensor, found.tensor)


def test_score_cam_by_hand():
    model, x = net(), normal(2, 3, 8, 8).double()
    a, _, _ = parts(model, x, 3, 1)
    cam, model = np.zeros((2, 4, 4)), model.requires_grad_(False)
    for b in range(2):
        scores, kept = [], []
        for k in range(8):
            mask = enlarged(a[b, k][None], x[:1])[0]
            if a[b, k].max() > a[b, k].min():
                mask = (mask - mask.min()) / (mask.max() - mask.min())
                scores.append(float(model(x[b : b + 1] * mask)[0, 1] - model(0 * x[:1])[0, 1]))
                kept.append(k)
        weights = np.exp(scores) / np.exp(scores).sum()
        cam[b] = sum(w * a[b, k] for w, k in zip(weights, kept, strict=True))
    for size in ("auto", 1, 5):
        found = layerlens.saliency(model, x, method="score_cam", where="3", target=1, batch_size=size)
        torch.testing.assert_close(found.tensor, enlarged(cam, x))


@pytest.mark.parametrize("target", [0, 1, 2, 3])
def test_ablation_cam_by_hand_also_where_the_score_is_negative(target):
    model, x = net(True), normal(2, 3, 8, 8).double()
    a, _, score = parts(net(), x, 2, target)
    cam = np.zeros((2, 4, 4))
    for k in range(8):
        less = a.copy()
        less[:, k] = 0
        without = net()[3:](torch.as_tensor(less))[:, target].detach().numpy()
        cam += ((score - without) / np.abs(score))[:, None, None] * a[:, k]
    for size in ("auto", 3):
        found = layerlens.saliency(
            model, x, method="ablation_cam", where="2", target=target, batch_size=size, relu=False
        )
        torch.testing.assert_close(found.tensor, enlarged(cam, x))


def test_units_that_cannot_matter_are_not_run_and_a_part_can_be_tried():
    model, x = net(), normal(1, 3, 8, 8).double()
    runs = []
    with torch.no_grad():
        model[2].weight[3:] = 0
        model[2].bias[3:] = -1.0  # five units are off
    model.register_forward_pre_hook(lambda module, args: runs.append(len(args[0])))
    for name in ("score_cam", "ablation_cam"):
        layerlens.saliency(model, x, method=name, where="3", target=1, batch_size=1, units=1)  # follows the axes
        runs.clear()
        layerlens.saliency(model, x, method=name, where="3", target=1, batch_size=1)
        extra = len(runs)
        runs.clear()
        layerlens.saliency(model, x, method=name, where="3", target=1, batch_size=1, units=1)
        assert extra - len(runs) == 2 and extra <= 6
    with pytest.raises(OptionError, match="units must be a whole number"):
        layerlens.saliency(model, x, method="score_cam", units=0)


def test_finer_cam_by_hand():
    model, x = net(), normal(2, 3, 8, 8).double()
    a = model[:4](x).detach().requires_grad_()
    logits = model[4:](a)
    own = torch.tensor([2, 2])
    order = (logits - logits[:, 2:3]).abs().argsort(dim=1)[:, 1:3]
    p = logits.detach().softmax(1).gather(1, order)
    differences = logits[:, 2:3] - 0.5 * logits.gather(1, order)
    score = (p * differences).sum(1) / p.sum(1)
    (g,) = torch.autograd.grad(score.sum(), a)
    expected = enlarged(by_hand("grad_cam", a.detach().numpy(), g.numpy()), x)
    found = layerlens.saliency(model, x, method="finer_cam", where="3", target=own, similar=2, strength=0.5, relu=False)
    torch.testing.assert_close(found.tensor, expected)
    torch.testing.assert_close(found.score, score.detach())
    assert found.target == "class 2 beyond 2 like it" and found.target_of(1) == "class 2"
    plain = layerlens.saliency(model, x, method="finer_cam", where="3", target=2, strength=0, relu=False).tensor
    torch.testing.assert_close(plain, layerlens.grad_cam(model, x, "3", target=2, relu=False).tensor)
    contrast = layerlens.grad_cam(model, x, "3", target=layerlens.contrast(2, 1), relu=False).tensor
    one = layerlens.saliency(model, x, method="finer_cam", where="3", target=2, similar=[1], relu=False).tensor
    torch.testing.assert_close(one, contrast)
    with pytest.raises(OptionError, match="holds the class"):
        layerlens.saliency(model, x, method="finer_cam", target=2, similar=[2])
    with pytest.raises(TargetError, match=r"class 9 is out of range: the output has 4 classes"):
        layerlens.saliency(model, x, method="finer_cam", target=9)


def test_guided_grad_cam_is_the_product():
    model, x = net(True), normal(2, 3, 8, 8).double()
    at = {"target": [1, 3]}
    guided = layerlens.saliency(model, x, method="guided_backprop", **at).tensor
    coarse = layerlens.saliency(model, x, method="grad_cam", where="3", **at).tensor
    found = layerlens.saliency(model, x, method="guided_grad_cam", where="3", **at)
    torch.testing.assert_close(found.tensor, guided * coarse[:, None])
    assert found.tensor.shape == x.shape and found.settings["layer"] == "3"


def test_captum_agrees_on_grad_cam_of_any_rank():
    from captum.attr import LayerGradCam

    torch.manual_seed(0)
    for conv, shape in ((nn.Conv1d, (2, 3, 12)), (nn.Conv3d, (2, 3, 6, 5, 7))):
        model = nn.Sequential(conv(3, 5, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.LazyLinear(3)).double()
        x = normal(*shape).double()
        model(x)
        expected = LayerGradCam(model, model[1]).attribute(x, target=1).detach()[:, 0]
        found = layerlens.grad_cam(model, x, "1", target=1, relu=False)
        torch.testing.assert_close(found.tensor, expected)
    assert found.axes == ("batch", "depth", "height", "width")


def test_over_time_of_recurrent_layers_and_tokens_of_texts():
    class Rnn(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.rnn, self.head, self.first = nn.LSTM(3, 4, batch_first=first), nn.Linear(4, 3), first

        def forward(self, x):
            out = self.rnn(x if self.first else x.transpose(0, 1))[0]
            return self.head(out.mean(dim=1 if self.first else 0))

    for first in (True, False):
        torch.manual_seed(0)
        model, x = Rnn(first).double(), normal(2, 7, 3).double()
        states = model.rnn(x if first else x.transpose(0, 1))[0].detach()
        states = states if first else states.transpose(0, 1)
        expected = states @ model.head.weight[1].detach() / 7
        found = layerlens.grad_cam(model, x, target=1, relu=False)
        torch.testing.assert_close(found.tensor, expected)
        assert found.axes == ("batch", "time") and found.settings["layer"] == "rnn"
    case = CASES["hf_bert"]
    found = layerlens.saliency(case.build(), case.example(), target=1, method="layer_cam", relu=False)
    assert found.axes == ("batch", "token") and found.tensor.shape == (2, 6) and found.tensor.any()
    assert found.inputs.dtype == torch.int64


def test_series_with_channels_first_and_last_are_told_by_the_first_layer():
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv1d(5, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))
    assert layerlens.grad_cam(conv, normal(2, 5, 20), target=0, relu=False).tensor.shape == (2, 20)

    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = conv

        def forward(self, x):
            return self.net(x.mT)

    assert layerlens.grad_cam(Turned(), normal(2, 20, 5), target=0, relu=False).tensor.shape == (2, 20)

    class Wave(Turned):
        def forward(self, x):
            return self.net(x.unsqueeze(1).expand(-1, 5, -1))

    assert layerlens.grad_cam(Wave(), normal(2, 30), target=0, relu=False).tensor.shape == (2, 30)


def test_frames_of_a_film_that_are_a_batch_inside():
    class Film(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x):
            frames = torch.relu(self.conv(x.flatten(0, 1))).mean(dim=(2, 3))
            return self.head(frames.unflatten(0, x.shape[:2]).mean(dim=1))

    model, x = Film().double(), normal(2, 5, 3, 6, 6).double()
    found = layerlens.grad_cam(model, x, target=1, relu=False)
    a = model.conv(x.flatten(0, 1)).detach().requires_grad_()
    score = model.head(torch.relu(a).mean(dim=(2, 3)).unflatten(0, (2, 5)).mean(dim=1))[:, 1]
    (g,) = torch.autograd.grad(score.sum(), a)
    a, g = a.detach().unflatten(0, (2, 5)), g.unflatten(0, (2, 5))
    expected = (g.mean(dim=(1, 3, 4), keepdim=True) * a).sum(dim=2)
    torch.testing.assert_close(found.tensor, expected)
    assert found.axes == ("batch", "time", "height", "width")
    zeroed = layerlens.saliency(model, x, target=1, method="ablation_cam", relu=False)
    masked = layerlens.saliency(model, x, target=1, method="score_cam")
    assert zeroed.tensor.shape == masked.tensor.shape == (2, 5, 6, 6)
