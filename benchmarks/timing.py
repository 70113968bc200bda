"""Alternating runs and their medians: a noisy machine disturbs all candidates alike."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def medians(
    candidates: Mapping[str, Callable[[], object]], runs: int = 15, clock: Callable[[], float] | None = None
) -> dict[str, float]:
    """Median seconds of each candidate over `runs` rounds in which all take turns; one round of warm-up.

    With one thread of torch they are seconds of the processor, which other work on the machine disturbs less.
    """
    clock = clock or (time.process_time if torch.get_num_threads() == 1 else time.perf_counter)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(runs + 1):
        for name, candidate in candidates.items():
            start = clock()
            candidate()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
