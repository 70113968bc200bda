"""Relevance of one small model of each timm family, over gradient x input: frozen, one picture.

OMP_NUM_THREADS=1 python -m benchmarks.speed_timm [WORD] > benchmarks/speed_timm.md

With WORD, only the models whose name has it. Weights and pictures are random. Ratios are medians of paired, alternating
runs; `memory` is the peak of `epsilon_plus` over that of the floor.
"""

import functools
import platform
import statistics
import sys
import time
import warnings

import timm
import torch

import layerlens
from layerlens.errors import LayerLensError
from layerlens.progress import track

from .cams import MODELS, TARGET, made
from .memory import peak
from .relevance import gradient_times_input
from .speed import ratios, spread

BOOKS = ("epsilon", "epsilon_plus")


def main() -> None:
    """Print the table as Markdown."""
    warnings.simplefilter("ignore")
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    print(f"# What relevance costs, by family\n\ntimm {timm.__version__}, torch {torch.__version__}, ", end="")
    print(f"{torch.get_num_threads()} thread(s), {platform.machine()}. Made by `python -m benchmarks.speed_timm`.\n")
    print(f"{(__doc__ or '').split(chr(10) * 2)[2].strip()}\n")
    print("| model | gradient x input, ms | epsilon | epsilon_plus | memory |\n| --- | ---: | ---: | ---: | ---: |")
    found: dict[str, list[float]] = {book: [] for book in BOOKS}
    for name in track([name for name in MODELS if not sys.argv[1:] or sys.argv[1] in name], "families"):
        model, x = made(name)
        calls = {book: functools.partial(layerlens.relevance, model, x, target=TARGET, rules=book) for book in BOOKS}
        floor = gradient_times_input(model, x)
        try:
            kept = ratios(floor, calls, clock)
        except LayerLensError as error:
            print(f"| {name} | refused: {str(error).splitlines()[0]} | | | |", flush=True)
            continue
        for book in BOOKS:
            found[book].append(statistics.median(kept[book]))
        memory = peak(calls["epsilon_plus"]) / max(peak(floor), 1)
        cells = (f"{1000 * statistics.median(kept['']):.0f}", *(spread(kept[book]) for book in BOOKS), f"{memory:.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    for book, values in found.items():
        print(f"\n{book}: {len(values)} models, median {statistics.median(values):.2f}, largest {max(values):.2f}.")


if __name__ == "__main__":
    main()
