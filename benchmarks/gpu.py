"""Capture, saliency and relevance on a GPU, over one gradient: ResNet-50, ViT-B, a Llama of a billion parameters.

All weights are random. The Llama runs in bfloat16 with fused attention, on 1,024 and on 32,768 tokens.

python -m benchmarks.gpu            # says why and ends where there is no GPU
python -m benchmarks.gpu small      # small models wherever this runs: whether the benchmark works, no figures
"""

import contextlib
import functools
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

import layerlens

RUNS = 7
TOKENS = (1024, 32_768)


def resnet(small: bool) -> tuple[nn.Module, torch.Tensor, int]:
    """ResNet-50 with random weights, eight pictures, and a target."""
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    torch.manual_seed(0)
    model = ResNetForImageClassification(ResNetConfig(**(sizes if small else {}), num_labels=10)).eval()
    return model, torch.randn(2 if small else 8, 3, 64 if small else 224, 64 if small else 224), 3


def llama(small: bool, tokens: int) -> tuple[nn.Module, torch.Tensor, tuple[int, int]]:
    """A causal language model with random weights, token ids, and a target."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
    sizes |= {"intermediate_size": 8192, "vocab_size": 32_000, "max_position_embeddings": tokens}
    if small:
        sizes |= {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        sizes |= {"intermediate_size": 128, "vocab_size": 100}
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, use_cache=False, attn_implementation="sdpa")
    model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    return model, torch.randint(100, (1, tokens // 16 if small else tokens)), (-1, 7)


def vit(small: bool) -> tuple[nn.Module, torch.Tensor, int]:
    """ViT-B/16 with random weights, eight pictures, and a target."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**(sizes if small else {}), num_labels=10)).eval()
    return model, torch.randn(2 if small else 8, 3, 224, 224), 3


def gradient(model: nn.Module, x: torch.Tensor, target: int | tuple[int, int]) -> None:
    """One forward and one backward pass: the floor."""
    given = x if x.is_floating_point() else model.get_input_embeddings()(x)  # type: ignore[operator]
    given = given.detach().requires_grad_()
    logits = (model(given) if x.is_floating_point() else model(inputs_embeds=given)).logits
    score = logits[:, target] if isinstance(target, int) else logits[:, target[0], target[1]]
    torch.autograd.grad(score.float().sum(), given)


def timed(calls: dict[str, Callable[[], object]], device: torch.device) -> dict[str, tuple[float, float]]:
    """Median seconds and peak MiB of each call; all take turns."""
    on_gpu = device.type == "cuda"
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    peaks = dict.fromkeys(calls, float("nan"))
    for turn in range(RUNS + 1):
        for name, call in calls.items():
            if on_gpu:
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            call()
            if on_gpu:
                torch.cuda.synchronize()
                peaks[name] = torch.cuda.max_memory_allocated() / 2**20
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: (statistics.median(values), peaks[name]) for name, values in seconds.items()}


def rows(
    name: str, made: tuple[nn.Module, torch.Tensor, int | tuple[int, int]], rules: Sequence[str], device: torch.device
) -> None:
    """Print the rows of one model."""
    model, x, target = made
    model, x = model.to(device), x.to(device)
    inputs = x if x.is_floating_point() else {"input_ids": x}

    def forward() -> None:
        with torch.no_grad():
            model(**inputs) if isinstance(inputs, dict) else model(inputs)

    calls: dict[str, Callable[[], object]] = {
        "gradient x input (floor)": lambda: gradient(model, x, target),
        "one forward": forward,
        "capture, every layer": lambda: layerlens.capture(model, inputs),
        "saliency, gradient": lambda: layerlens.saliency(model, inputs, target=target, method="gradient"),
        "saliency, smooth_grad, 25 samples": lambda: layerlens.saliency(
            model, inputs, target=target, method="smooth_grad"
        ),
    }
    for rule in rules:
        calls[f"relevance, {rule}"] = functools.partial(layerlens.relevance, model, inputs, target=target, rules=rule)
    with contextlib.suppress(RuntimeError):  # what the first call on a device sets up
        gradient(model, x, target)
    found = timed(calls, device)
    floor = found["gradient x input (floor)"][0]
    for what, (seconds, peak) in found.items():
        print(f"| {name} | {what} | {1000 * seconds:.1f} | {seconds / floor:.2f} | {peak:,.0f} |", flush=True)


def main(small: bool) -> None:
    """Print the table."""
    if not torch.cuda.is_available() and not small:
        print("no GPU is at hand (torch.cuda.is_available() is False), so there are no figures.")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    card = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print("# On a GPU, measured\n")
    print(f"Made by `python -m benchmarks.gpu` on {card}, torch {torch.__version__}: medians of {RUNS} runs that")
    print("take turns.\n")
    print("| model | what | ms | over gradient x input | peak MiB |\n| --- | --- | ---: | ---: | ---: |")
    rows("ResNet-50, 8 pictures", resnet(small), ("epsilon", "epsilon_plus"), device)
    rows("ViT-B/16, 8 pictures", vit(small), ("cp", "attn"), device)
    for tokens in TOKENS:
        rows(f"Llama, 1.1 B parameters, bf16, {tokens:,} tokens", llama(small, tokens), ("cp", "attn"), device)


if __name__ == "__main__":
    main(sys.argv[1:2] == ["small"])
