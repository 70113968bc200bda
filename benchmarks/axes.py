"""Axes of architectures: how many are known, which claims experiments confirm, and what following them costs.

python -m benchmarks.axes > benchmarks/axes.md

Models of packages that are not installed are left out. A kind, or names of models, as arguments print only their rows;
`cost` prints the table of costs alone.
"""

import contextlib
import importlib.util
import platform
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from layerlens.axes.follow import follow
from layerlens.axes.followed import followed
from layerlens.inputs.inputs import Inputs, as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.fastpath import layers_called
from tests.axes.experiments import check, same_claims
from tests.axes.kinds import KINDS
from tests.axes.zoo import TIMM, TORCHVISION, timm_model, torchvision_model
from tests.cases import CASES
from tests.families import FAMILIES, family

from .timing import medians

COLUMNS = (
    "family",
    "calls of layers",
    "tensors",
    "all axes known",
    "claims confirmed",
    "left open",
    "wrong",
    "cost: 1, 8",
)


COSTS = {
    "timm": ("resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050"),
    "transformers": ("vit", "bert", "gpt2", "llama", "swin", "t5"),
}


class Empty(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Do nothing with every operation: what any mode costs."""

    operations = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return function(*args, **(kwargs or {}))


def costs() -> None:
    """Print what the first `followed` of a shape costs, for one sample."""
    print("\n## Cost of the first time\n\nThe median of 25 alternating runs, in processor time: a forward pass of one "
          "sample; over it, a pass in a dispatch mode that does nothing, and all of what asks for the axes of a new "
          "shape.\n")  # fmt: skip
    print("| model | operations | forward pass, ms | an empty mode | axes |\n| --- | --- | --- | --- | --- |")
    mlp = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    rows: list[tuple[str, Callable[[], Any]]] = [("three linear layers", lambda: (mlp, torch.randn(1, 8)))]
    rows += [("LSTM, 10 steps", lambda: (nn.LSTM(8, 16, batch_first=True), torch.randn(1, 10, 8)))]
    if importlib.util.find_spec("timm"):
        rows += [(f"{name}, 64 x 96", lambda name=name: timm_model(name)) for name in COSTS["timm"]]
        rows += [(f"{name}, 224 x 224", lambda name=name: timm_model(name, (224, 224))) for name in COSTS["timm"]]
    if importlib.util.find_spec("transformers"):
        rows += [(f"{name}, tiny", lambda name=name: family(name)[:2]) for name in COSTS["transformers"]]
    for name, build in rows:
        torch.manual_seed(0)
        model, x = build()
        inputs = as_inputs(x).rows(torch.tensor([0]))
        mode = Empty()

        def plain(mode: Empty | None = None, model: nn.Module = model, inputs: Inputs = inputs) -> None:
            with torch.no_grad(), mode or contextlib.nullcontext():
                inputs.run(model)

        def axes(model: nn.Module = model, inputs: Inputs = inputs) -> None:
            followed(model, inputs, again=True)

        with mode:
            plain()
        count = mode.operations
        candidates = {"plain": plain, "empty": lambda: plain(mode), "axes": axes}  # noqa: B023
        seconds = medians(candidates, runs=25, clock=time.process_time)
        ratios = [f"{seconds[key] / seconds['plain']:.1f}" for key in ("empty", "axes")]
        print(f"| {name} | {count} | {seconds['plain'] * 1e3:.2f} | {' | '.join(ratios)} |", flush=True)


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    chosen = sys.argv[1:]
    if chosen == ["cost"]:
        return costs()
    if not chosen:
        print("# Axes, followed and checked\n")
        print(f"torch {torch.__version__}, {platform.machine()}, one thread, random weights. An experiment exchanges "
              "samples, changes patches of the input or weights of units, and looks at what moves; a claim is left "
              "open where everything moves alike. Cost: following the axes over a plain forward pass, for one and for "
              "eight samples, in processor time. One and two samples get the same axes, else a row says so.\n"
              )  # fmt: skip
    total: dict[str, list[int]] = {}
    for kind, name, build in _models():
        if chosen and kind not in chosen and name not in chosen:
            continue
        if kind not in total:
            total[kind] = [0, 0, 0, 0, 0]
            print(f"\n## {kind}\n\n| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
        torch.manual_seed(0)
        counts = _row(name, *build())
        total[kind] = [one + other for one, other in zip(total[kind], counts, strict=True)]
    if not chosen:
        costs()
    for kind, (models, tensors, known, confirmed, wrong) in total.items():
        print(f"\n{kind}: {models} models, {tensors} tensors, {known} with all axes known; "
              f"{confirmed} claims confirmed, {wrong} wrong.")  # fmt: skip


def _models() -> list[tuple[str, str, Callable[[], Any]]]:
    rows: list[tuple[str, str, Callable[[], Any]]] = []
    if importlib.util.find_spec("timm"):
        rows += [("timm", name, lambda name=name: timm_model(name)) for name in TIMM]  # type: ignore[misc]
    if importlib.util.find_spec("torchvision"):
        rows += [("torchvision", name, lambda name=name: torchvision_model(name)) for name in TORCHVISION]  # type: ignore[misc]
    if importlib.util.find_spec("transformers"):
        rows += [("transformers", name, lambda name=name: family(name)[:2]) for name in FAMILIES]  # type: ignore[misc]
    rows += [("others", name, lambda case=case: (case.build(), case.example())) for name, case in CASES.items()]  # type: ignore[misc]
    rows += [("others", name, build) for name, build in KINDS.items() if name != "graph"]  # its nodes are no samples
    return rows


def _row(name: str, model: nn.Module, x: Any) -> tuple[int, int, int, int, int]:
    inputs = as_inputs(x)
    axes = followed(model, inputs)
    tensors = [claimed for site in axes.calls for claimed in site.outputs.values()]
    known = sum(all(axis.known for axis in claimed) for claimed in tensors)
    found = check(model, inputs, axes)
    alone = same_claims(axes, followed(model, inputs.rows(torch.tensor([0]))))
    costs = [f"{_cost(model, inputs.rows(torch.arange(batch) % 2)):.1f}" for batch in (1, 8)]
    confirmed, left = found.confirmed.total(), found.open.total()
    note = f" ({len(alone)} differ for one sample)" if alone else ""
    print(f"| {name} | {len(axes.calls)} | {len(tensors)} | {known}{note} | {confirmed} | {left} | {len(found.wrong)} "
          f"| {costs[0]}, {costs[1]} |", flush=True)  # fmt: skip
    for text in (*found.wrong, *alone[:2]):
        print(name, text, file=sys.stderr, flush=True)
    return 1, len(tensors), known, confirmed, len(found.wrong)


def _cost(model: nn.Module, inputs: Inputs) -> float:
    """Return the time of following the axes over that of a plain forward pass."""

    def plain() -> None:
        with torch.no_grad():
            inputs.run(model)

    def axes() -> None:
        with borrowed(model, grad=False), layers_called():
            follow(model, inputs)

    start = time.process_time()
    plain()
    runs = 3 if time.process_time() - start < 0.05 else 1
    seconds = medians({"plain": plain, "axes": axes}, runs=runs, clock=time.process_time)
    return seconds["axes"] / seconds["plain"]


if __name__ == "__main__":
    main()
