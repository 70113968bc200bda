"""Peak memory of a call, from what the system says of this process."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(run: Callable[[], object]) -> float:
    """Bytes by which the process grew at most while `run` ran; NaN where the system does not say (not Linux)."""
    if not RESET.exists():
        return float("nan")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, so that it is not used unseen
    RESET.write_text("5")
    before = _kilobytes("VmRSS")
    run()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(name: str) -> float:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return float(line.split()[1])
