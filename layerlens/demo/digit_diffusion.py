"""A small diffusion model that draws two digits from words: `a red three left of a blue seven`.

A text encoder, a U-Net of two resolutions with cross-attention to the words, and a DDIM sampler, in plain torch. Its
weights and a record of what it can do are in `data/`, made by `train_digit_diffusion.py`. It is small enough for exact
questions: every word of a prompt can be changed at the same noise, and the picture drawn again.

The digits are those of `embedded.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Final

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from layerlens.demo.embedded import CLASS_NAMES
from layerlens.errors import InputError

SIDE: Final = 24
"""Height and width of a picture, in pixels."""

COLORS: Final = {
    "red": (1.0, 0.15, 0.15),
    "green": (0.1, 0.9, 0.2),
    "blue": (0.25, 0.35, 1.0),
    "yellow": (1.0, 0.9, 0.1),
    "white": (1.0, 1.0, 1.0),
}
"""Name and RGB value of each color, in 0..1."""

RELATIONS: Final = ("left of", "right of", "above", "below")
WORDS: Final = ("", "some", "a", "of", "left", "right", "above", "below", *COLORS, *CLASS_NAMES)
"""The vocabulary: index 0 pads, and `some` replaced any word in a tenth of the training prompts."""

LENGTH: Final = 8
WEIGHTS: Final = "digit_diffusion.safetensors"
RECORD: Final = "digit_diffusion.json"


def tokens(prompts: str | Sequence[str]) -> Tensor:
    """Return the indices of a prompt's words, (batch, 8), padded with 0 at the end.

    Args:
        prompts: such as `"a red three left of a blue seven"`; one, or one per sample.

    Raises:
        InputError: for a word that is not in `WORDS`, or more than eight words.

    Example:
        >>> tokens("a red three above a blue seven")[0].tolist()
        [2, 8, 16, 6, 2, 10, 20, 0]
    """
    rows = []
    for prompt in [prompts] if isinstance(prompts, str) else prompts:
        words = prompt.split()
        unknown = [word for word in words if word not in WORDS]
        if unknown or not 0 < len(words) <= LENGTH:
            raise InputError(
                f"a prompt of 1 to {LENGTH} words of {', '.join(WORDS[1:])}; got {prompt!r}"
                + (f" with the unknown {unknown[0]!r}." if unknown else ".")
            )
        rows.append([WORDS.index(word) for word in words] + [0] * (LENGTH - len(words)))
    return torch.tensor(rows)


class Attention(nn.Module):
    """Attention of `x` to `context`, or to itself, with the names that diffusers uses.

    Args:
        width: features of `x`.
        context: features of the context.
        heads: number of heads; they share `width` evenly.
    """

    def __init__(self, width: int, context: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Map `x` (batch, places, width) with `context` (batch, tokens, features), of which `mask` is attended to."""
        q, k, v = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (batch, heads, places, features)
            for one in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None])
        out: Tensor = self.to_out(read.transpose(1, 2).flatten(2))
        return out


class TextLayer(nn.Module):
    """Self-attention and a two-layer network, each with a normalization and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, width)
        self.norm2, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map the words (batch, 8, width)."""
        y = self.norm1(x)
        x = x + self.attention(y, y, mask)
        out: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return out


class TextEncoder(nn.Module):
    """Two transformer layers over the words of a prompt."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(len(WORDS), width), nn.Embedding(LENGTH, width)
        self.layers = nn.ModuleList([TextLayer(width), TextLayer(width)])
        self.norm = nn.LayerNorm(width)

    def forward(self, words: Tensor) -> Tensor:
        """Encode the words (batch, 8) as (batch, 8, width)."""
        x = self.word(words) + self.position.weight
        for layer in self.layers:
            x = layer(x, words != 0)
        out: Tensor = self.norm(x)
        return out


class ResidualBlock(nn.Module):
    """Two convolutions, between them the noise level as a scale and a shift."""

    def __init__(self, inputs: int, outputs: int, level: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.level = nn.Linear(level, 2 * outputs)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Map `x` (batch, inputs, height, width) at the noise level (batch, level)."""
        y = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.level(level)[..., None, None].chunk(2, dim=1)
        y = self.conv2(F.silu(self.norm2(y) * (1 + scale) + shift))
        out: Tensor = self.skip(x) + y
        return out


