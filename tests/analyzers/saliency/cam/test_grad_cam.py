import warnings

import pytest
import torch
from torch import nn

from layerlens.analyzers.saliency.cam import layer_view
from layerlens.analyzers.saliency.cam.gradient_cams import grad_cam
from layerlens.errors import InputError, OptionError, RecordError, SelectionError
from tests.analyzers.saliency.cam.test_cams import enlarged
from tests.cases import CASES, normal


def net(inplace=False):
    """Two convolutions, each followed by a ReLU that writes in place, or not; the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace),
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.ReLU(inplace),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    ).double()


def by_hand(model, x, layer, target, relu=True):
    """Selvaraju et al. 2017, eq. 1-2, from raw hooks; right where nothing is written in place."""
    kept = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, args, output: kept.append(output))
    score = model(x)[:, target]
    handle.remove()
    (gradient,) = torch.autograd.grad(score.sum(), kept[0])
    cam = torch.einsum("bk,bkhw->bhw", gradient.mean(dim=(2, 3)), kept[0].detach())
    cam = cam.relu() if relu else cam
    return enlarged(cam, x)


@pytest.mark.parametrize("layer", ["0", "1", "2", "3"])
@pytest.mark.parametrize("relu", [True, False])
def test_equals_eq_1_and_2_by_hand_also_before_an_in_place_relu(layer, relu):
    x = normal(2, 3, 10, 8).double()
    expected = by_hand(net(), x, layer, 1, relu)
    for inplace in (False, True):
        result = grad_cam(net(inplace), x, layer, target=1, relu=relu)
        torch.testing.assert_close(result.tensor, expected, rtol=1e-10, atol=1e-14)
    assert result.axes == ("batch", "height", "width") and result.signed is not relu
    torch.testing.assert_close(result.score, net()(x)[:, 1].detach())
    assert torch.equal(result.inputs, x)


def test_agrees_with_captum_out_of_place():
    from captum.attr import LayerGradCam

    model, x = net(), normal(2, 3, 8, 8).double()
    small = LayerGradCam(model, model[2]).attribute(x, target=[1, 3]).detach()
    expected = enlarged(small[:, 0], x)
    torch.testing.assert_close(grad_cam(model, x, "2", target=[1, 3], relu=False).tensor, expected)


def test_the_layer_is_chosen_and_recorded():
    result = grad_cam(net(), normal(1, 3, 8, 8).double(), target=0, relu=False)
    assert result.settings == {
        "layer": "4",
        "call": 0,
        "size": (2, 2),
        "relu": False,
        "chosen": "automatically",
    }


@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("cnn", "pool", (2, 2)),
        ("depthwise", "3", (4, 4)),
        ("hf_resnet", "resnet.encoder", (4, 4)),
        ("hf_convnext", "convnext.encoder", (4, 4)),
        ("hf_vit", "vit.layers.1.layernorm_before", (4, 4)),  # the score reads the class token of what follows
        ("two_inputs", "norm", (4, 4)),
    ],
)
def test_the_chosen_layer_of_the_cases(name, layer, size):
    case = CASES[name]
    result = grad_cam(case.build(), case.example(), target=case.target, relu=False)
    assert (result.settings["layer"], result.settings["size"]) == (layer, size)
    named = grad_cam(case.build(), case.example(), layer, target=case.target, relu=False)
    torch.testing.assert_close(result.tensor, named.tensor)
    assert result.tensor.any(dim=(1)).any(dim=1).all()


class Tail(nn.Module):
    """A convolution that runs several times, and many layers after the last places."""

    def __init__(self, calls, tail):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.calls = nn.Conv2d(3, 3, 3, padding=1), calls
        self.tail = nn.Sequential(*(nn.Linear(3, 3) for _ in range(tail)))

    def forward(self, x):
        for _ in range(self.calls):
            x = self.conv(x).tanh()
        return self.tail(x.mean(dim=(2, 3)))


@pytest.mark.parametrize(("calls", "tail"), [(1, 3), (3, 3), (1, 40), (3, 40), (40, 3)])
def test_the_layer_is_chosen_in_one_run_after_one_that_follows_the_axes(calls, tail):
    model, x, seen = Tail(calls, tail).double(), normal(2, 3, 8, 8).double(), []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(1))
    for runs in (2, 3):  # the axes of these shapes are known the second time
        chosen = grad_cam(model, x, target=1, relu=False)
        assert len(seen) == runs
    handle.remove()
    assert (chosen.settings["layer"], chosen.settings["call"]) == ("conv", calls - 1)
    named = grad_cam(model, x, "conv", call=calls - 1, target=1, relu=False)
    torch.testing.assert_close(chosen.tensor, named.tensor)
    torch.testing.assert_close(chosen.score, named.score)
    assert chosen.tensor.any()


def test_a_reused_layer_needs_its_call():
    case = CASES["cnn"]
    model, x = case.build().double(), case.example().double()
    with pytest.raises(RecordError, match=r"'relu' ran 3 times; say which: call=0 to 2 \(-1: last\)"):
        grad_cam(model, x, "relu", target=2)
    first = model.bn1(model.conv1(x)).detach().relu().requires_grad_()
    second = (model.bn2(model.conv2(first)) + first).relu()
    score = model.fc(model.pool(model.conv3(second).relu()).flatten(1))[:, 2]
    (gradient,) = torch.autograd.grad(score.sum(), first)
    expected = (gradient.mean(dim=(2, 3), keepdim=True) * first).sum(dim=1).detach()
    torch.testing.assert_close(grad_cam(model, x, "relu", call=0, target=2, relu=False).tensor, expected)
    with pytest.raises(RecordError, match=r"there is no call 3"):
        grad_cam(model, x, "relu", call=3, target=2)


def test_tokens_of_a_vision_transformer_by_hand():
    case = CASES["hf_vit"]
    model, x = case.build().double(), case.example()["pixel_values"].double()
    kept = []
    layer = model.vit.layers[1].layernorm_before
    handle = layer.register_forward_hook(lambda module, args, output: kept.append(output))
    score = model(pixel_values=x).logits[:, 1]
    handle.remove()
    (gradient,) = torch.autograd.grad(score.sum(), kept[0])
    weights = gradient[:, 1:].mean(dim=1)  # the class token is no place
    cam = torch.einsum("bf,btf->bt", weights, kept[0][:, 1:].detach()).reshape(2, 1, 4, 4)
    expected = nn.functional.interpolate(cam, size=(16, 16), mode="bilinear")[:, 0]
    result = grad_cam(model, {"pixel_values": x}, "vit.layers.1.layernorm_before", target=1, relu=False)
    torch.testing.assert_close(result.tensor, expected)


def test_swin_windows_are_passed_over():
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=3
    )
    torch.manual_seed(0)
    model = transformers.SwinForImageClassification(config).eval()
    result = grad_cam(model, {"pixel_values": normal(2, 3, 32, 32)}, target=1, relu=False)
    assert result.settings["size"] == (8, 8) and result.tensor.shape == (2, 32, 32)


def test_errors():
    model, x = net(), normal(1, 3, 8, 8).double()
    with pytest.raises(InputError, match=r"needs an image input .* got 0 float32 \(2, 6\)"):
        grad_cam(CASES["mlp"].build(), CASES["mlp"].example())
    with pytest.raises(OptionError, match=r"layer '6' returned shape \(1, 4\), which is not a grid of places"):
        grad_cam(model, x, "6", target=0)
    with pytest.raises(SelectionError, match=r"matches 2 layers"):
        grad_cam(model, x, nn.Conv2d)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).double()
    with pytest.raises(OptionError, match=r"no layer of Sequential returns"):
        grad_cam(flat, x)

    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.aside = nn.Conv2d(3, 2, 3), nn.Conv2d(3, 2, 3)

        def forward(self, x):
            self.aside(x)
            return self.used(x).mean(dim=(2, 3))

    with pytest.raises(OptionError, match=r"the score 'class 0' does not depend on layer 'aside', call 0"):
        grad_cam(Aside(), x.float(), "aside", target=0)
    assert grad_cam(Aside(), x.float(), target=0, relu=False).settings["layer"] == "used"
    with pytest.raises(OptionError, match=r"depends on no layer with places \(5 tried\)"):
        grad_cam(model, x, target=lambda out: out[:, 0].detach())


def test_a_zero_map_warns():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].weight.data.fill_(1.0)
    x = torch.stack([torch.ones(1, 4, 4), -torch.ones(1, 4, 4)])
    with pytest.warns(UserWarning, match=r"the map of sample\(s\) 1 at layer '0' is zero everywhere.*relu=False shows"):
        grad_cam(model, x, target=0)
    with pytest.warns(UserWarning, match=r"sample\(s\) 0, 1 .* its gradient or its activation vanishes"):
        grad_cam(model, x, target=lambda out: 0 * out[:, 0], relu=False)


def test_frozen_parameters_no_grad_inference_mode_and_dtypes():
    model, x = net(True).float(), normal(2, 3, 8, 8)
    expected = grad_cam(model, x, target=1, relu=False).tensor
    assert expected.dtype == torch.float32
    torch.testing.assert_close(
        grad_cam(net(True).float().requires_grad_(False), x, target=1, relu=False).tensor, expected
    )
    with torch.no_grad():
        torch.testing.assert_close(grad_cam(model, x, target=1, relu=False).tensor, expected)
    with torch.inference_mode():
        torch.testing.assert_close(grad_cam(model, x.clone(), "4", target=1, relu=False).tensor, expected)
    half = grad_cam(net(True).bfloat16(), x.bfloat16(), target=1, relu=False).tensor
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(half.float().flatten(), expected.flatten(), dim=0) > 0.97


def test_a_batch_is_its_samples_and_the_model_is_given_back(case, hooks_of):
    model, x = case.build().train(), case.example()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    grads = [parameter.requires_grad for parameter in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            result = grad_cam(model, x, target=case.target)
        except InputError:
            result = None
        if result is not None and case.name != "vae" and isinstance(x, torch.Tensor):
            for k in range(2):
                target = case.target[k : k + 1] if isinstance(case.target, list) else case.target
                alone = grad_cam(model, x[k : k + 1], target=target, layer=result.settings["layer"])
                torch.testing.assert_close(alone.tensor[0], result.tensor[k], rtol=1e-4, atol=1e-5)
    assert hooks_of(model) == 0 and all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_error_inside_gives_the_model_back(hooks_of):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, x):
            self.conv(x)
            raise KeyboardInterrupt

    model = Breaks()
    with pytest.raises(KeyboardInterrupt):
        grad_cam(model, normal(1, 1, 6, 6), "conv")
    assert hooks_of(model) == 0 and model.training and model.conv.weight.requires_grad


def test_object_queries_are_no_patches():
    class Queries(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.b, self.q = nn.Conv2d(3, 16, 8, 8), nn.Parameter(torch.randn(9, 16))
            self.d, self.c = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 4)

        def forward(self, x):
            return self.c(self.d(self.q.expand(len(x), -1, -1), self.b(x).flatten(2).mT))

    x = torch.randn(1, 3, 32, 32)
    found = grad_cam(Queries(), x, target=(0, 1), relu=False).settings
    assert (found["layer"], found["size"]) == ("b", (4, 4))
    with pytest.raises(OptionError, match="not a grid of places"):
        grad_cam(Queries(), x, "d", target=(0, 1))


def test_the_layer_is_the_last_one_however_many_were_tried_before():
    torch.manual_seed(0)
    blocks = [part for _ in range(12) for part in (nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())]
    model, x = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)), normal(2, 3, 8, 8)
    first = grad_cam(model, x, target=0, relu=False)
    for count in (1, 2, 100):
        layer_view._ENOUGH[model] = count
        again = grad_cam(model, x, target=0, relu=False)
        assert again.settings == first.settings and torch.equal(again.values, first.values)
    assert layer_view._ENOUGH[model] == 1
    model.insert(24, nn.Dropout2d())
    assert grad_cam(model, x, target=0, relu=False).settings["layer"] == "24"
