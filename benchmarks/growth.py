"""How the cost of each analyzer grows with layers, width, tokens and batch: milliseconds beside those of a gradient.

OMP_NUM_THREADS=1 python -m benchmarks.growth [picture]     # writes docs/speed-growth.png, and prints the numbers

With one thread, seconds are those of the processor.
"""

import functools
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import nn

import layerlens
from layerlens.plotting import style

from .relevance import LastToken, gradient_times_input
from .timing import medians

Run = Callable[[], object]
SECONDS = 2.0
"""How long the runs of one size take together."""


def mlp(layers: int, width: int) -> nn.Module:
    """Linear layers with ReLU between them."""
    middle = [module for _ in range(layers) for module in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*middle, nn.Linear(width, 10))


def gpt2() -> nn.Module:
    """A language model from embeddings to the last token's logits."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return LastToken(GPT2LMHeadModel(GPT2Config(n_layer=4, n_embd=128, n_head=4)))


def sizes() -> Mapping[str, tuple[Sequence[int], Callable[[int], tuple[nn.Module, torch.Tensor]]]]:
    """What grows, how far, and the model and input of a size."""
    return {
        "layers (MLP, 64 wide, batch 8)": ((1, 4, 16, 64), lambda size: (mlp(size, 64), torch.randn(8, 64))),
        "width (MLP, 4 layers, batch 8)": ((16, 64, 256, 1024), lambda size: (mlp(4, size), torch.randn(8, size))),
        "tokens (GPT-2, 4 x 128, batch 1)": ((8, 32, 128, 512), lambda size: (gpt2(), torch.randn(1, size, 128))),
        "batch (MLP, 4 layers, 64 wide)": ((1, 8, 64, 512), lambda size: (mlp(4, 64), torch.randn(size, 64))),
    }


def analyzers(model: nn.Module, x: torch.Tensor) -> dict[str, Run]:
    """The calls, with the floor first."""
    saliency = functools.partial(layerlens.saliency, model, x, target=0)
    return {
        "gradient x input by hand": gradient_times_input(model, x),
        "capture": lambda: layerlens.capture(model, x),
        "gradient": functools.partial(saliency, method="gradient"),
        "relevance": functools.partial(layerlens.relevance, model, x, target=0),
        "integrated gradients, 20 steps": functools.partial(saliency, method="integrated_gradients", steps=20),
        "layer table": lambda: layerlens.layers(model, x),
    }


def measured() -> dict[str, dict[str, list[float]]]:
    """Milliseconds of each analyzer by size, for each thing that grows."""
    found: dict[str, dict[str, list[float]]] = {}
    for what, (steps, make) in sizes().items():
        kept: dict[str, list[float]] = {}
        for size in steps:
            torch.manual_seed(0)
            model, x = make(size)
            calls = analyzers(model.eval(), x)
            start = time.perf_counter()
            for call in calls.values():
                call()
            rounds = max(5, min(60, round(SECONDS / (time.perf_counter() - start))))
            print(what, size, rounds, file=sys.stderr, flush=True)
            for name, seconds in medians(calls, runs=rounds).items():
                kept.setdefault(name, []).append(1000 * seconds)
        found[what] = kept
    return found


def drawn(found: Mapping[str, Mapping[str, Sequence[float]]]) -> plt.Figure:
    """Lines of cost against size, both logarithmic: parallel lines grow alike."""
    with style():
        figure, panels = plt.subplots(2, 2, figsize=(7.2, 5.4), layout="constrained")
        for panel, (what, calls), (steps, _) in zip(panels.flat, found.items(), sizes().values(), strict=True):
            for name, milliseconds in calls.items():
                floor = name.endswith("by hand")
                panel.plot(steps, milliseconds, "k--" if floor else "o-", label=name, markersize=3, linewidth=1.2)
            panel.set(xscale="log", yscale="log", xlabel=what, xticks=steps, xticklabels=steps)
            panel.minorticks_off()
        for row in panels:
            row[0].set_ylabel("ms a call")
        figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def main() -> None:
    """Print the numbers and write the picture."""
    warnings.simplefilter("ignore")
    found = measured()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s); milliseconds of a call.")
    for (what, calls), (steps, _) in zip(found.items(), sizes().values(), strict=True):
        print(f"\n| {what} | {' | '.join(map(str, steps))} |\n| --- |{' ---: |' * len(steps)}")
        for name, milliseconds in calls.items():
            print(f"| {name} | {' | '.join(f'{value:.2f}' for value in milliseconds)} |")
    drawn(found).savefig(sys.argv[1] if len(sys.argv) > 1 else "docs/speed-growth.png", dpi=150)


if __name__ == "__main__":
    main()
