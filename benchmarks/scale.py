"""What a run over a data set costs beyond a plain loop, in time, memory and on disk.

python -m benchmarks.scale > benchmarks/scale.md
python -m benchmarks.scale rows        (or throughput, workers, actors, memory, stores, resume) for one table
"""

import contextlib
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import layerlens
from layerlens import open_store, over
from layerlens.demo.efficientnet import load_efficientnet
from layerlens.demo.embedded import load_digit_net
from layerlens.scale import RayEngine
from layerlens.scale.store.shard_files import write

from .memory import peak
from .scale_data import Crops, Digits
from .timing import medians

RUNS = 3
SIZES = (1_000, 10_000, 100_000)
ROWS, WIDTH, PER_SHARD = 40_000, 1280, 1000
ACTED = 6_000


def throughput() -> list[str]:
    """Rows of the table of time: a plain loop over the same batches, with its results in memory, is 1."""
    rows = []
    cases = [
        ("digit CNN, 2,000 pictures of 48 x 48", load_digit_net(), Digits(2000), "blocks.1", 50),
        ("EfficientNet-Lite0, 20 crops of 224 x 224", load_efficientnet(), Crops(20), "_conv_head", 10),
    ]
    for name, model, data, layer, size in cases:
        analyses: dict[str, tuple[Callable[[torch.Tensor], object], Callable[[object], object]]] = {
            "capture": (
                lambda x, m=model, at=layer: layerlens.capture(m, x, at)[at],
                lambda o, at=layer: o.capture(at),
            ),
            "gradient": (
                lambda x, m=model: layerlens.saliency(m, x, method="gradient").tensor,
                lambda o: o.saliency(method="gradient"),
            ),
            "relevance": (lambda x, m=model: layerlens.relevance(m, x).tensor, lambda o: o.relevance()),
        }
        for analysis, (one, whole) in analyses.items():
            with tempfile.TemporaryDirectory() as folder:
                counter = iter(range(1000))

                def plain(one=one, data=data, size=size) -> object:
                    return [
                        one(torch.stack([data[i] for i in range(start, min(start + size, len(data)))]))
                        for start in range(0, len(data), size)
                    ]

                def stored(whole=whole, model=model, data=data, size=size, folder=folder, counter=counter) -> object:
                    return whole(over(model, data, batch_size=size, store=f"{folder}/{next(counter)}"))

                def kept(whole=whole, model=model, data=data, size=size) -> object:
                    return whole(over(model, data, batch_size=size))

                found = medians({"plain": plain, "memory": kept, "files": stored}, RUNS)
            rate = len(data) / found["plain"]
            shares = " | ".join(f"{found['plain'] / found[key]:.2f}" for key in ("memory", "files"))
            rows.append(f"| {analysis}, {name} | {rate:.3g} | {shares} |")
    return rows


def workers() -> list[str]:
    """Rows of the table of processes: the same shards by one and by two ranks, a thread each."""
    script = (
        "import sys, time, torch; torch.set_num_threads(1)\n"
        "from benchmarks.scale_data import Digits\nfrom layerlens import over\n"
        "from layerlens.demo.embedded import load_digit_net\n"
        "work = over(load_digit_net(), Digits(4000), store=sys.argv[1], batch_size=50, shard_size=100)\n"
        "start = time.perf_counter(); work.relevance(); print(time.perf_counter() - start)\n"
    )
    seconds = {}
    for world in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            ranks = [
                subprocess.Popen(
                    [sys.executable, "-c", script, f"{folder}/run"],
                    env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE,
                    text=True,
                )
                for rank in range(world)
            ]
            seconds[world] = max(float(process.communicate()[0].split()[-1]) for process in ranks)
    return [f"| relevance, 4,000 digits | 2 | {seconds[1] / seconds[2]:.2f} |"]


def memory() -> list[str]:
    """Rows of the table of memory, each in a fresh process."""
    rows = []
    for count in SIZES:
        call = [sys.executable, "-m", "benchmarks.scale", "peak", str(count)]
        found = subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()
        rows.append(f"| {count:,} | {float(found[-2]):.0f} | {float(found[-1]):.0f} |")
    return rows


def one_peak(count: int) -> None:
    """Peak of a capture into files and of statistics, in MiB."""
    torch.set_num_threads(1)
    net = load_digit_net()
    over(net, Digits(300), batch_size=50).capture("blocks.2")  # what torch takes once
    with tempfile.TemporaryDirectory() as folder:
        stored = peak(lambda: over(net, Digits(count), batch_size=50, store=f"{folder}/run").capture(
            "blocks.2", reduce=lambda x: x.mean(dim=(2, 3))
        ))  # fmt: skip
    counted = peak(lambda: over(net, Digits(count), batch_size=50).statistics("blocks.*"))
    print(stored / 2**20, counted / 2**20)


