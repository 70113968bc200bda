"""Train the embedded demo model: `python -m layerlens.demo.train_digits`, two to three minutes on one core.

Writes the weights, the sample pictures and a record of the accuracy, which `embedded.py` reads. One seed determines
everything; the same seed, machine and torch give the same bits. No source digit that a test scene shows, as its
target or as clutter, occurs in a training scene. The digits are split by picture, so both sides hold the same writers.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from layerlens.files import whole

from .embedded import CLASS_NAMES, PICTURES, RECORD, SIDE, WEIGHTS, DigitNet

FloatArray: TypeAlias = npt.NDArray[np.float64]

DATA: Final = Path(__file__).parent / "data"
INK: Final = 0.25
"""A pixel belongs to the digit's mask where the digit, at full brightness 1, is brighter than this."""
TEST_SHARE: Final = 0.2
ROWS: FloatArray
COLUMNS: FloatArray
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float64)


class Digits(NamedTuple):
    """Handwritten digits as they come."""

    images: FloatArray  # (n, 8, 8), ink in 0..1
    labels: npt.NDArray[np.int64]  # (n,)


class Scenes(NamedTuple):
    """Digits in clutter."""

    images: Tensor  # (n, 1, 48, 48) uint8, brightness in 0..255
    labels: Tensor  # (n,) int64
    masks: Tensor  # (n, 48, 48) bool, the digit's ink


def split_digits(seed: int) -> tuple[Digits, Digits]:
    """Return the digits for training and those for the test: 1438 and 359 of scikit-learn's 1797."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images, labels = (bunch.images / 16).astype(np.float64), bunch.target.astype(np.int64)
    # RandomState, because its stream never changes between versions of numpy: held out stays held out.
    order = np.random.RandomState(seed).permutation(len(labels))
    n_test = int(TEST_SHARE * len(labels))
    test, train = order[:n_test], order[n_test:]
    return Digits(images[train], labels[train]), Digits(images[test], labels[test])


def stroke(rng: np.random.Generator) -> FloatArray:
    """Draw a soft straight line of 8 to 24 px, (48, 48)."""
    row, column = rng.uniform(0, SIDE, 2)
    angle, length, width = rng.uniform(0, 2 * np.pi), rng.uniform(8, 24), rng.uniform(0.7, 1.4)
    down, right = ROWS - row, COLUMNS - column
    along = np.clip(down * np.sin(angle) + right * np.cos(angle), 0, length)
    distance2 = (down - along * np.sin(angle)) ** 2 + (right - along * np.cos(angle)) ** 2
    line: FloatArray = rng.uniform(0.2, 0.5) * np.exp(-distance2 / (2 * width**2))
    return line


def blob(rng: np.random.Generator) -> FloatArray:
    """Draw a Gaussian spot of 2 to 6 px standard deviation, (48, 48)."""
    row, column = rng.uniform(0, SIDE, 2)
    distance2 = (ROWS - row) ** 2 + (COLUMNS - column) ** 2
    spot: FloatArray = rng.uniform(0.1, 0.35) * np.exp(-distance2 / (2 * rng.uniform(2, 6) ** 2))
    return spot


def placed(rng: np.random.Generator, ink: FloatArray, side: int) -> FloatArray:
    """Enlarge `ink` (k, k) bilinearly to `side` px and place it, with a soft margin, anywhere inside (48, 48)."""
    padded = np.pad(ink, 1)  # (k + 2, k + 2): strokes that reach the border fade out
    side = round(side * len(padded) / len(ink))
    large = F.interpolate(torch.from_numpy(padded)[None, None], size=(side, side), mode="bilinear")[0, 0].numpy()
    row, column = rng.integers(0, SIDE - side + 1, 2)
    canvas = np.zeros((SIDE, SIDE))
    canvas[row : row + side, column : column + side] = large
    return canvas


def fragment(rng: np.random.Generator, digits: Digits, label: int) -> FloatArray:
    """Draw a part (4 x 4 of 8 x 8) of a digit other than `label`, 6 to 9 px and faint, (48, 48)."""
    other = digits.images[rng.choice(np.flatnonzero(digits.labels != label))]
    row, column = rng.integers(0, 5, 2)
    piece = placed(rng, other[row : row + 4, column : column + 4], int(rng.integers(6, 10)))
    faint: FloatArray = rng.uniform(0.3, 0.55) * piece
    return faint


def scene(rng: np.random.Generator, digits: Digits, source: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Draw one digit, 16 to 24 px and bright, in front of clutter.

    Args:
        rng: the only source of randomness.
        digits: source of the digit and of fragments of others.
        source: index of the digit in `digits`.

    Returns:
        The picture (48, 48) in 0..255 and the mask (48, 48) of the digit's ink.
    """
    layers = [stroke(rng) for _ in range(rng.integers(2, 5))]
    layers += [blob(rng) for _ in range(rng.integers(1, 4))]
    layers += [fragment(rng, digits, int(digits.labels[source])) for _ in range(rng.integers(2, 5))]
    digit = placed(rng, digits.images[source], int(rng.integers(16, 25)))
    picture = np.max(layers, axis=0) * (1 - digit) + rng.uniform(0.75, 1) * digit
    picture += rng.normal(0, 0.03, picture.shape)
    return np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8), digit > INK


