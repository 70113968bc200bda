"""Sobol indices, elementary effects and the measures of weights over plain forward passes.

The floor is one forward pass of the embedded digit network on the batch that the measure runs; the stated cost is in
such passes, a backward pass counted as two and a double backward pass as four.
"""

import warnings

import torch

import layerlens
from layerlens.demo.embedded import load_digit_net, sample_pictures

from .timing import medians

RUNS = 5


def rows() -> list[tuple[str, float, float, str]]:
    """What, its stated cost in forward passes, the measured ratio to one of them, and a remark."""
    model, (images, labels, _) = load_digit_net(), sample_pictures()
    one, few = images[:1], images[:4]
    count, samples, trajectories, layers = 16, 64, 20, ["stem.conv", "blocks.1.conv1", "head"]
    size = layerlens.morris(model, one, baseline=0, features=count, target=0).settings["batch_size"]
    cells = {"baseline": 0, "features": count, "target": 0, "batch_size": size}
    held = images[:1].repeat(size, 1, 1, 1)
    masked = images[:1].repeat(trajectories, 1, 1, 1)[:size]
    passes = -(-samples // size)

    def forward(x: torch.Tensor) -> None:
        with torch.no_grad():
            model(x)

    def weights(x: torch.Tensor, *options: object, **more: object) -> None:
        layerlens.weight_sensitivity(model, x, *options, **more)

    hessian = {"measure": "hessian_trace", "labels": labels[:4]}
    table = [
        ("sobol, 16 cells, 64 samples", passes * (count + 2), held, "N (D + 2) rows", "batches of the automatic size"),
        ("morris, 16 cells, 20 trajectories", -(-trajectories // size) * (count + 1), masked, "r (D + 1) rows", ""),
        ("fisher, 4 pictures", 4 * (1 + 2 * 10), one, "F + C B a sample, C = 10", "sample by sample"),
        ("hessian_trace, Hutch++, 3 layers", 2 * 3 + 3 * 12 * 4, few, "2 (F + B) + 12 double B a layer", ""),
        ("hessian_trace, Hutchinson, all", 3 + 12 * 4, few, "F + B + 12 double B", "19 layers"),
        ("pruning, 3 layers, 4 levels", 1 + 3 * 4, images, "layers x levels F", ""),
        ("quantization, 3 layers, 4 levels", 1 + 3 * 4, images, "layers x levels F", ""),
    ]
    run = {
        table[0][0]: lambda: layerlens.sobol(model, one, samples=samples, **cells),
        table[1][0]: lambda: layerlens.morris(model, one, trajectories=trajectories, **cells),
        table[2][0]: lambda: weights(few),
        table[3][0]: lambda: weights(few, layers, **hessian),
        table[4][0]: lambda: weights(few, estimator="hutchinson", **hessian),
        table[5][0]: lambda: weights(images, layers, measure="pruning"),
        table[6][0]: lambda: weights(images, layers, measure="quantization"),
    }
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, stated, batch, formula, remark in table:
            seconds = medians({"floor": lambda batch=batch: forward(batch), name: run[name]}, RUNS)
            told = f"{formula}; {remark}" if remark else formula
            found.append((name, float(stated), seconds[name] / seconds["floor"], told))
    return found


if __name__ == "__main__":
    for name, stated, ratio, remark in rows():
        print(f"| {name} | {stated:.0f} | {ratio:.0f} | {remark} |")