def stores() -> list[str]:
    """Rows of the table of files: seconds beside a raw memmap of the same rows."""
    values = torch.randn(ROWS, WIDTH)
    places = torch.randint(ROWS, (2000,)).tolist()
    with tempfile.TemporaryDirectory() as made:
        folder, raw = Path(made) / "run", Path(made) / "raw"

        def write_raw() -> None:
            mapped = np.lib.format.open_memmap(raw, mode="w+", dtype=np.float32, shape=(ROWS, WIDTH))
            for start in range(0, ROWS, PER_SHARD):
                mapped[start : start + PER_SHARD] = values[start : start + PER_SHARD].numpy()
            mapped.flush()
            os.sync()

        def write_store() -> None:
            for number, start in enumerate(range(0, ROWS, PER_SHARD)):
                rows = {"ids": torch.arange(start, start + PER_SHARD), "values/x": values[start : start + PER_SHARD]}
                write(folder, number, rows, {"errors": {}, "result": {}})

        over(torch.nn.Identity(), values[:10], store=folder).capture("")
        (folder / "shard-000000.safetensors").unlink()
        calls = {
            "write": (write_raw, write_store),
            "read all": (lambda: np.array(np.load(raw, mmap_mode="r")), lambda: open_column(folder).tensor()),
            "read 2,000 random rows": (
                lambda: opened["raw"][places],
                lambda: opened["store"][places],
            ),
        }
        rows, opened = [], {}
        for name, (plain, ours) in calls.items():
            if "random" in name:  # as a loader that stays open reads them
                opened |= {"raw": np.load(raw, mmap_mode="r"), "store": open_column(folder)}
            found = medians({"raw": plain, "store": ours}, RUNS)
            rows.append(f"| {name}, {ROWS:,} x {WIDTH} float32 | {found['store'] / found['raw']:.2f} |")
    return rows


def open_column(folder: Path) -> layerlens.scale.store.columns.Column:
    """The column of the store, opened anew."""
    return layerlens.scale.Store(layerlens.scale.store.shard_storage.Folder(folder), open_store_manifest(folder))["x"]


def open_store_manifest(folder: Path) -> object:
    """The manifest, also of a store that is not complete."""
    return layerlens.scale.store.manifest.read(folder)


def resume() -> list[str]:
    """Rows of the table of going on."""
    net = load_digit_net()
    with tempfile.TemporaryDirectory() as folder:
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            over(net, Digits(20_000), batch_size=50, shard_size=50, store=f"{folder}/run").capture(
                "blocks.2", reduce=_mean
            )
            seconds.append(time.perf_counter() - start)
        count = len(open_store(f"{folder}/run").shards)
    return [f"| 20,000 digits in {count} shards, complete | {seconds[0]:.1f} | {seconds[1]:.2f} |"]


def _mean(output: torch.Tensor) -> torch.Tensor:
    return output.mean(dim=(2, 3))


class Table(torch.nn.Module):
    """A small network on rows of eight numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return three scores."""
        return self.net(x)


def bare(model: Table, data: torch.Tensor, size: int, analysis: str) -> object:
    """What a user writes: slices, a hook or one gradient, and results in a tensor that was made before."""
    found, box = torch.empty(len(data), 16 if analysis == "capture" else 8), []
    if analysis == "capture":
        handle = model.net[1].register_forward_hook(lambda module, args, output: box.append(output))
        with torch.no_grad():
            for start in range(0, len(data), size):
                model(data[start : start + size])
                found[start : start + size] = box.pop()
        handle.remove()
        return found
    for start in range(0, len(data), size):
        x = data[start : start + size].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(x).amax(dim=1).sum(), x)
        found[start : start + size] = gradient * x.detach()
    return found


