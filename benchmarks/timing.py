"""Alternating runs and their medians: a noisy machine disturbs all candidates alike."""

import statistics
import time
from collections.abc import Callable, Mapping


def medians(
    candidates: Mapping[str, Callable[[], object]], runs: int = 15, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each candidate over `runs` rounds in which all take turns; one round of warm-up.

    For work in one thread, `time.process_time` as the clock leaves out what else the machine does.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(runs + 1):
        for name, candidate in candidates.items():
            start = clock()
            candidate()
            if turn:
                seconds[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
