"""What ablation and patching cost, in plain forward passes, and what running many at once saves.

    python -m benchmarks.sensitivity_interventions

Medians of alternating runs in one process; the models have random weights, which does not change the price.
"""

import torch
from torch import nn

import layerlens
from benchmarks.timing import medians
from layerlens.demo.embedded import DigitNet


def language_model() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A Llama of 8 layers and 8 heads, and a prompt of 8 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    widths = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**widths, vocab_size=1000, max_position_embeddings=32, use_cache=False))
    return model.eval(), {"input_ids": torch.arange(1, 9).unsqueeze(0)}


def hooked(model: nn.Module, layer: str, channels: int, x: torch.Tensor) -> None:
    """Zero ablation of each channel by a hook of one's own, one run for each."""
    for channel in range(channels):
        handle = model.get_submodule(layer).register_forward_hook(
            lambda module, args, output: output.index_fill(1, torch.tensor(channel), 0.0)  # noqa: B023
        )
        model(x)
        handle.remove()


def rows(runs: int = 9) -> list[tuple[str, float, float, str]]:
    """What, its stated cost in forwards, the measured one, and a remark."""
    torch.manual_seed(0)
    net, x = DigitNet().eval(), torch.rand(16, 1, 48, 48)
    model, prompt = language_model()
    other = {"input_ids": prompt["input_ids"].flip(1)}
    layer, found = "blocks.1.conv1", {}
    channels = dict(net.named_modules())[layer].out_channels
    blocks = {"layers": "model.layers.*", "by": "layer_position", "target": (-1, 5), "recovery": False}
    with torch.no_grad():
        seconds = medians(
            {
                "net": lambda: net(x),
                "hooks": lambda: hooked(net, layer, channels, x),
                "channels": lambda: layerlens.ablate(net, x, layer, by="channel", target=3),
                "layers": lambda: found.update(layers=layerlens.ablate(net, x, target=3)),
                "best": lambda: layerlens.ablate(net, x, by="channel", target=3, count=10),
                "model": lambda: model(**prompt),
                "heads": lambda: layerlens.ablate(model, prompt, by="head", target=(-1, 5)),
                "patch": lambda: layerlens.patch(model, prompt, other, **blocks),
            },
            runs,
        )
    small, large = seconds["net"], seconds["model"]
    layers = len(found["layers"])
    net16 = "digit net, 16 pictures"
    return [
        ("hooks by hand, a run each", channels, seconds["hooks"] / small, f"{net16}, 24 channels: no more than runs"),
        ("ablate, channels", _passes(channels), seconds["channels"] / small, f"{net16}, the same 24"),
        ("ablate, layers", _passes(layers), seconds["layers"] / small, f"{net16}, every distinct activation"),
        ("ablate, channels, count=10", _passes(10) + 3, seconds["best"] / small, f"{net16}, all channels screened"),
        ("ablate, heads", _passes(64), seconds["heads"] / large, "Llama, 8 layers of 8 heads, 8 tokens"),
        ("patch, layers x positions", _passes(64) + 2, seconds["patch"] / large, "the same, 8 layers x 8 positions"),
    ]


def _passes(parts: int) -> float:
    """What `ablate` states for so many parts."""
    return float(parts + 2 * parts**0.5 + 6)


def main() -> None:
    """Print the table."""
    print(f"{'what':36} {'stated':>7} {'measured':>9}  remark")
    for what, stated, measured, remark in rows():
        print(f"{what:36} {stated:5.0f} F {measured:7.1f} F  {remark}")


if __name__ == "__main__":
    main()
