"""What `benchmarks.speed` measures: models as users have them, each with a floor, ours, and what a peer takes."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import nn

import layerlens
from layerlens.demo.efficientnet import load_efficientnet

from .capture import captum_layers, plain, raw_hooks
from .relevance import LastStep, Logits, Vgg, captum_lrp, gradient_times_input, zennit_composite

Run = Callable[[], object]
TARGET = 0


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what is called.
        floor: the work it cannot do without.
        ours: the call.
        goal: the multiple of the floor that we want.
        peers: the same by others: name -> what makes the call, and raises or returns None where they have none.
    """

    work: str
    floor: Run
    ours: Run
    goal: float
    peers: Mapping[str, Callable[[], Run | None]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, inputs of batch 1 and of a larger batch, and its rows."""

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: Callable[[nn.Module, torch.Tensor], Iterator[Row]]
    batches: tuple[int, ...] = (1, 8)


def mlp() -> nn.Module:
    """Five layers, as for a table."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


class ShortLstm(LastStep):
    """Two layers of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(64, 64, num_layers=2, batch_first=True), nn.Linear(64, 10)


def resnet() -> nn.Module:
    """Torchvision's ResNet-18 where it can be imported, which writes in place, or that of transformers."""
    try:
        from torchvision.models import resnet18
    except (ImportError, RuntimeError):  # no build of torchvision fits this torch
        from transformers import ResNetConfig, ResNetForImageClassification

        sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64}
        return Logits(ResNetForImageClassification(ResNetConfig(layer_type="basic", **sizes)))
    return resnet18()


def vit(width: int) -> nn.Module:
    """A vision transformer of 12 blocks."""
    from transformers import ViTConfig, ViTForImageClassification

    return Logits(ViTForImageClassification(ViTConfig(hidden_size=width, num_attention_heads=width // 64)))


def gradient(model: nn.Module, x: torch.Tensor) -> Run:
    """The floor of attributions: one forward pass, and one backward pass to the input."""
    return gradient_times_input(model, x)


def of_capture(model: nn.Module, x: torch.Tensor, goal: float) -> Row:
    """All layers, over raw hooks."""
    layers = [path for path, _ in model.named_modules() if path]
    peers = {"captum": functools.partial(captum_layers, model, x, layers)}
    ours = functools.partial(layerlens.capture, model, x, "**")
    return Row("capture **, over raw hooks", raw_hooks(model, x, layers), ours, goal, peers)


def of_relevance(model: nn.Module, x: torch.Tensor, rules: str, goal: float) -> Row:
    """Relevance of one class."""
    ours = functools.partial(layerlens.relevance, model, x, target=TARGET, rules=rules)
    peers = {
        "captum": functools.partial(captum_lrp, model, x, rules),
        "zennit": functools.partial(zennit_composite, model, x, rules),
    }
    return Row(f"relevance {rules}", gradient(model, x), ours, goal, peers)


def of_saliency(model: nn.Module, x: torch.Tensor, method: str, goal: float, **options: object) -> Row:
    """An attribution."""
    from captum.attr import DeepLift, IntegratedGradients, Saliency

    ours = functools.partial(layerlens.saliency, model, x, target=TARGET, method=method, **options)
    known = {"gradient": Saliency, "integrated_gradients": IntegratedGradients, "deep_lift": DeepLift}
    peers: dict[str, Callable[[], Run | None]] = {}
    if method in known:
        peer = known[method](model)
        peers["captum"] = lambda: lambda: peer.attribute(x.clone().requires_grad_(), target=TARGET)
    words = "".join(f", {name}={value}" for name, value in options.items())
    return Row(f"saliency {method}{words}", gradient(model, x), ours, goal, peers)


def of_cam(model: nn.Module, x: torch.Tensor, layer: str, goals: tuple[float, float]) -> Iterator[Row]:
    """Grad-CAM at a named layer, and at the one that is found."""
    from captum.attr import LayerGradCam

    peer = LayerGradCam(model, model.get_submodule(layer))
    for at, goal in ((layer, goals[0]), (None, goals[1])):
        options = {"layer": at} if at else {}
        row = of_saliency(model, x, "grad_cam", goal, **options)
        yield dataclasses.replace(row, peers={"captum": lambda: lambda: peer.attribute(x, target=TARGET)})


def of_resnet(model: nn.Module, x: torch.Tensor) -> Iterator[Row]:
    """Capture, the layer table, relevance, DeepLIFT, Grad-CAM and the Jacobian."""
    lens = layerlens.Lens(model)
    yield of_capture(model, x, 1.15)
    yield Row("lens.layers(x)", plain(model, x), lambda: lens.layers(x), 1.5)
    yield of_relevance(model, x, "epsilon", 1.1)
    yield of_relevance(model, x, "epsilon_plus", 1.7)
    yield of_saliency(model, x, "gradient", 1.1)
    yield of_saliency(model, x, "deep_lift", 2.0)
    names = [path for path, _ in model.named_modules()]
    yield from of_cam(model, x, next(path for path in names if path.endswith(("layer4", "stages.3"))), (0.46, 0.5))
    if len(x) == 1:
        yield Row("jacobian, 1 probe", plain(model, x), lambda: lens.jacobian(x, probes=1), 3)


def of_efficientnet(model: nn.Module, x: torch.Tensor) -> Iterator[Row]:
    """Relevance by epsilon and the composite."""
    yield of_capture(model, x, 1.15)
    yield of_relevance(model, x, "epsilon", 1.15)
    yield of_relevance(model, x, "epsilon_plus", 1.8)


def of_vit(model: nn.Module, x: torch.Tensor) -> Iterator[Row]:
    """Relevance of transformers."""
    yield of_relevance(model, x, "cp", 1.1)
    yield of_relevance(model, x, "attn", 1.15)


def of_vgg(model: nn.Module, x: torch.Tensor) -> Iterator[Row]:
    """Composites on a plain stack."""
    for rules in ("epsilon_plus", "epsilon_plus_flat", "epsilon_alpha2_beta1_flat"):
        yield of_relevance(model, x, rules, 1.8)


def of_mlp(model: nn.Module, x: torch.Tensor) -> Iterator[Row]:
    """The fixed price of a call."""
    yield of_capture(model, x, 2.0)
    yield of_relevance(model, x, "epsilon", 2.5)
    yield of_saliency(model, x, "gradient", 2.0)
    yield of_saliency(model, x, "integrated_gradients", 30.0)


def of_lstm(model: nn.Module, x: torch.Tensor) -> Iterator[Row]:
    """The gate rule."""
    yield of_capture(model, x, 2.0)
    yield of_relevance(model, x, "gate", 3.0)
    yield of_saliency(model, x, "gradient", 2.0)


CASES = (
    Case("MLP, 5 layers", mlp, (64,), of_mlp, (64, 1)),
    Case("LSTM, 2 x 64, 50 steps", ShortLstm, (50, 64), of_lstm, (16, 1)),
    Case("ResNet-18", resnet, (3, 224, 224), of_resnet),
    Case("EfficientNet-Lite0", load_efficientnet, (3, 224, 224), of_efficientnet),
    Case("ViT, 12 x 192", functools.partial(vit, 192), (3, 224, 224), of_vit, (1, 4)),
    Case("ViT, 12 x 384", functools.partial(vit, 384), (3, 224, 224), of_vit, (1, 4)),
    Case("VGG-like, 96 px", Vgg, (3, 96, 96), of_vgg),
)