def make_scenes(digits: Digits, sources: Sequence[int] | npt.NDArray[np.int64], *, seed: int) -> Scenes:
    """Make one scene for each of `sources` (indices into `digits`); the same `seed` gives the same bits."""
    rng = np.random.default_rng(seed)
    images, masks = zip(*(scene(rng, digits, int(source)) for source in sources), strict=True)
    labels = torch.from_numpy(digits.labels[np.asarray(sources)])
    return Scenes(torch.from_numpy(np.stack(images))[:, None], labels, torch.from_numpy(np.stack(masks)))


def train(digits: Digits, *, epochs: int, scenes: int, seed: int, report: Callable[[str], None] = print) -> DigitNet:
    """Train a `DigitNet` on fresh scenes in every epoch: AdamW, one cycle of the learning rate, no early stop.

    Args:
        digits: the training digits.
        epochs: number of epochs; the weights of the last one are returned.
        scenes: scenes per epoch, in whole batches of 64; each digit is used equally often, up to one.
        seed: seed of the weights, the scenes and their order.
        report: called with one line per epoch.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitNet().train()
    rng, batch = np.random.default_rng(seed), 64
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=epochs * (scenes // batch))
    for epoch in range(1, epochs + 1):
        start, loss_sum, correct = time.perf_counter(), 0.0, 0
        sources = rng.permutation(np.arange(scenes // batch * batch) % len(digits.labels))
        data = make_scenes(digits, sources, seed=int(rng.integers(2**32)))
        for i in range(0, len(sources), batch):
            labels = data.labels[i : i + batch]
            logits = model(data.images[i : i + batch].float() / 255)
            loss = nn.functional.cross_entropy(logits, labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * len(labels)
            correct += int((logits.argmax(1) == labels).sum())
        seconds = time.perf_counter() - start
        n = len(sources)
        report(f"epoch {epoch:2d}/{epochs}  loss {loss_sum / n:.4f}  accuracy {correct / n:.4f}  {seconds:.1f} s")
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, scenes: Scenes) -> float:
    """Return the share of `scenes` whose digit `model` names, in 0..1."""
    n, batch = len(scenes.labels), 256
    guesses = torch.cat([model(scenes.images[i : i + batch].float() / 255).argmax(1) for i in range(0, n, batch)])
    return int((guesses == scenes.labels).sum()) / n


def choose_samples(digits: Digits, *, count: int = 16) -> list[int]:
    """Return the indices of `count` digits in the order 0, 1, .. 9, 0, ..: the first ones, not the easy ones."""
    places = [np.flatnonzero(digits.labels == label) for label in range(len(CLASS_NAMES))]
    return [int(places[i % len(places)][i // len(places)]) for i in range(count)]


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    with whole(path) as file:
        file.write(content)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, test once, write the three files."""
    parser = argparse.ArgumentParser(description="Train the embedded demo model of layerlens.")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the three files (default: the package's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--scenes", type=int, default=8000, help="per epoch")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in one order: the same bits on machines with more cores

    learn, held_out = split_digits(options.seed)
    model = train(learn, epochs=options.epochs, scenes=options.scenes, seed=options.seed)
    n_test = 2000
    test = make_scenes(held_out, np.arange(n_test) % len(held_out.labels), seed=options.seed + 1)
    samples = make_scenes(held_out, choose_samples(held_out), seed=options.seed + 2)
    record = {
        "test_accuracy": accuracy(model, test),
        "n_test": n_test,
        "n_test_digits": len(held_out.labels),
        "seed": options.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / WEIGHTS, save(model.state_dict()))
    write(options.out / PICTURES, save(samples._asdict()))
    write(options.out / RECORD, (json.dumps(record, indent=2) + "\n").encode())
    print(f"{record}\nsample pictures: {accuracy(model, samples):.4f}\nwritten to {options.out}")


if __name__ == "__main__":
    main()