def rows() -> list[str]:
    """Rows of the table of rows: seconds and processor seconds over those of a bare loop with the same batches."""
    model, lines = Table().eval(), []
    whole = {
        "capture": lambda o: o.capture("net.1"),
        "gradient x input": lambda o: o.saliency(method="input_x_gradient"),
        "relevance": lambda o: o.relevance(),
    }
    for analysis, ours in whole.items():
        for size, count in ((1, 300), (32, 6_000), (256, 30_000), (4096, 131_072), (None, 131_072)):
            data, same = torch.randn(count, 8), size or 4096
            spent: dict[str, list[tuple[float, float]]] = {"bare": [], "memory": [], "files": []}
            for run in range(RUNS + 1):
                with tempfile.TemporaryDirectory() as folder:
                    calls = {
                        "bare": lambda: bare(model, data, same, analysis),  # noqa: B023
                        "memory": lambda: ours(over(model, data, batch_size=size)),  # noqa: B023
                        "files": lambda: ours(over(model, data, batch_size=size, store=f"{folder}/run")),  # noqa: B023
                    }
                    for name, call in calls.items():
                        start = time.perf_counter(), time.process_time()
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore")  # of the ledger in float32
                            call()
                        if run:
                            spent[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
            best = {name: [min(part) for part in zip(*times, strict=True)] for name, times in spent.items()}
            ratios = (f"{best[name][k] / best['bare'][k]:.1f}" for name in ("memory", "files") for k in (0, 1))
            price = best["bare"][1] / count * 1e6
            lines.append(f"| {analysis} | {size or 'default'} | {price:.3g} | {' | '.join(ratios)} |")
    return lines


def actors() -> list[str]:
    """Rows of the table of actors: each run in a process of its own, in an order that changes."""
    kinds = [("local", 1), ("local", 2), ("ray", 1)]
    found: dict[tuple[str, int], list[list[float]]] = {kind: [] for kind in kinds}
    for run in range(RUNS):
        for engine, threads in kinds[run % 3 :] + kinds[: run % 3]:
            call = [sys.executable, "-m", "benchmarks.scale", "steady", engine, str(threads), str(ACTED)]
            made = subprocess.run(call, capture_output=True, text=True, check=True).stdout.split()
            found[engine, threads].append([float(part) for part in made[-3:]])
    lines = []
    for (engine, threads), runs in found.items():
        name = (
            "two Ray actors, 1 thread each"
            if engine == "ray"
            else f"this process, {threads} thread{'s' * (threads > 1)}"
        )
        start, wall, spent = (np.median(part) for part in zip(*runs, strict=True))
        spread = f"{min(run[1] for run in runs):.2f} to {max(run[1] for run in runs):.2f}"
        lines.append(f"| {name} | {start:.0f} | {wall:.2f} ({spread}) | {spent:.2f} |")
    return lines


def steady(engine: str, threads: int, count: int) -> None:
    """Seconds to the first shard; then seconds, and processor seconds of all processes, of 1,000 samples."""
    import psutil

    torch.set_num_threads(threads)
    net, me, stop = load_digit_net(), psutil.Process(), threading.Event()
    seen: dict[int, tuple[float, float]] = {}

    def watch(folder: Path) -> None:
        while not stop.wait(0.2):
            done = len(list(folder.glob("shard-*")))
            if done and done not in seen:
                spent = 0.0
                for process in (me, *me.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        spent += sum(process.cpu_times()[:2])
                seen[done] = time.perf_counter(), spent

    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder, start = Path(made) / "run", time.perf_counter()
        watcher = threading.Thread(target=watch, args=(folder,))
        watcher.start()
        kind = RayEngine(actors=2) if engine == "ray" else "local"
        over(net, Digits(count), store=folder, batch_size=50, shard_size=100, engine=kind, progress=False).relevance()
        stop.set()
        watcher.join()
    first, *_ = (shards for shards in seen if shards >= count // 400)
    shards = max(seen) - first
    wall, spent = (10 * (b - a) / shards for a, b in zip(seen[first], seen[max(seen)], strict=True))
    print(seen[min(seen)][0] - start, wall, spent)


def main(only: str = "") -> None:
    """Print the page, or the part of one function."""
    torch.set_num_threads(1)
    ray = "" if importlib.util.find_spec("ray") is None else f", ray {importlib.metadata.version('ray')}"
    print("# Runs over data sets, measured\n")
    print("Made by `python -m benchmarks.scale`, one thread a process, medians of alternating runs.")
    print(f"torch {torch.__version__}{ray}, {platform.machine()}.\n")
    parts = [
        ("Throughput over a plain loop that calls the analyzer batch by batch and keeps the results in memory",
         "| analysis | plain, samples/s | in memory | into files |\n| --- | ---: | ---: | ---: |", throughput),
        ("Throughput of ranks over one process", "| analysis | processes | over one |\n| --- | ---: | ---: |", workers),
        ("Rows of a table: a network of 195 weights over rows of 8 numbers, times of a bare loop with the same batches",
         "| analysis | batch | bare, µs/row | in memory | processor time | into files | processor time |\n"
         "| --- | ---: | ---: | ---: | ---: | ---: | ---: |", rows),
        ("Ray actors: relevance of digits into files, shards of 100, after the first quarter",
         "| engine | first shard after, s | s per 1,000 samples | processor s |\n| --- | ---: | ---: | ---: |", actors),
        ("Peak memory beyond what the process held, MiB",
         "| samples | capture into files | statistics |\n| ---: | ---: | ---: |", memory),
        ("Files: seconds over those of a raw memmap", "| what | ratio |\n| --- | ---: |", stores),
        ("Starting again, seconds", "| what | first run | again |\n| --- | ---: | ---: |", resume),
    ]  # fmt: skip
    for title, head, lines in parts:
        if only not in lines.__name__:
            continue
        print(f"## {title}\n\n{head}", flush=True)
        for row in lines():
            print(row, flush=True)
        print(flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peak"]:
        one_peak(int(sys.argv[2]))
    elif sys.argv[1:2] == ["steady"]:
        steady(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main(*sys.argv[1:])
