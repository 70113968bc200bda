"""Class activation maps over what they cannot do without: one gradient, or one forward pass per unit; captum beside.

python -m benchmarks.cam > benchmarks/cam.md
"""

import functools
import platform
import warnings

import torch

import layerlens
from layerlens.analyzers.saliency.saliency import known_methods
from layerlens.demo.efficientnet import load_efficientnet

from .timing import medians

UNITS = 64
TRIED = ("score_cam", "ablation_cam")


def main() -> None:
    """Print the table."""
    from captum.attr import LayerGradCam

    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, x = load_efficientnet().requires_grad_(False), torch.randn(1, 3, 224, 224)
    layer, target = "_swish#1", 3

    def gradient() -> None:
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(model(leaf)[:, target].sum(), leaf)

    def from_layer() -> None:
        """A gradient that ends at the last layer, as Grad-CAM needs: a forward pass, and a head's backward pass."""
        kept = []

        def keep(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            kept.append(output.detach().requires_grad_())
            return kept[-1]

        handle = last.register_forward_hook(keep)
        torch.autograd.grad(model(x)[:, target].sum(), kept[-1])
        handle.remove()

    def forwards(size: int) -> None:
        with torch.no_grad():
            for start in range(0, UNITS, size):
                model(x.expand(min(size, UNITS - start), -1, -1, -1))

    last = model.get_submodule("_conv_head")
    captum = LayerGradCam(model, last)
    calls = {"ideal: to the input": gradient, "ideal: to the layer": from_layer}
    calls["captum Grad-CAM"] = lambda: captum.attribute(x, target=target)
    names = [name for name, method in known_methods().items() if method.family == "cam"]
    for name in names:
        if name not in TRIED:
            at = {"target": target, "method": name}
            at_layer = layer if name == "cam" else "_conv_head"
            calls[name] = functools.partial(layerlens.saliency, model, x, where=at_layer, **at)
    calls["grad_cam, layer chosen"] = functools.partial(layerlens.saliency, model, x, target=target, method="grad_cam")
    seconds = medians(calls, runs=11)
    print(f"# Class activation maps, measured\n\nEfficientNet-Lite0, one picture, torch {torch.__version__}, ", end="")
    print(f"{platform.machine()}, one thread, medians of 11 alternating runs.\n")
    print("| method | ms | over one forward and backward pass to the input |\n| --- | --- | --- |")
    for name, taken in seconds.items():
        print(f"| {name} | {1000 * taken:.1f} | {taken / seconds['ideal: to the input']:.2f} |")
    tried = {f"forwards, {size} at once": functools.partial(forwards, size) for size in (1, 2, 8)}
    for name in TRIED:
        at = {"target": target, "method": name, "units": UNITS, "where": "_conv_head"}
        tried[name] = functools.partial(layerlens.saliency, model, x, **at)
    seconds = medians(tried, runs=5)
    best = min(taken for name, taken in seconds.items() if name.startswith("forwards"))
    print(f"\n| {UNITS} units | ms | over the best of the forward passes |\n| --- | --- | --- |")
    for name, taken in seconds.items():
        print(f"| {name} | {1000 * taken:.0f} | {taken / best:.2f} |")


if __name__ == "__main__":
    main()
