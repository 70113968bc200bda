"""A network as the code of a module."""

from __future__ import annotations

import dataclasses
import textwrap
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 3

BENT = """GELU gelu SiLU silu Tanh tanh Sigmoid sigmoid softmax softplus ELU Hardtanh hardtanh Hardswish Norm normalize
    Attention attention LSTM GRU RNN TransformerEncoderLayer @ * ** / std( exp log relu6 mish clamp(- mul_(s
    mul_(l""".split()
"""What makes a network more than linear pieces, apart from batch norms in eval mode."""


@dataclasses.dataclass(frozen=True, repr=False)
class Network:
    """A network in float64 with random weights, and a batch of inputs.

    Attributes:
        init: lines of `__init__`.
        forward: lines of `forward`, which change `x`.
        shape: the shape of one sample; `()` for token ids, which are below 5.
        batch: number of samples.
        seed: the seed of weights and inputs.
        biases: whether anything is added; without, the network of zeros is zero.
        tokens: number of token ids of a sample, 0 where `shape` is that of numbers.
    """

    init: str
    forward: str
    shape: tuple[int, ...]
    batch: int = 2
    seed: int = 0
    biases: bool = True
    tokens: int = 0

    def __repr__(self) -> str:
        given = f"{self.shape}, batch={self.batch}, seed={self.seed}, biases={self.biases}, tokens={self.tokens}"
        init, forward = (
            textwrap.indent(textwrap.dedent(text).strip("\n"), " " * 8) for text in (self.init, self.forward)
        )
        return f'Network(\n    """\n{init}\n    """,\n    """\n{forward}\n    """,\n    {given},\n)'

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    @property
    def code(self) -> str:
        """The class."""
        init, forward = (
            textwrap.indent(textwrap.dedent(text).strip("\n"), " " * 8) for text in (self.init, self.forward)
        )
        return (
            f"class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n{init}\n\n"
            f"    def forward(self, x):\n{forward}\n        return x\n"
        )

    def model(self) -> nn.Module:
        """Return the network in eval mode, with running statistics and affine parameters of any size."""
        names: dict[str, Any] = {"nn": nn, "F": F, "torch": torch, "__name__": __name__}
        exec(self.code, names)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = names["Net"]().double().eval()
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "bias" in name or parameter.ndim == 1 or name in ("token", "places"):
                        added = torch.randn_like(parameter) / 2
                        parameter.copy_(parameter + added if "weight" in name else added if self.biases else 0 * added)
                for name, buffer in model.named_buffers():
                    if name.endswith("running_var"):
                        buffer.uniform_(0.5, 2)
                    elif name.endswith("running_mean") and self.biases:
                        buffer.normal_()
        return model

    def x(self, batch: int | None = None) -> torch.Tensor:
        """Return the inputs, `(batch, ...)`; the first of more are those of fewer."""
        count, draw = batch or self.batch, torch.Generator().manual_seed(self.seed)
        if self.tokens:
            return torch.stack([torch.randint(5, (self.tokens,), generator=draw) for _ in range(count)])
        return torch.stack([torch.randn(self.shape, generator=draw, dtype=torch.float64) for _ in range(count)])

    @property
    def target(self) -> int:
        """A class."""
        return self.seed % CLASSES

    @property
    def of_linear_pieces(self) -> bool:
        """Whether it is linear piece by piece."""
        return not any(word in self.code.replace("BatchNorm", "").replace("* 2", "") for word in BENT)

    def runs(self) -> bool:
        """Whether torch can run and differentiate it, with a score that depends on the input and does not vanish."""
        model, x = self.model(), self.x()
        try:
            leaf = next(model.parameters()) if self.tokens else x.clone().requires_grad_()
            score = model(x if self.tokens else leaf.clone())[:, self.target].sum()
            (gradient,) = torch.autograd.grad(score, leaf)
        except (RuntimeError, ValueError):
            return False
        return bool(score.isfinite() and gradient.isfinite().all() and gradient.abs().sum() > 1e-9)