class WordBlock(nn.Module):
    """Cross-attention of a picture's places to the words; in the middle of the U-Net also to each other."""

    def __init__(self, width: int, context: int, *, to_itself: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if to_itself else None
        self.attn1 = Attention(width, width) if to_itself else None
        self.norm2, self.attn2 = nn.LayerNorm(width), Attention(width, context)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Map `x` (batch, channels, height, width)."""
        y = x.flatten(2).transpose(1, 2)  # (batch, places, channels)
        if self.norm1 is not None and self.attn1 is not None:
            z = self.norm1(y)
            y = y + self.attn1(z, z, torch.ones(y.shape[:2], dtype=torch.bool, device=y.device))
        y = y + self.attn2(self.norm2(y), context, mask)
        out: Tensor = y.transpose(1, 2).reshape(x.shape)
        return out


class Stage(nn.Module):
    """A residual block and a word block at one resolution."""

    def __init__(self, inputs: int, outputs: int, level: int, context: int, *, to_itself: bool = False) -> None:
        super().__init__()
        self.residual = ResidualBlock(inputs, outputs, level)
        self.words = WordBlock(outputs, context, to_itself=to_itself)

    def forward(self, x: Tensor, level: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """Map `x` (batch, inputs, height, width) at the noise level (batch, level)."""
        out: Tensor = self.words(self.residual(x, level), context, mask)
        return out


class DigitDiffusion(nn.Module):
    """Predict the velocity `alpha * noise - sigma * picture` of a noisy picture, given the words.

    The layers, in order: `text`, `level`, `stem`, `down.0`, `shrink`, `down.1`, `middle`, `up.0`, `grow`, `up.1`,
    `head`.

    Example:
        >>> words = tokens("a red three left of a blue seven")
        >>> DigitDiffusion()(torch.zeros(1, 3, 24, 24), torch.tensor([500]), words).shape
        torch.Size([1, 3, 24, 24])
    """

    def __init__(self, width: int = 40, wide: int = 64, level: int = 64) -> None:
        super().__init__()
        self.text = TextEncoder(context := 64)
        self.level = nn.Sequential(nn.Linear(32, level), nn.SiLU(), nn.Linear(level, level), nn.SiLU())
        self.stem = nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.down = nn.ModuleList([Stage(width, width, level, context), Stage(wide, wide, level, context)])
        self.shrink = nn.Conv2d(width, wide, 3, stride=2, padding=1)
        self.middle = Stage(wide, wide, level, context, to_itself=True)
        self.up = nn.ModuleList([Stage(2 * wide, wide, level, context), Stage(2 * width, width, level, context)])
        self.grow = nn.Conv2d(wide, width, 3, padding=1)
        self.norm, self.head = nn.GroupNorm(8, width), nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, x: Tensor, step: Tensor, words: Tensor) -> Tensor:
        """Predict the velocity.

        Args:
            x: noisy pictures (batch, 3, 24, 24), in -1..1 where there is no noise.
            step: (batch,) int64, noise level in 0..999, see `alphas`.
            words: (batch, 8) int64, see `tokens`.

        Returns:
            (batch, 3, 24, 24).
        """
        frequencies = torch.exp(-math.log(1000) * torch.arange(16, device=x.device) / 15)
        angles = step[:, None].to(x.dtype) * frequencies.to(x.dtype)  # (batch, 16)
        level = self.level(torch.cat([angles.sin(), angles.cos()], dim=1))
        context, mask = self.text(words), words != 0
        fine = self.down[0](self.stem(x), level, context, mask)  # (batch, width, 12, 12)
        coarse = self.down[1](self.shrink(fine), level, context, mask)  # (batch, wide, 6, 6)
        y = self.middle(coarse, level, context, mask)
        y = self.up[0](torch.cat([y, coarse], dim=1), level, context, mask)
        y = self.grow(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        y = self.up[1](torch.cat([y, fine], dim=1), level, context, mask)
        out: Tensor = F.pixel_shuffle(self.head(F.silu(self.norm(y))), 2)
        return out


def alphas(levels: int = 1000) -> Tensor:
    """Return the share of the picture's variance at each noise level, (levels,): Nichol and Dhariwal 2021, eq. 17.

    The same numbers as `diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod`.
    """
    bar = [math.cos((i / levels + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(levels + 1)]
    betas = torch.tensor([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(levels)], dtype=torch.float32)
    return torch.cumprod(1 - betas, dim=0)


def sample(model: Callable[..., Tensor], noise: Tensor, words: Tensor, *, steps: int = 20) -> Tensor:
    """Draw pictures by DDIM without added noise: Song, Meng and Ermon 2021, eq. 12 with eta = 0.

    Args:
        model: a `DigitDiffusion`, or any callable of its arguments.
        noise: (batch, 3, 24, 24) of standard deviation 1.
        words: (batch, 8), see `tokens`.
        steps: number of calls of the model.

    Returns:
        Pictures (batch, 3, 24, 24), about -1..1.
    """
    share = alphas().to(noise.device, noise.dtype)
    x, spacing = noise, 1000 // steps
    for step in range((steps - 1) * spacing, -1, -spacing):
        after = share[step - spacing] if step >= spacing else share.new_ones(())
        v = model(x, torch.full((len(x),), step, device=x.device), words)
        picture = share[step].sqrt() * x - (1 - share[step]).sqrt() * v
        direction = share[step].sqrt() * v + (1 - share[step]).sqrt() * x
        x = after.sqrt() * picture + (1 - after).sqrt() * direction
    return x


def load_digit_diffusion() -> DigitDiffusion:
    """Load the trained `DigitDiffusion` that ships with layerlens, on the CPU and in evaluation mode.

    Example:
        >>> model = load_digit_diffusion()
        >>> noise = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
        >>> sample(model, noise, tokens("a red three left of a blue seven"), steps=2).shape
        torch.Size([1, 3, 24, 24])
    """
    model = DigitDiffusion()
    weights = load((resources.files(__package__) / "data" / WEIGHTS).read_bytes())
    model.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    return model.eval()
