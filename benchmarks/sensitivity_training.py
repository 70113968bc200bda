"""What watching costs a training: what measured steps take beyond plain ones, medians of several runs on one thread.

python -m benchmarks.sensitivity_training
"""

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import layerlens
from layerlens.demo.embedded import DigitNet

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
    """Each step is timed, so that the noise of a machine between two trainings does not drown the price of watching.

    What the measured steps took beyond a plain one (the median of the steps between them in the same training, or of
    a plain training right before where every step is measured) and what entering took, over all steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def train(context: Any) -> tuple[float, list[float]]:
        seconds = []
        begun = time.process_time()
        with context:
            entered = time.process_time() - begun
            for _ in range(steps):
                start = time.process_time()
                optimizer.zero_grad()
                loss(model).backward()
                optimizer.step()
                seconds.append(time.process_time() - start)
        return entered, seconds

    model.train()
    train(contextlib.nullcontext())
    prices: dict[str, list[tuple[float, float, int]]] = {key: [] for key in OPTIONS}
    between: list[float] = []
    for _ in range(RUNS):
        for key, chosen in OPTIONS.items():
            options = dict(chosen)
            data = x if options.pop("drift", False) else None
            plain = statistics.median(train(contextlib.nullcontext())[1])
            watching = layerlens.watch(model, optimizer, data=data, **options)
            entered, seconds = train(watching)
            history = watching.history
            measured = set(history.steps.tolist())
            others = [spent for step, spent in enumerate(seconds) if step not in measured]
            floor = statistics.median(others) if others else plain
            if others:
                between.append(floor / plain)
            more = entered + sum(seconds[step] - floor for step in measured)
            prices[key].append((more / (floor * steps), float(history.checks["share of time"]), len(measured)))
    found = []
    for key, seen in prices.items():
        price, share, count = (statistics.median(column) for column in zip(*seen, strict=True))
        remark = f"{count} of {steps} steps measured, by its own account {100 * share:.1f} % of the time"
        found.append((f"watch, {key}: {name}", STATED.get(key, float("nan")), 1 + price, remark))
    remark = "a step between measured ones, over a step without a watch"
    return [*found, (f"watch, not measuring: {name}", 1.0, statistics.median(between), remark)]


if __name__ == "__main__":
    for what, stated, ratio, remark in rows():
        print(f"{what:45} {stated:5.2f} {ratio:6.3f}  {remark}")
