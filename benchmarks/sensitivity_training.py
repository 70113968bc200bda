"""What watching costs a training: steps with a watch over steps without, medians of alternating runs on one thread.

python -m benchmarks.sensitivity_training
"""

import contextlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import layerlens
from layerlens.demo.embedded import DigitNet

from .timing import medians

RUNS = 5
OPTIONS: dict[str, dict[str, Any]] = {
    "auto": {},
    "every 10": {"every": 10},
    "every step": {"every": 1},
    "auto, drift": {"drift": True},
    "every 10, drift": {"every": 10, "drift": True},
}
STATED = {"auto": 1.05, "auto, drift": 1.05}
"""The budget; the others are no promise."""


def rows() -> list[tuple[str, float, float, str]]:
    """(what, stated ratio to a plain step, measured ratio, remark); NaN where nothing is promised."""
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    return [*_measured("digit CNN", DigitNet(), *_digits(), steps=80), *_transformer()]


def _digits() -> tuple[Any, Any]:
    x, y = torch.rand(32, 1, 48, 48), torch.arange(32) % 10
    return x, lambda model: nn.functional.cross_entropy(model(x), y)


def _transformer() -> list[tuple[str, float, float, str]]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=1000, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512,
        max_position_embeddings=64, num_labels=2,
    )  # fmt: skip
    x, y = torch.randint(1000, (16, 48)), torch.arange(16) % 2
    return _measured("transformer, 4 layers", BertForSequenceClassification(config), x, _loss(x, y), steps=40)


def _loss(x: torch.Tensor, y: torch.Tensor) -> Callable[[nn.Module], torch.Tensor]:
    return lambda model: model(input_ids=x, labels=y).loss


def _measured(
    name: str, model: nn.Module, x: torch.Tensor, loss: Callable[[nn.Module], torch.Tensor], steps: int
) -> list[tuple[str, float, float, str]]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    shares: dict[str, list[tuple[float, int]]] = {key: [] for key in OPTIONS}

    def train(context: Any) -> None:
        with context:
            for _ in range(steps):
                optimizer.zero_grad()
                loss(model).backward()
                optimizer.step()

    def watched(key: str) -> None:
        options = dict(OPTIONS[key])
        data = x if options.pop("drift", False) else None
        watching = layerlens.watch(model, optimizer, data=data, **options)
        train(watching)
        shares[key].append((float(watching.history.checks["share of time"]), len(watching.history)))

    model.train()
    calls: dict[str, Callable[[], object]] = {"plain": lambda: train(contextlib.nullcontext())}
    calls |= {key: (lambda key=key: watched(key)) for key in OPTIONS}
    seconds = medians(calls, runs=RUNS, clock=time.process_time)
    found = []
    for key in OPTIONS:
        share, count = sorted(shares[key])[len(shares[key]) // 2]
        remark = f"{count} of {steps} steps measured, by its own account {100 * share:.1f} % of the time"
        ratio = seconds[key] / seconds["plain"]
        found.append((f"watch, {key}: {name}", STATED.get(key, float("nan")), ratio, remark))
    return found


if __name__ == "__main__":
    for what, stated, ratio, remark in rows():
        print(f"{what:45} {stated:5.2f} {ratio:6.3f}  {remark}")
