"""Captures over a plain forward pass, beside raw hooks and peers.

python -m benchmarks.capture > benchmarks/capture.md

Peers run where they are installed (`pip install nnsight torchlens`); `-` stands for those that are not, or that refuse.
"""

import contextlib
import importlib.metadata
import platform
import warnings
from collections.abc import Callable

import torch
from torch import nn

from layerlens import Probe, capture

from .memory import peak
from .timing import medians

PEERS = ("captum", "nnsight", "torchlens")


def rows() -> dict[str, tuple[nn.Module, torch.Tensor, list[str]]]:
    """Models, inputs and the layers to capture."""
    from transformers import GPT2Config, GPT2Model, ResNetConfig, ResNetModel

    torch.manual_seed(0)
    gpt2 = Embedded(GPT2Model(GPT2Config(n_layer=6, n_embd=256, n_head=8))).eval()
    sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64}
    resnet = ResNetModel(ResNetConfig(layer_type="basic", **sizes)).eval()
    tiny = nn.Sequential(*[nn.Linear(8, 8) for _ in range(1000)]).eval()
    blocks = [f"model.h.{index}" for index in range(6)]
    stages = [f"encoder.stages.{stage}.layers.{layer}" for stage in range(4) for layer in range(2)]
    return {
        "GPT-2 6 x 256, blocks, 8 x 128": (gpt2, torch.randn(8, 128, 256), blocks),
        "GPT-2 6 x 256, blocks, 1 x 16": (gpt2, torch.randn(1, 16, 256), blocks),
        "ResNet-18, blocks, batch 8": (resnet, torch.randn(8, 3, 224, 224), stages),
        "1000 x Linear(8, 8)": (tiny, torch.randn(1, 8), [str(index) for index in range(1000)]),
    }


class Embedded(nn.Module):
    """A transformer from embeddings to its last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, features) to the same."""
        return self.model(inputs_embeds=x, use_cache=False).last_hidden_state


def raw_hooks(model: nn.Module, x: torch.Tensor, layers: list[str]) -> Callable[[], object]:
    """What anyone would write by hand: a hook that keeps each output, registered for the one run."""

    def run() -> dict[str, object]:
        kept: dict[str, object] = {}
        modules = dict(model.named_modules())
        handles = [
            modules[path].register_forward_hook(lambda module, args, output, path=path: kept.update({path: output}))
            for path in layers
        ]
        try:
            with torch.no_grad():
                model(x)
        finally:
            for handle in handles:
                handle.remove()
        return kept

    return run


def captum_layers(model: nn.Module, x: torch.Tensor, layers: list[str]) -> Callable[[], object]:
    """Captum's LayerActivation, which takes all layers in one forward pass."""
    from captum.attr import LayerActivation

    modules = [dict(model.named_modules())[path] for path in layers]
    return lambda: LayerActivation(model, modules).attribute(x)


def nnsight_trace(model: nn.Module, x: torch.Tensor, layers: list[str]) -> Callable[[], object]:
    """A trace of nnsight that saves each output."""
    from nnsight import NNsight

    wrapped = NNsight(model)

    def run() -> object:
        kept = {}
        with torch.no_grad(), wrapped.trace(x):
            for path in layers:
                kept[path] = wrapped.get(path).output.save()
        return kept

    return run


def torchlens_log(model: nn.Module, x: torch.Tensor, layers: list[str]) -> Callable[[], object]:
    """A trace of torchlens, which keeps every operation."""
    import torchlens

    def run() -> object:
        with torch.no_grad():
            return torchlens.trace(model, x)

    return run


def runs(make: Callable[[], Callable[[], object]]) -> Callable[[], object] | None:
    """The peer's run, if it can run at all."""
    try:
        run = make()
        return run if run() is not None else None
    except Exception:  # not installed, or whatever else it raises
        return None


def plain(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """The floor."""

    def run() -> object:
        with torch.no_grad():
            return model(x)

    return run


def main() -> None:
    """Print the tables as Markdown."""
    warnings.simplefilter("ignore")
    print("# Capture, as a multiple of a plain forward pass\n")
    versions = []
    for name in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}; {', '.join(versions)}.")
    print("Medians of alternating runs in one process. Made by `python -m benchmarks.capture`.\n")
    print("`capture` lends the model in eval mode and gives it back; `Probe` is hooks and record alone; `attached`")
    print("are hooks that stay over all runs; `after` is the plain model once all probes are gone.\n")
    heads = (
        "model",
        "forward, ms",
        "raw hooks",
        "capture",
        "Probe",
        "raw, attached",
        "Probe, attached",
        "after",
        *PEERS,
    )
    print(f"| {' | '.join(heads)} |\n| --- |{' ---: |' * (len(heads) - 1)}")
    makers = {"captum": captum_layers, "nnsight": nnsight_trace, "torchlens": torchlens_log}
    for name, (model, x, layers) in rows().items():
        one_row(name, model, x, layers, makers)
    reduced()


def one_row(name: str, model: nn.Module, x: torch.Tensor, layers: list[str], makers: dict[str, Callable]) -> None:
    """Print one model's line."""

    def probed() -> object:
        with Probe(model, layers, keep="reference") as record, torch.no_grad():
            model(x)
        return record

    floor = plain(model, x)
    candidates = {"floor": floor, "raw": raw_hooks(model, x, layers), "capture": lambda: capture(model, x, layers)}
    candidates["probe"] = probed
    peers = {peer: runs(lambda make=make: make(model, x, layers)) for peer, make in makers.items()}
    slow = {peer for peer, run in peers.items() if run is not None}
    timed = medians(candidates | {peer: peers[peer] for peer in slow}, runs=11)
    hand = dict.fromkeys(layers)
    modules = dict(model.named_modules())
    with Probe(model, layers, keep="reference"):
        attached = medians({"attached": floor}, runs=11)["attached"]
    handles = [modules[path].register_forward_hook(lambda m, a, o, p=path: hand.update({p: o})) for path in layers]
    by_hand = medians({"by hand": floor}, runs=11)["by hand"]
    for handle in handles:
        handle.remove()
    after = medians({"after": floor}, runs=11)["after"]  # which is also the machine's pace just then
    timed |= {"attached": timed["floor"] * attached / after, "by hand": timed["floor"] * by_hand / after}
    timed["after"] = after
    order = ("raw", "capture", "probe", "by hand", "attached", "after", *PEERS)
    cells = [f"{timed[key] / timed['floor']:.2f}" if key in timed else "-" for key in order]
    print(f"| {name} | {1000 * timed['floor']:.2f} | {' | '.join(cells)} |", flush=True)


def reduced() -> None:
    """Print what captures keep in memory: all of it, or what a reduction leaves."""
    print("\n## Memory of a capture, MiB over that of a plain forward pass\n")
    print("| model | outputs kept | mean of each output kept |")
    print("| --- | ---: | ---: |")
    model = nn.Sequential(*[nn.Conv2d(16, 16, 3, padding=1) for _ in range(40)]).eval()
    x = torch.randn(4, 16, 128, 128)
    floor = peak(plain(model, x))
    whole = peak(lambda: capture(model, x))
    mean = peak(lambda: capture(model, x, reduce=lambda output: output.mean(dim=(2, 3))))
    print(f"| 40 convolutions, 4 MiB each | {(whole - floor) / 2**20:.0f} | {(mean - floor) / 2**20:.0f} |")


if __name__ == "__main__":
    main()
