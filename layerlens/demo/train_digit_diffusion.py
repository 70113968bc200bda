"""Train the small diffusion model: `python -m layerlens.demo.train_digit_diffusion`, about 20 minutes on one core.

Writes the weights and a record of what it can do, which `digit_diffusion.py` reads, and a sheet of drawn pictures. One
seed determines everything; the same seed, machine and torch give the same bits.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from layerlens.demo.digit_diffusion import (
    COLORS,
    RECORD,
    RELATIONS,
    SIDE,
    WEIGHTS,
    WORDS,
    DigitDiffusion,
    alphas,
    sample,
    tokens,
)
from layerlens.demo.embedded import CLASS_NAMES
from layerlens.demo.train_digits import DATA, split_digits, write

SIZE: Final = 11
"""Side of a digit, in pixels."""


class Scenes:
    """Pictures of two colored digits, with the prompts that describe them.

    Args:
        images: digits (n, 8, 8), ink in 0..1.
        labels: (n,), the digit of each.
        seed: seed of the scenes.
    """

    def __init__(self, images: Tensor, labels: Tensor, *, seed: int) -> None:
        padded = F.pad(images.float()[:, None], (1, 1, 1, 1))
        self.digits = F.interpolate(padded, size=(SIZE + 2, SIZE + 2), mode="bilinear")[:, 0, 1:-1, 1:-1]
        self.labels = labels
        self.random = torch.Generator().manual_seed(seed)
        self.colors = torch.tensor(list(COLORS.values()))
        self.prompts = tokens([f"a red zero {relation} a red zero" for relation in RELATIONS])

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw scenes: pictures (count, 3, 24, 24) in -1..1 and words (count, 8)."""

        def whole(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high, shape, generator=self.random)

        which, color, relation = whole(0, len(self.labels), count, 2), whole(0, 5, count, 2), whole(0, 4, count)
        words = self.prompts[relation].clone()
        second = torch.where(relation < 2, 6, 5)  # place of the second color; `left of` has two words
        rows = torch.arange(count)
        for k, place in enumerate((torch.ones_like(second), second)):
            words[rows, place] = WORDS.index("red") + color[:, k]
            words[rows, place + 1] = WORDS.index("zero") + self.labels[which[:, k]]
        along = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0]])[relation] * (SIDE // 2) + whole(0, 2, count, 2)
        across = (SIDE - SIZE) // 2 + whole(-4, 5, count, 2)
        upright = (relation >= 2)[:, None]
        top, left = torch.where(upright, along, across), torch.where(upright, across, along)
        pictures = torch.zeros(count, 3, SIDE, SIDE)
        grid = torch.arange(SIZE)
        for k in range(2):
            ink = self.digits[which[:, k]][:, None] * self.colors[color[:, k]][..., None, None]  # (count, 3, 11, 11)
            y, x = top[:, k, None] + grid, left[:, k, None] + grid
            pictures[rows[:, None, None], :, y[:, :, None], x[:, None, :]] += ink.permute(0, 2, 3, 1)
        return 2 * pictures.clamp(0, 1) - 1, words


class Reader(nn.Module):
    """Name the digit and the color in one half of a picture; only used to measure how well prompts are followed."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for inputs, outputs in ((3, 24), (24, 48), (48, 64)):
            parts += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            parts += [nn.MaxPool2d(2)] if outputs < 64 else []
        self.features = nn.Sequential(*parts)
        self.digit, self.color = nn.Linear(64, 10), nn.Linear(64, 5)

    def forward(self, halves: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the digit (batch, 10) and of the color (batch, 5)."""
        x = self.features(halves).amax((2, 3))
        return self.digit(x), self.color(x)


def halves(pictures: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cut pictures where their words say: halves (2 batch, 3, 24, 12), digits and colors named, (2 batch,)."""
    half = SIDE // 2
    upright = (words == WORDS.index("above")).any(1) | (words == WORDS.index("below")).any(1)
    swapped = (words == WORDS.index("right")).any(1) | (words == WORDS.index("below")).any(1)
    first, last = (
        torch.where(upright[:, None, None, None], F.pad(down, (0, 0, 0, half)), F.pad(across, (0, half, 0, 0)))
        for down, across in (
            (pictures[:, :, :half], pictures[..., :half]),
            (pictures[:, :, half:], pictures[..., half:]),
        )
    )
    pick = swapped[:, None, None, None]
    cut = torch.cat([torch.where(pick, last, first), torch.where(pick, first, last)])
    rows, second = torch.arange(len(words)), torch.where(upright, 5, 6)
    colors = torch.cat([words[rows, 1], words[rows, second]]) - WORDS.index("red")
    digits = torch.cat([words[rows, 2], words[rows, second + 1]]) - WORDS.index("zero")
    return cut, digits, colors


def train_reader(scenes: Scenes, *, steps: int, seed: int) -> Reader:
    """Train the reader on halves of real scenes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader().train()
    optimizer = torch.optim.AdamW(reader.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        cut, digits, colors = halves(*scenes.draw(64))
        noisy = cut + 0.1 * torch.randn(cut.shape, generator=scenes.random)
        digit, color = reader(noisy)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(digit, digits) + F.cross_entropy(color, colors))
        optimizer.step()
        schedule.step()
    return reader.eval()


@torch.no_grad()
def accuracy(reader: Reader, pictures: Tensor, words: Tensor) -> dict[str, float]:
    """Return the share of digits, of colors and of whole prompts that the reader finds as the words say, in 0..1."""
    cut, digits, colors = halves(pictures, words)
    digit, color = reader(cut)
    right, tinted = digit.argmax(1) == digits, color.argmax(1) == colors
    whole = (right & tinted).view(2, -1).all(0)
    return {name: one.float().mean().item() for name, one in (("digit", right), ("color", tinted), ("prompt", whole))}


def loss_of(model: nn.Module, pictures: Tensor, words: Tensor, random: torch.Generator, share: Tensor) -> Tensor:
    """Return the mean squared error of the velocity at random noise levels: Salimans and Ho 2022, appendix D."""
    step = torch.randint(0, len(share), (len(pictures),), generator=random)
    noise = torch.randn(pictures.shape, generator=random)
    alpha, sigma = (one.sqrt()[:, None, None, None] for one in (share[step], 1 - share[step]))
    return F.mse_loss(model(alpha * pictures + sigma * noise, step, words), alpha * noise - sigma * pictures)


def train(
    scenes: Scenes, *, steps: int, batch: int, seed: int, report: Callable[[str], None] = print
) -> tuple[DigitDiffusion, float]:
    """Train a `DigitDiffusion`: AdamW, warm-up and cosine; a tenth of the words becomes `some`.

    Args:
        scenes: source of pictures and words.
        steps: number of updates; the running mean of the weights is returned.
        batch: pictures per update.
        seed: seed of the weights, of the noise and of the words that are replaced.
        report: called with a line every 100 updates.

    Returns:
        The model, and its mean loss over the last 500 updates.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DigitDiffusion().train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    mean, random, share = copy.deepcopy(model), torch.Generator().manual_seed(seed), alphas()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.05)
    losses, start = [], time.perf_counter()
    for step in range(1, steps + 1):
        pictures, words = scenes.draw(batch)
        replaced = (torch.rand(words.shape, generator=random) < 0.1) & (words != 0)
        words = words.masked_fill(replaced, WORDS.index("some"))
        loss = loss_of(model, pictures, words, random, share)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            for kept, now in zip(mean.parameters(), model.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
        if step % 100 == 0:
            seconds = time.perf_counter() - start
            report(f"step {step}/{steps}  loss {sum(losses[-100:]) / 100:.4f}  {seconds:.0f} s")
    return mean.eval(), sum(losses[-500:]) / len(losses[-500:])


def sheet(pictures: Tensor, columns: int) -> Image.Image:
    """Put pictures (n, 3, 24, 24) in -1..1 next to each other, enlarged four times."""
    rows = -(-len(pictures) // columns)
    grid = F.pad((pictures.clamp(-1, 1) + 1) / 2, (1, 1, 1, 1), value=0.5)
    side = grid.shape[-1]
    grid = grid.view(rows, columns, 3, side, side).permute(0, 3, 1, 4, 2).reshape(rows * side, columns * side, 3)
    image = Image.fromarray((255 * grid).round().byte().numpy())
    return image.resize((4 * image.width, 4 * image.height), Image.Resampling.NEAREST)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, write the weights, the record and the sheet."""
    parser = argparse.ArgumentParser(description="Train the small diffusion model of layerlens.")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the files (default: the package's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--reader-steps", type=int, default=600)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # sums in one order: the same bits on machines with more cores

    learn, held_out = split_digits(options.seed)
    start = time.process_time()
    images, labels = torch.from_numpy(learn.images), torch.from_numpy(learn.labels)
    model, loss = train(
        Scenes(images, labels, seed=options.seed),
        steps=options.steps,
        batch=options.batch,
        seed=options.seed,
        report=lambda line: print(line, flush=True),
    )
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    model.load_state_dict({name: value.float() for name, value in weights.items()})  # as they are read back
    minutes = (time.process_time() - start) / 60

    reader = train_reader(Scenes(images, labels, seed=options.seed + 1), steps=options.reader_steps, seed=options.seed)
    others = Scenes(torch.from_numpy(held_out.images), torch.from_numpy(held_out.labels), seed=options.seed + 2)
    pictures, words = others.draw(256)
    random = torch.Generator().manual_seed(options.seed + 3)
    noise = torch.randn(pictures.shape, generator=random)
    with torch.no_grad():
        held_out_loss = loss_of(model, pictures, words, random, alphas()).item()
        drawn = torch.cat(
            [sample(model, *both) for both in zip(torch.split(noise, 64), torch.split(words, 64), strict=True)]
        )
    record = {
        "prompts": len(words),
        "drawn": accuracy(reader, drawn, words),
        "from_the_data": accuracy(reader, pictures, words),
        "loss": loss,
        "held_out_loss": held_out_loss,
        "updates": options.steps,
        "batch": options.batch,
        "seed": options.seed,
        "cpu_minutes": round(minutes, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "torch": torch.__version__,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / WEIGHTS, save(weights))
    write(options.out / RECORD, (json.dumps(record, indent=2) + "\n").encode())
    sheet(torch.cat([drawn[:32], pictures[:16]]), 8).save(options.out / "digit_diffusion.png", optimize=True)
    for i in range(32):
        print(f"{i:2d}", " ".join(WORDS[word] for word in words[i]))
    print(json.dumps(record, indent=2), f"\ndigits: {', '.join(CLASS_NAMES)}\nwritten to {options.out}")


if __name__ == "__main__":
    main()
