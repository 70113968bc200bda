"""Attribution methods over the batched passes that they cannot do without, with captum's defaults beside; and memory.

python -m benchmarks.saliency > benchmarks/saliency.md
"""

import dataclasses
import functools
import importlib.metadata
import math
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn

import layerlens
from layerlens.demo.efficientnet import load_efficientnet

from .memory import peak
from .timing import medians

TARGET, RUNS, SIDE = 3, 3, 8
SIZES = (1, 2, 8)
"""Samples in one pass of the ideal, which is the best of them."""
MANY = 16
"""Passes of the ideal in a round."""

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        name: as it is called, with the options that make it shorter.
        ours: a run of it.
        passes: what it is made of: kind of pass -> how many.
        peer: captum's; None where captum has none, or refuses the model.
        peers: its passes where they differ.
        single: whether its passes cannot be batched: there is one, or each needs the one before.
    """

    name: str
    ours: Call
    passes: Mapping[str, int]
    peer: Call | None = None
    peers: Mapping[str, int] | None = None
    single: bool = False


class Passes:
    """`MANY` passes of each kind, so many at once."""

    def __init__(self, model: nn.Module, x: torch.Tensor, layer: nn.Module) -> None:
        self.model, self.x, self.layer = model, x, layer

    def many(self, kind: str, size: int) -> Call:
        """A call that makes `MANY` passes."""
        batch = self.x.expand(size, *self.x.shape[1:])

        def run() -> None:
            for _ in range(MANY // size):
                getattr(self, kind)(batch)

        return run

    def forward(self, batch: torch.Tensor) -> None:
        """Forward passes alone."""
        with torch.no_grad():
            self.model(batch)

    def gradient(self, batch: torch.Tensor) -> None:
        """Forward and backward passes to the input."""
        leaf = batch.clone().requires_grad_()
        torch.autograd.grad(self.model(leaf)[:, TARGET].sum(), leaf)

    def head(self, batch: torch.Tensor) -> None:
        """Forward passes, and backward passes that end at the layer."""
        kept = []

        def keep(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            kept.append(output.detach().requires_grad_())
            return kept[-1]

        handle = self.layer.register_forward_hook(keep)
        torch.autograd.grad(self.model(batch)[:, TARGET].sum(), kept[-1])
        handle.remove()


def pictures(model: nn.Module, x: torch.Tensor) -> list[Row]:
    """The methods on one picture, by default but for fewer passes where there would be many."""
    from captum import attr

    def ours(method: str, **options: object) -> Call:
        return functools.partial(layerlens.saliency, model, x, target=TARGET, method=method, **options)

    def captum(method: type, *given: object, **options: object) -> Call:
        return functools.partial(method(model, *given).attribute, x, target=TARGET, **options)

    def tunnel(kind: str) -> Call:
        noise = attr.NoiseTunnel(attr.Saliency(model))
        return functools.partial(noise.attribute, x, target=TARGET, nt_type=kind, nt_samples=25)

    cells = torch.arange(SIDE**2).reshape(1, 1, SIDE, SIDE)
    mask = {"feature_mask": cells.repeat_interleave(x.shape[2] // SIDE, 2).repeat_interleave(x.shape[3] // SIDE, 3)}
    window = {"sliding_window_shapes": (3, 56, 56), "strides": (3, 28, 28)}
    g, f, one = "gradient", "forward", {"gradient": 1}
    lift = captum(attr.DeepLift)
    fixed = {"steps": 50, "tolerance": math.inf}
    gradient_shap = captum(attr.GradientShap, baselines=torch.zeros_like(x), n_samples=24)
    return [
        Row("integrated_gradients", ours("integrated_gradients", **fixed), {g: 50}, captum(attr.IntegratedGradients)),
        Row("blur_ig", ours("blur_ig", **fixed), {g: 50}),
        Row("guided_ig, 25 steps", ours("guided_ig", steps=25), {g: 26}, single=True),
        Row("smooth_grad", ours("smooth_grad"), {g: 25}, tunnel("smoothgrad")),
        Row("var_grad", ours("var_grad"), {g: 25}, tunnel("vargrad")),
        Row("gradient_shap, 24 samples", ours("gradient_shap", samples=24), {g: 24, f: 8}, gradient_shap, {g: 24}),
        Row("deep_lift", ours("deep_lift"), {g: 1, f: 1}, lift, single=True),
        Row("input_x_gradient", ours("input_x_gradient"), one, captum(attr.InputXGradient), single=True),
        Row("guided_backprop", ours("guided_backprop"), one, captum(attr.GuidedBackprop), single=True),
        Row("relevance", ours("relevance"), one, single=True),
        Row("occlusion, window 56", ours("occlusion", window=56), {f: 50}, captum(attr.Occlusion, **window)),
        Row("feature_ablation", ours("feature_ablation"), {f: 65}, captum(attr.FeatureAblation, **mask)),
        Row("rise, 128 masks", ours("rise", samples=128), {f: 128}),
        Row("lime, 128 samples", ours("lime", samples=128), {f: 128}, captum(attr.Lime, n_samples=128, **mask)),
        Row(
            "kernel_shap, 128 samples",
            ours("kernel_shap", samples=128),
            {f: 130},
            captum(attr.KernelShap, n_samples=128, **mask),
        ),
        Row(
            "shapley_sampling, 2 orders",
            ours("shapley_sampling", permutations=2),
            {f: 128},
            captum(attr.ShapleyValueSampling, n_samples=2, **mask),
        ),
        Row("score_cam, 128 units", ours("score_cam", where="_conv_head", units=128), {f: 129}),
        Row("ablation_cam, 128 units", ours("ablation_cam", where="_conv_head", units=128), {f: 129}),
        Row(
            "grad_cam at a layer",
            ours("grad_cam", where="_conv_head"),
            {"head": 1},
            captum(attr.LayerGradCam, model.get_submodule("_conv_head")),
            single=True,
        ),
        Row("grad_cam, layer chosen", ours("grad_cam"), {"head": 1}, single=True),
    ]


class Embedded(nn.Module):
    """A classifier of texts from the embeddings of their tokens to its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(batch, token, feature) to (batch, class)."""
        return self.model(inputs_embeds=embeddings).logits


class Logits(nn.Module):
    """The same from token ids, as peers want it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(batch, token) to (batch, class)."""
        return self.model(ids).logits


def texts() -> tuple[Passes, list[Row]]:
    """The methods on a text of 32 tokens."""
    from captum.attr import FeatureAblation, LayerIntegratedGradients
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 1024}
    model = BertForSequenceClassification(BertConfig(num_labels=4, **sizes)).eval().requires_grad_(False)
    ids = torch.randint(1, 30000, (1, 32))
    table = model.bert.embeddings.word_embeddings
    logits = Logits(model)

    def ours(method: str, **options: object) -> Call:
        return functools.partial(layerlens.saliency, model, {"input_ids": ids}, target=TARGET, method=method, **options)

    def integrated() -> object:
        for parameter in table.parameters():  # captum needs a graph that starts before its layer
            parameter.requires_grad_(True)
        return LayerIntegratedGradients(logits, table).attribute(ids, target=TARGET, n_steps=50)

    ablated = functools.partial(FeatureAblation(logits).attribute, ids, target=TARGET)
    fixed = {"steps": 50, "tolerance": math.inf}
    return Passes(Embedded(model), table(ids).detach(), model), [
        Row("integrated_gradients", ours("integrated_gradients", **fixed), {"gradient": 50}, integrated),
        Row("leave_one_out", ours("leave_one_out"), {"forward": 129}, ablated, {"forward": 33}),
    ]


def show(passes: Passes, rows: list[Row]) -> None:
    """Print a row for each method as it is measured."""
    print("| method | passes | ideal, ms | at once | layerlens | captum |\n| --- | --- | ---: | ---: | ---: | ---: |")
    wanted = sys.argv[1:]
    for row in rows:
        if wanted and not any(row.name.startswith(name) for name in wanted):
            continue
        kinds = [(kind, size) for kind in row.passes for size in (SIZES[:1] if row.single else SIZES)]
        calls: dict[str, Call] = {f"{kind} {size}": passes.many(kind, size) for kind, size in kinds}
        calls["ours"] = row.ours
        if row.peer is not None:
            calls["captum"] = row.peer
        runs = RUNS if sum(row.passes.values()) > MANY else 5 * RUNS
        taken = medians(calls, runs, time.process_time)
        best = {
            kind: min((taken[f"{kind} {size}"] / MANY, size) for of, size in kinds if of == kind) for kind in row.passes
        }
        ideal = sum(count * best[kind][0] for kind, count in row.passes.items())
        theirs = sum(count * best[kind][0] for kind, count in (row.peers or row.passes).items())
        cells = [
            " + ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in row.passes.items()),
            f"{1000 * ideal:.0f}",
            ", ".join(str(size) for _, size in best.values()),
            f"{taken['ours'] / ideal:.2f}",
            f"{taken['captum'] / theirs:.2f}" if row.peer is not None else "",
        ]
        print(f"| {row.name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables as Markdown."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, x = load_efficientnet().requires_grad_(False), torch.randn(1, 3, 224, 224)
    print("# Attribution methods, as a multiple of the passes they are made of\n")
    print(f"{platform.machine()}, {torch.get_num_threads()} thread(s), torch {torch.__version__}, captum ", end="")
    print(f"{importlib.metadata.version('captum')}. Made by `python -m benchmarks.saliency`.\n")
    print(
        f"Medians of {RUNS} alternating runs in one process ({5 * RUNS} of short ones), in seconds of the processor,"
    )
    print("which other work on the machine disturbs less than those of the clock; repeated, most rows move by .05. The")
    print(
        "ideal is the passes that the method is defined by, bare, at the best of 1, 2 and 8 at once in the same rounds"
    )
    print(
        "(1 where a pass needs the one before it, or is the only one); `head` is a forward pass and a backward pass to"
    )
    print("the layer. Everything else a method does counts as its own: masks, noise, checks of completeness, the first")
    print("pass that measures the batch, lending the model.\n")
    print("## EfficientNet-Lite0, one picture\n")
    rows = pictures(model, x)
    show(Passes(model, x, model.get_submodule("_conv_head")), rows)
    print("\n## BERT with random weights, 6 x 256, 32 tokens\n")
    show(*texts())
    if len(sys.argv) == 1:
        print("\n## Memory of the process at most, MB\n\n| | layerlens | captum |\n| --- | ---: | ---: |")
        for row in rows:
            if row.name in ("integrated_gradients", "smooth_grad") and row.peer is not None:
                print(f"| {row.name} | {peak(row.ours) / 1e6:.0f} | {peak(row.peer) / 1e6:.0f} |")
        one = peak(functools.partial(Passes(model, x, model).gradient, x)) / 1e6
        print(f"\nOne gradient takes {one:.0f} MB.")


if __name__ == "__main__":
    main()
