"""What the robustness measures and the Jacobians of all layers cost, in forward passes.

python -m benchmarks.sensitivity_robustness
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import layerlens
from layerlens.demo import efficientnet, embedded

from .timing import medians

PROBES = 8


def rows() -> list[tuple[str, float, float, str]]:
    """(what, stated cost in forwards, measured ratio to one forward, remark)."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    return [*_jacobians(), *_digits()]


def _jacobians() -> list[tuple[str, float, float, str]]:
    """A probe of `jacobian`, all layers, the fixed part shared out among the probes."""
    found = []
    for name, (model, x) in _models().items():
        profile = layerlens.jacobian(model, x, draws=PROBES)
        ratio = _ratio(model, x, lambda model=model, x=x: layerlens.jacobian(model, x, draws=PROBES)) / PROBES
        remark = f"{len(profile)} layers, {profile.method.split(', ', 2)[2]}"
        found.append((f"jacobian, a probe of {PROBES}: {name}", 4.0, ratio, remark))
    return found


def _digits() -> list[tuple[str, float, float, str]]:
    """The others on the digit net, where a backward pass counts as two forwards."""
    model, (x, labels, _) = embedded.load_digit_net(), embedded.sample_pictures()
    sigma = layerlens.lipschitz(model, x, "blocks.2")
    used = float(sigma.checks["iterations"].max())

    def lipschitz() -> object:
        return layerlens.lipschitz(model, x, "blocks.2")

    def noise() -> object:
        return layerlens.noise_response(model, x, "blocks.1")

    def fgsm() -> object:
        return layerlens.attack_curve(model, x, labels, method="fgsm", bounds=(0, 1), null=False)

    def pgd() -> object:
        return layerlens.attack_curve(model, x, labels, eps=(0.01,), bounds=(0, 1), null=False)

    def drift() -> object:
        return layerlens.attack_drift(model, x, labels, method="fgsm", bounds=(0, 1))

    def corrupted() -> object:
        return layerlens.corruption_curve(model, x, labels, severities=(1, 2, 3, 4, 5))

    random = 5  # of the nine kinds for images
    return [
        (
            "lipschitz, one layer, 2 starts",
            4 + 2 * used * (4 + 2),
            _ratio(model, x, lipschitz),
            f"{used:.0f} iterations",
        ),
        ("noise_response, one layer", 4 + 3 * 8, _ratio(model, x, noise), "3 levels, 8 draws"),
        ("attack_curve, FGSM", 1 + 6 + 3, _ratio(model, x, fgsm), "7 sizes, one of them 0"),
        ("attack_curve, PGD", 1 + 2 * (10 * 3 + 1), _ratio(model, x, pgd), "1 size, 2 starts, 10 steps"),
        (
            "attack_drift, FGSM, all layers",
            4 + 10 + 2 * (1 + 7 * 9),
            _ratio(model, x, drift),
            "7 sizes, 8 draws of noise",
        ),
        (
            "corruption_curve, images",
            1 + 5 * (random * 4 + 9 - random),
            _ratio(model, x, corrupted),
            "9 kinds, 5 severities, 4 draws; drawing included",
        ),
    ]


def _ratio(model: nn.Module, x: Any, measure: Callable[[], object]) -> float:
    def forward() -> None:
        with torch.no_grad():
            model(**x) if isinstance(x, dict) else model(x)

    seconds = medians({"forward": forward, "measure": measure}, runs=7)
    return seconds["measure"] / seconds["forward"]


def _models() -> dict[str, tuple[nn.Module, Any]]:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

    wide = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
    vit = ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
    llama = LlamaConfig(**wide, intermediate_size=688, vocab_size=4000)
    ids = {"input_ids": torch.randint(1, 1000, (4, 64))}
    return {
        "EfficientNet-Lite0, 1 x 3 x 224 x 224": (efficientnet.load_efficientnet(), torch.rand(1, 3, 224, 224) * 2 - 1),
        "ViT (tiny), 1 x 3 x 224 x 224": (ViTForImageClassification(vit).eval(), torch.rand(1, 3, 224, 224) * 2 - 1),
        "BERT (6 x 256), 4 x 64 tokens": (BertModel(BertConfig(**wide, intermediate_size=1024)).eval(), ids),
        "Llama (6 x 256), 4 x 64 tokens": (LlamaForCausalLM(llama).eval(), ids),
        "LSTM (2 x 128), 8 x 50 steps": (nn.LSTM(64, 128, 2, batch_first=True).eval(), torch.randn(8, 50, 64)),
    }


def main() -> None:
    """Print the table."""
    print("| what | stated | measured | |\n| --- | --- | --- | --- |")
    for what, stated, measured, remark in rows():
        print(f"| {what} | {stated:.1f} F | {measured:.1f} F | {remark} |")


if __name__ == "__main__":
    main()
