"""What every measure of sensitivity and of layer dynamics costs, stated and measured.

python -m benchmarks.sensitivity > benchmarks/sensitivity.md

Each part can be run alone: `python -m benchmarks.sensitivity robustness`.
"""

import importlib
import platform
import sys

import torch

PARTS = ("robustness", "interventions", "weights", "dynamics", "training")


def main(parts: tuple[str, ...] = PARTS) -> None:
    """Print a table for each part."""
    torch.set_num_threads(1)
    print("# Sensitivity and layer dynamics, measured\n")
    print("Made by `python -m benchmarks.sensitivity`: medians of alternating runs in one process, in units of one")
    print("forward pass of the same model on the same input (of one training step, where it says so). Stated is what")
    print(f"the docstring says. torch {torch.__version__}, {platform.machine()}, one thread.")
    for part in parts:
        module = importlib.import_module(f"benchmarks.sensitivity_{part}")
        print(f"\n## {part}\n\n| what | stated | measured | |\n| --- | ---: | ---: | --- |")
        for what, stated, measured, remark in module.rows():
            print(f"| {what} | {stated:.3g} | {measured:.3g} | {remark} |", flush=True)


if __name__ == "__main__":
    chosen = tuple(sys.argv[1:]) or PARTS
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        sys.exit(f"no part {unknown[0]!r}; known: {', '.join(PARTS)}")
    main(chosen)
