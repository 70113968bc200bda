"""Two long runs, each killed twice with SIGKILL, gone on with, and compared with a run that was left alone.

python -m benchmarks.scale_runs digits     100,000 small pictures, relevance
python -m benchmarks.scale_runs crops      5,000 crops of photographs, Grad-CAM on EfficientNet-Lite0
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from layerlens import open_store, over
from layerlens.demo.efficientnet import load_efficientnet
from layerlens.demo.embedded import load_digit_net

from .scale_data import Crops, Digits

COUNTS = {"digits": 100_000, "crops": 5_000}
KILLED_AT = (0.25, 0.6)
"""Shares of the shards that are there when the process is killed."""


def run(kind: str, folder: str, count: int) -> None:
    """One run, to its end."""
    torch.set_num_threads(1)
    if kind == "digits":
        work = over(load_digit_net(), Digits(count), store=folder, batch_size=50, shard_size=1000)
        work.relevance(rules="epsilon_plus", dtype=torch.float16)
    else:
        work = over(load_efficientnet(), Crops(count), store=folder, batch_size=10, shard_size=100)
        work.saliency(method="grad_cam", dtype=torch.float16)


def start(kind: str, folder: Path, count: int) -> subprocess.Popen[bytes]:
    """One run in a process of its own."""
    call = [sys.executable, "-m", "benchmarks.scale_runs", "run", kind, str(folder), str(count)]
    return subprocess.Popen(call, env={**os.environ, "OMP_NUM_THREADS": "1"})


def killed(kind: str, folder: Path, count: int) -> list[str]:
    """Start, kill and start again, until it is done; what happened."""
    told = []
    for share in KILLED_AT:
        begun, process = time.monotonic(), start(kind, folder, count)
        wanted = 0
        while process.poll() is None and (not wanted or len(list(folder.glob("shard-*"))) < wanted):
            time.sleep(0.05)
            if not wanted and (folder / "manifest.json").exists():
                wanted = max(1, int(share * (open_store(folder).manifest.plan.shards or 0)))
        process.send_signal(signal.SIGKILL)
        process.wait()
        store = open_store(folder)
        left = [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]
        told.append(
            f"killed after {time.monotonic() - begun:.0f} s with {len(store.ids):,} samples finished, "
            f"{len(left)} file(s) half-written"
        )
    begun, process = time.monotonic(), start(kind, folder, count)
    assert process.wait() == 0
    told.append(f"went on for {time.monotonic() - begun:.0f} s to the end")
    return told


def compare(one: Path, other: Path, count: int) -> str:
    """Whether two stores hold the same, read shard by shard."""
    stores = [open_store(one), open_store(other)]
    for store in stores:
        store.verify()
        assert store.complete and torch.equal(store.ids, torch.arange(count)), store
    names = list(stores[0])
    assert names == list(stores[1])
    for a, b in zip(stores[0].shards, stores[1].shards, strict=True):
        assert a.about["sha256"] == b.about["sha256"], a.about["shard"]
    size = sum(path.stat().st_size for path in one.glob("shard-*"))
    return f"{len(names)} columns of {count:,} samples, {size / 2**20:,.0f} MiB: equal to the bit, checksums in order"


def main(kind: str, count: int) -> None:
    """Both runs and their comparison."""
    with tempfile.TemporaryDirectory() as made:
        alone, again = Path(made) / "alone", Path(made) / "again"
        for line in killed(kind, again, count):
            print(f"- {kind}: {line}", flush=True)
        begun = time.monotonic()
        assert start(kind, alone, count).wait() == 0
        print(f"- {kind}: left alone it takes {time.monotonic() - begun:.0f} s", flush=True)
        print(f"- {kind}: {compare(alone, again, count)}", flush=True)
        shutil.rmtree(again)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        run(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else COUNTS[sys.argv[1]])
