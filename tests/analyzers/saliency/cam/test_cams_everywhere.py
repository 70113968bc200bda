"""Every class activation map on architectures, layouts and states of a model that break others."""

import contextlib
import inspect
import warnings

import pytest
import torch
from torch import nn

import layerlens
from layerlens.errors import OptionError, RecordError, SelectionError, TargetError
from tests.analyzers.saliency.cam.test_cams import EVERY, GRADIENT, NAMES, net
from tests.cases import CASES, normal
from tests.snapshot import Snapshot


def cam_of(model, x, name, **options):
    """A map with few trials, zero maps being no matter here."""
    from layerlens.analyzers.saliency.saliency import known_methods

    parameters = inspect.signature(known_methods()[name].function).parameters
    given = {
        key: value
        for key, value in {"relu": False, "units": 3, **options}.items()
        if key in parameters or key in ("target", "where")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return layerlens.saliency(model, x, method=name, **given)


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=(24, 16), patch_size=4, num_labels=3))


def dino():
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_register_tokens": 4}
    return Dinov2WithRegistersForImageClassification(
        Dinov2WithRegistersConfig(**sizes, image_size=24, patch_size=4, num_labels=3)
    )


def swin():
    from transformers import SwinConfig, SwinForImageClassification

    sizes = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    return SwinForImageClassification(SwinConfig(**sizes, num_labels=3))


def convnext():
    return CASES["hf_convnext"].build()


