"""Relevance propagation over gradient x input, its floor: one forward and one backward pass.

python -m benchmarks.relevance
"""

import platform
from collections.abc import Callable

import torch
from torch import nn

from layerlens import relevance
from layerlens.target import as_target

from .timing import medians


class LastStep(nn.Module):
    """An LSTM and a linear head on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(64, 128, num_layers=2, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, time, 64) to (batch, 10)."""
        return self.head(self.rnn(x)[0][:, -1])


def rows() -> dict[str, tuple[nn.Module, torch.Tensor]]:
    """Models and inputs: real weights where they ship, random ones elsewhere."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

    from layerlens.demo.efficientnet import load_efficientnet

    torch.manual_seed(0)
    efficientnet = load_efficientnet()
    vit = ViTForImageClassification(ViTConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=6)).eval()
    resnet = ResNetForImageClassification(
        ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    ).eval()
    return {
        "EfficientNet-Lite0, batch 1": (efficientnet, torch.randn(1, 3, 224, 224)),
        "EfficientNet-Lite0, batch 8": (efficientnet, torch.randn(8, 3, 224, 224)),
        "ResNet-18, batch 4": (resnet, torch.randn(4, 3, 224, 224)),
        "ViT, 6 layers, batch 4": (vit, torch.randn(4, 3, 224, 224)),
        "LSTM, 2 layers, 50 steps, batch 16": (LastStep().eval(), torch.randn(16, 50, 64)),
        "MLP, batch 64": (nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)), torch.randn(64, 64)),
    }


def gradient_times_input(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """The floor, for class 0."""
    target = as_target(0)

    def run() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(target(model(leaf)).sum(), leaf)
        return leaf.detach() * gradient

    return run


def main() -> None:
    """Print the table as Markdown."""
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print("| model | gradient x input, ms | relevance, ms | ratio |\n| --- | ---: | ---: | ---: |")
    for name, (model, x) in rows().items():
        timed = medians(
            {"floor": gradient_times_input(model, x), "ours": lambda m=model, x=x: relevance(m, x, target=0)}
        )
        floor, ours = timed["floor"] * 1000, timed["ours"] * 1000
        print(f"| {name} | {floor:.1f} | {ours:.1f} | {ours / floor:.2f} |", flush=True)


if __name__ == "__main__":
    main()
