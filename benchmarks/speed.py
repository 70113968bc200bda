"""What a call costs over the work it cannot do without: small and large models, frozen, batch 1, the first call.

python -m benchmarks.speed > benchmarks/speed.md
python -m benchmarks.speed --only mlp --threads 1       # rows whose text has the word

Ratios are medians of paired, alternating runs in one process. Peers run where they are installed and take the model.
"""

import argparse
import importlib.metadata
import importlib.util
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn

from .memory import peak
from .speed_rows import CASES, Case, Row, Run

PEERS = ("captum", "zennit")
Clock = Callable[[], float]
SECONDS = 4.0
"""How long the alternating runs of a row take, unless five rounds take longer."""


def ratios(floor: Run, others: Mapping[str, Run], clock: Clock) -> dict[str, list[float]]:
    """Ratio of each of `others` to the floor, one of each round; the seconds of the floor under an empty name."""
    kept: dict[str, list[float]] = {"": [], **{name: [] for name in others}}
    begin, rounds = time.perf_counter(), 0
    while rounds < 6 or (time.perf_counter() - begin < SECONDS and rounds < 200):
        seconds = {}
        for name, run in {"": floor, **others, "again": floor}.items():
            start = clock()
            run()
            seconds[name] = clock() - start
        below = (seconds[""] + seconds["again"]) / 2
        rounds += 1
        if rounds > 1:  # the first warms up
            kept[""].append(below)
            for name in others:
                kept[name].append(seconds[name] / below)
    return kept


def first_call(case: Case, batch: int, position: int, clock: Clock) -> float:
    """Seconds of the first call on a model that nothing has seen."""
    model = case.make().eval()
    row = list(case.rows(model, torch.randn(batch, *case.shape)))[position]
    row.floor()
    start = clock()
    row.ours()
    return clock() - start


def able(peers: Mapping[str, Callable[[], Run | None]]) -> dict[str, Run]:
    """The peers that take this model."""
    kept = {}
    for name, make in peers.items():
        try:
            run = make()
            if run is not None:
                run()
                kept[name] = run
        except Exception:
            continue
    return kept


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    if len(values) < 2:
        return "-"
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def measure(case: Case, model: nn.Module, batch: int, row: Row, first: float | None, clock: Clock) -> str:
    """One line of the table."""
    peers = able(row.peers)
    kept = ratios(row.floor, {"ours": row.ours, **peers}, clock)
    milliseconds = 1000 * statistics.median(kept[""])
    frozen = not any(parameter.requires_grad for parameter in model.parameters())
    once = "-" if first is None else f"{first / statistics.median(kept['']):.1f}"
    memory = peak(row.ours) / max(peak(row.floor), 1) if milliseconds > 20 else float("nan")
    return " | ".join(
        [
            f"| {case.name}, batch {batch}",
            "frozen" if frozen else "",
            row.work,
            f"{milliseconds:.2f}",
            spread(kept["ours"]),
            f"{row.goal:.2f}",
            once,
            *(f"{statistics.median(kept[name]):.2f}" if name in peers else "-" for name in PEERS),
            f"{memory:.2f} |" if memory == memory else "- |",
        ]
    )


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words that a row must have, in any case")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--processor", action="store_true", help="seconds of the processor: beside other work, 1 thread"
    )
    parser.add_argument("--frozen", choices=("both", "yes", "no"), default="both")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor else time.perf_counter
    warnings.simplefilter("ignore")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PEERS if installed(name))
    print("# What a call costs\n")
    print("A multiple of the floor: of a gradient (forward and backward pass to the input) for attributions, of raw")
    print(
        "hooks for `capture`, of a forward pass otherwise. Median of paired runs, with quartiles; in eval mode; `first`"
    )
    print(
        "is the first call on a model; memory is the peak over that of the floor. Made by `python -m benchmarks.speed`:"
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {platform.machine()}; {versions}.\n")
    heads = ("model", "", "call", "floor, ms", "layerlens", "goal", "first", *PEERS, "memory")
    print(f"| {' | '.join(heads)} |\n| --- | --- | --- |{' ---: |' * (len(heads) - 3)}")
    for case in CASES:
        for batch in case.batches:
            for frozen in (False, True):
                if options.frozen in ("both", "yes" if frozen else "no"):
                    one_model(case, batch, frozen, options.only.casefold().split(), clock)


def one_model(case: Case, batch: int, frozen: bool, words: list[str], clock: Clock) -> None:
    """Print the lines of one model and batch."""
    torch.manual_seed(0)
    model = case.make().eval().requires_grad_(not frozen)
    for position, row in enumerate(case.rows(model, torch.randn(batch, *case.shape))):
        text = f"{case.name}, batch {batch} {row.work}".casefold()
        if all(word in text for word in words):
            first = None if frozen else first_call(case, batch, position, clock)
            print(measure(case, model, batch, row, first, clock), flush=True)


def installed(name: str) -> bool:
    """Whether a peer is here."""
    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    sys.exit(main())