class ChannelsLast(nn.Module):
    """Blocks that keep (batch, height, width, channel), as ConvNeXt and Swin of torchvision do."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.mix = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 8)
        self.act, self.head = nn.ReLU(), nn.Linear(8, 3)

    def forward(self, pixel_values):
        x = self.norm(self.stem(pixel_values).permute(0, 2, 3, 1))
        return self.head(self.act(self.mix(x)).mean(dim=(1, 2)))


MODELS = {
    "vit": (vit, (24, 16), (6, 4)),
    "registers": (dino, (24, 24), (6, 6)),
    "swin": (swin, (32, 32), (8, 8)),
    "convnext": (convnext, (32, 32), (4, 4)),
    "channels last": (ChannelsLast, (16, 24), (4, 6)),
}


@pytest.mark.parametrize("kind", MODELS)
@EVERY
def test_architectures(name, kind):
    pytest.importorskip("transformers")
    if name == "cam" and kind in ("vit", "registers", "convnext"):
        pytest.skip("they do not end in a mean and one linear layer")
    torch.manual_seed(0)
    build, size, grid = MODELS[kind]
    model, x = build().eval(), {"pixel_values": normal(2, 3, *size)}
    found = cam_of(
        model, x, name, target=1, **({"where": "swin.layernorm"} if name == "cam" and kind == "swin" else {})
    )
    assert found.tensor.shape[-2:] == size and found.settings["size"] == grid
    assert found.tensor.isfinite().all() and found.tensor.flatten(1).any(dim=1).all()


def test_tokens_by_hand_on_an_image_that_patches_do_not_fill():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.block, self.head = nn.Conv2d(1, 8, 4, 4), layer, nn.Linear(8, 3)

        def forward(self, x):
            tokens = self.patch(x).flatten(2).mT
            return self.head(self.block(torch.cat([tokens[:, :1] * 0 + 1, tokens], dim=1)).mean(dim=1))

    model, x = Patches().eval(), normal(2, 1, 15, 22)  # 3 x 5 patches
    assert layerlens.grad_cam(model, x, "block", target=0, relu=False).settings["size"] == (3, 5)
    asked = layerlens.grad_cam(model, x, "block", target=0, relu=False, grid=(3, 5)).tensor
    own = layerlens.grad_cam(
        model, x, "block", target=0, relu=False, reshape=lambda out: out[:, 1:].mT.unflatten(2, (3, 5))
    ).tensor
    assert torch.equal(asked, own) and torch.equal(
        asked, layerlens.grad_cam(model, x, "block", target=0, relu=False).tensor
    )
    with pytest.raises(OptionError, match=r"cannot be laid on grid=\(9, 9\)"):
        layerlens.grad_cam(model, x, "block", target=0, grid=(9, 9))
    with pytest.raises(OptionError, match=r"reshape= must return \(batch, unit, height, width\)"):
        layerlens.grad_cam(model, x, "block", target=0, reshape=lambda out: out)
    with pytest.raises(OptionError, match="reshape= lays out the output of one layer"):
        layerlens.grad_cam(model, x, target=0, reshape=lambda out: out)


@EVERY
def test_frozen_no_grad_inference_mode_train_mode_hooks_and_half_precision(name):
    model, x = net(True, pool=1).float(), normal(2, 3, 8, 8)
    expected = cam_of(model, x, name, target=1, where="3").tensor
    model.train().requires_grad_(False)
    kept = []
    handle = model[2].register_forward_hook(lambda module, args, output: kept.append(1))
    before = Snapshot(model, x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            torch.testing.assert_close(cam_of(model, x.clone(), name, target=1, where="3").tensor, expected)
    before.check()
    assert kept
    handle.remove()
    half = cam_of(model.bfloat16(), x.bfloat16(), name, target=1, where="3").tensor
    assert half.dtype == torch.bfloat16
    assert torch.cosine_similarity(half.float().flatten(), expected.flatten(), dim=0) > 0.9


@EVERY
def test_a_batch_is_its_samples_and_statistics_stay(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(True), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    ).double()  # fmt: skip
    x = normal(3, 3, 8, 8).double()
    before = Snapshot(model, x)
    together = cam_of(model, x, name, target=[1, 2, 0], where="2", units=None).tensor
    for k, target in enumerate([1, 2, 0]):
        alone = cam_of(model, x[k : k + 1], name, target=target, where="2", units=None).tensor
        torch.testing.assert_close(alone[0], together[k])
    before.check()


@EVERY
def test_targets_and_places_that_do_not_exist(name):
    model, x = net(pool=1), normal(2, 3, 8, 8).double()
    with pytest.raises(TargetError, match=r"class 7 is out of range: the output has 4 classes"):
        cam_of(model, x, name, target=7)
    with pytest.raises(SelectionError, match="matches 2 layers"):
        cam_of(model, x, name, target=1, where=nn.Conv2d)
    with pytest.raises(OptionError, match="is not a grid of places"):
        cam_of(model, x, name, target=1, where="6")
    with pytest.raises(RecordError, match=r"ran once .* there is no call 4"):
        cam_of(model, x, name, target=1, where="3#4")
    with pytest.raises(OptionError, match="call= is one of the calls of a layer"):
        cam_of(model, x, name, target=1, call=0)


@EVERY
def test_an_error_inside_gives_the_model_back(name, hooks_of):
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.runs = net(pool=1), 0

        def forward(self, x):
            self.runs += 1
            out = self.body(x)
            if self.runs == self.last:
                raise KeyboardInterrupt
            return out

    model, x = Breaks(), normal(1, 3, 8, 8).double()
    before = [parameter.requires_grad for parameter in model.parameters()]
    for last in (1, 2, 3):
        model.runs, model.last = 0, last
        with torch.no_grad(), contextlib.suppress(KeyboardInterrupt):
            cam_of(model, x, name, target=1, where="body.3", batch_size=1)
        assert hooks_of(model) == 0 and model.training
        assert [parameter.requires_grad for parameter in model.parameters()] == before


@EVERY
def test_segmentation_by_a_callable_and_calls_of_a_reused_layer(name):
    if name in ("cam", "finer_cam"):
        pytest.skip("of classes")
    torch.manual_seed(0)
    relu = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), relu, nn.Conv2d(4, 4, 3, padding=1), relu, nn.Conv2d(4, 2, 1))
    x = normal(2, 3, 8, 8)

    def left(out):
        return out[:, 1, :, :4].sum(dim=(1, 2))

    with pytest.raises(RecordError, match="say which"):
        cam_of(model, x, name, target=left, where="1")
    first = cam_of(model, x, name, target=left, where="1#0").tensor
    last = cam_of(model, x, name, target=left, layer="1", call=-1).tensor
    assert not torch.equal(first, last)
    if name in GRADIENT and name not in (
        "grad_cam",
        "x_grad_cam",
        "grad_cam_plus_plus",
        "guided_grad_cam",
        "eigen_grad_cam",
    ):
        assert last[..., 5:].abs().max() == 0 and last[..., :4].abs().max() > 0


@pytest.mark.parametrize("name", ["score_cam", "ablation_cam", "eigen_cam"])
def test_scores_without_a_gradient(name):
    model, x = net(), normal(2, 3, 8, 8).double()
    found = cam_of(model, x, name, target=lambda out: (out.detach()[:, 1] * 100).round())
    assert found.settings["layer"] == "4" and found.tensor.any()


def test_smooth_options():
    model, x = net(), normal(2, 3, 8, 8).double()
    at = {"target": 1, "where": "3", "relu": False}
    found = layerlens.saliency(model, x, method="layer_cam", aug_smooth=True, **at)
    maps = []
    for flip in (False, True):
        for factor in (0.9, 1.0, 1.1):
            cam = layerlens.saliency(model, (x.flip(-1) if flip else x) * factor, method="layer_cam", **at).tensor
            maps.append(cam.flip(-1) if flip else cam)
    torch.testing.assert_close(found.tensor, torch.stack(maps).mean(dim=0))
    assert found.settings["aug_smooth"] is True
    lstm = CASES["lstm"]
    with pytest.raises(OptionError, match="aug_smooth mirrors images"):
        layerlens.grad_cam(lstm.build(), lstm.example(), target=1, aug_smooth=True)


def test_every_method_is_of_the_family_and_takes_its_layer_from_where():
    table = layerlens.saliency.methods()
    assert all(table[name][0] == "cam" for name in NAMES)


class Rectified(nn.Module):
    """A convolution, a ReLU that writes into what it takes, a residual sum, and a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.join = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Identity()
        self.head = nn.Linear(4 * 36, 2)

    def forward(self, x):
        return self.head(self.join(self.relu(self.conv(x)) + x.tanh()).flatten(1))


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
@pytest.mark.parametrize("layer", ["relu", "join"])
def test_maps_of_what_a_layer_takes(layer):
    from captum.attr import GuidedGradCam, LayerGradCam

    model, x = Rectified().double().eval(), normal(2, 1, 6, 6).double()
    where, own = layerlens.input_of(layer), {"target": 1, "attribute_to_layer_input": True}
    found = layerlens.saliency(model, x, target=1, method="grad_cam", where=where, relu=False)
    expected = LayerGradCam(model, getattr(model, layer)).attribute(x, **own)[:, 0].detach()
    torch.testing.assert_close(found.tensor, expected)
    assert found.settings["layer"] == f"input of {layer}" and found.settings["size"] == (6, 6)
    expected = GuidedGradCam(model, getattr(model, layer)).attribute(x, **own)
    torch.testing.assert_close(
        layerlens.saliency(model, x, target=1, method="guided_grad_cam", where=where).tensor, expected
    )
    held = model.conv(x) if layer == "relu" else model.conv(x).relu() + x.tanh()
    held = held.detach()
    after = (
        (lambda y: model.head((y.relu() + x.tanh()).flatten(1)))
        if layer == "relu"
        else lambda y: model.head(y.flatten(1))
    )
    with torch.no_grad():
        score = after(held)[:, 1]
        drops = []
        for unit in range(4):
            less = held.clone()
            less[:, unit] = 0
            drops.append((score - after(less)[:, 1]) / score.abs())
    expected = (torch.stack(drops, dim=1)[:, :, None, None] * held).sum(dim=1)
    found = layerlens.saliency(model, x, target=1, method="ablation_cam", where=where, relu=False)
    torch.testing.assert_close(found.tensor, expected)
    smooth = layerlens.saliency(model, x, target=1, method="layer_cam", where=where, aug_smooth=True)
    assert bool(smooth.tensor.any())
