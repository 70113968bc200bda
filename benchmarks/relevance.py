"""Relevance propagation over gradient x input, its floor: one forward and one backward pass; peers beside it.

python -m benchmarks.relevance > benchmarks/relevance.md

Captum's LRP and zennit run where they can: captum knows few layers, and zennit imports torchvision, which it needs for
its canonizers only, so a stand-in is given to it. A cell says `-` where a peer refuses the model.
"""

import contextlib
import copy
import functools
import importlib.machinery
import platform
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import nn

from layerlens import relevance
from layerlens.targets.target import as_target

from .memory import peak
from .timing import medians


class LastStep(nn.Module):
    """An LSTM and a linear head on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(64, 128, num_layers=2, batch_first=True), nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, time, 64) to (batch, 10)."""
        return self.head(self.rnn(x)[0][:, -1])


class LastToken(nn.Module):
    """A language model from embeddings to the logits of the last token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, features) to (batch, vocabulary)."""
        return self.model(inputs_embeds=x, use_cache=False, logits_to_keep=1).logits[:, -1]


class Logits(nn.Module):
    """A model of transformers as peers want it: tensor in, tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return self.model(x).logits


Row = tuple[Callable[[], nn.Module], torch.Tensor, tuple[str, ...]]
COMPOSITES = ("epsilon_plus", "epsilon_plus_flat", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat")


def rows() -> dict[str, Row]:
    """Models, inputs and rulebooks: EfficientNet-Lite0 with its weights, random ones elsewhere."""
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        ResNetConfig,
        ResNetForImageClassification,
        ViTConfig,
        ViTForImageClassification,
    )

    from layerlens.demo.efficientnet import load_efficientnet

    def resnet() -> nn.Module:
        sizes = {"depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512], "embedding_size": 64}
        return Logits(ResNetForImageClassification(ResNetConfig(layer_type="basic", **sizes)))

    def vit() -> nn.Module:
        return Logits(ViTForImageClassification(ViTConfig(hidden_size=384, num_attention_heads=6)))

    def gpt2() -> nn.Module:
        return LastToken(GPT2LMHeadModel(GPT2Config(n_layer=6, n_embd=256, n_head=8)))

    def llama() -> nn.Module:
        sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
        return LastToken(LlamaForCausalLM(LlamaConfig(num_attention_heads=9, num_key_value_heads=3, **sizes)))

    def mlp() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))

    torch.manual_seed(0)
    images = torch.randn(8, 3, 224, 224)
    return {
        "ResNet-18, batch 8": (resnet, images, ("epsilon", *COMPOSITES)),
        "VGG-like, 96 px, batch 8": (Vgg, torch.randn(8, 3, 96, 96), ("epsilon", *COMPOSITES)),
        "EfficientNet-Lite0, batch 1": (load_efficientnet, images[:1], ("epsilon", "epsilon_plus")),
        "EfficientNet-Lite0, batch 8": (load_efficientnet, images, ("epsilon", "epsilon_plus")),
        "ViT-S, 12 x 384, batch 4": (vit, images[:4], ("cp", "attn")),
        "GPT-2, 6 x 256, batch 8 x 128": (gpt2, torch.randn(8, 128, 256), ("cp", "attn")),
        "Llama, 135M, 128 tokens": (llama, torch.randn(1, 128, 576), ("cp", "attn")),
        "LSTM, 2 layers, 50 steps, batch 16": (LastStep, torch.randn(16, 50, 64), ("gate",)),
        "MLP, batch 64": (mlp, torch.randn(64, 64), ("epsilon",)),
    }


class Vgg(nn.Module):
    """A plain stack of convolutions of which captum knows every layer: nn.Flatten is none of them."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for taken, given in ((3, 64), (64, 128), (128, 256)):
            layers += [nn.Conv2d(taken, given, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(256 * 144, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 96, 96) to (batch, 10)."""
        return self.head(self.features(x).flatten(1))


def gradient_times_input(model: nn.Module, x: torch.Tensor) -> Callable[[], object]:
    """The floor, for class 0."""
    target = as_target(0)

    def run() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(target(model(leaf)).sum(), leaf)
        return leaf.detach() * gradient

    return run


def captum_lrp(model: nn.Module, x: torch.Tensor, rules: str) -> Callable[[], object] | None:
    """Captum's LRP by its default rules, which are those of epsilon; None for other rules."""
    if rules not in ("epsilon", "cp", "gate"):
        return None
    from captum.attr import LRP

    twin = copy.deepcopy(model)

    return lambda: LRP(twin).attribute(x.clone().requires_grad_(), target=0)


def zennit_composite(model: nn.Module, x: torch.Tensor, book: str) -> Callable[[], object] | None:
    """The composite of zennit of the same name; None where it has none."""
    with _torchvision():
        from zennit import composites, rules, types
        from zennit.attribution import Gradient

    linear = [(types.Convolution, rules.Epsilon()), (types.Linear, rules.Epsilon())]
    table = {
        "epsilon": lambda: composites.LayerMapComposite(composites.layer_map_base() + linear),
        "epsilon_plus": composites.EpsilonPlus,
        "epsilon_plus_flat": composites.EpsilonPlusFlat,
        "epsilon_alpha2_beta1_flat": composites.EpsilonAlpha2Beta1Flat,
    }
    if book not in table:
        return None
    composite = table[book]()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        one = torch.zeros_like(twin(x[:1])).repeat(len(x), 1)
    one[:, 0] = 1

    def run() -> object:
        with Gradient(model=twin, composite=composite) as attributor:
            return attributor(x.clone(), one)[1]

    return run


@contextlib.contextmanager
def _torchvision() -> Iterator[None]:
    """Give zennit a stand-in for torchvision while it is imported, where torchvision cannot be."""
    names = ("torchvision", "torchvision.models", "torchvision.models.resnet", "torchvision.models.vgg")
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in names:
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            module.__path__ = []  # type: ignore[attr-defined]
            module.__getattr__ = lambda key: type(key, (nn.Module,), {})  # type: ignore[attr-defined]
            sys.modules[name] = module
        yield
        for name in names:
            del sys.modules[name]
    else:
        yield


def main() -> None:
    """Print the table as Markdown."""
    print("# Relevance by rulebook, as a multiple of gradient x input\n")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}. Medians of alternating")
    print("runs in one process; 1.00 is the time of one gradient. Made by `python -m benchmarks.relevance`.\n")
    print("The last column is the peak memory of layerlens over that of gradient x input.\n")
    print("| model | rules | gradient x input, ms | layerlens | captum | zennit | memory |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    warnings.simplefilter("ignore")
    for name, (make, x, books) in rows().items():
        model = make().eval()
        floor = gradient_times_input(model, x)
        for book in books:
            ours = functools.partial(relevance, model, x, target=0, rules=book)
            peers = {"captum": captum_lrp(model, x, book), "zennit": zennit_composite(model, x, book)}
            candidates = {"floor": floor, "ours": ours, **{peer: run for peer, run in peers.items() if runs(run)}}
            timed = medians(candidates, runs=7)
            cells = [f"{timed[key] / timed['floor']:.2f}" if key in timed else "-" for key in ("ours", *peers)]
            memory = peak(ours) / max(peak(floor), 1)
            print(f"| {name} | {book} | {1000 * timed['floor']:.1f} | {' | '.join(cells)} | {memory:.2f} |", flush=True)

    long_context()


def long_context() -> None:
    """Print the memory of one run each on long inputs, where attention must not be written out."""
    print("\n## Long inputs: peak memory in GiB, one run each\n")
    print("| model | tokens | gradient x input | relevance, cp | seconds |")
    print("| --- | ---: | ---: | ---: | ---: |")
    model = rows()["Llama, 135M, 128 tokens"][0]().eval()
    for tokens in (1024, 4096):
        x = torch.randn(1, tokens, 576)
        floor = peak(gradient_times_input(model, x)) / 2**30
        start = time.perf_counter()
        ours = peak(functools.partial(relevance, model, x, target=0, rules="cp")) / 2**30
        print(f"| Llama, 135M | {tokens} | {floor:.2f} | {ours:.2f} | {time.perf_counter() - start:.0f} |", flush=True)


def runs(run: Callable[[], object] | None) -> bool:
    """Whether a peer can run the model at all."""
    try:
        return run is not None and run() is not None
    except Exception:  # whatever it raises, it has no time
        return False


if __name__ == "__main__":
    main()
