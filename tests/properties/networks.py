"""Random networks, drawn block by block as the code of a module, and how the properties of this folder are tried.

A network is the text of its `__init__` and `forward`, so a counter-example prints as code to read, run and keep in
`found.py`. Every property is tried on the same networks in every run. To search further, with other networks each time:

    LAYERLENS_PROPERTIES=5000 python -m pytest -m slow tests/properties

tries 5,000 networks for each property; a failure prints the smallest network found. Put that into `found.py`: from then
on every property is tried on it in every run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from .found import FOUND
from .network import CLASSES, Network

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
assume = hypothesis.assume

SEARCH = int(os.environ.get("LAYERLENS_PROPERTIES", "0"))
"""Number of other networks for each property; 0 for the same few in every run."""

# -- the grammar -------------------------------------------------------------------------------------------------------
# A block draws its code from the shape that it meets: (features,), (time, features) or (channels, height, width).

Shape = tuple[int, ...]
Draw = Callable[..., Any]
Block = Callable[["Writer", Shape], Shape]
BLOCKS: dict[Block, tuple[tuple[int, ...], bool]] = {}
"""Block -> the ranks that it takes, and whether it is linear piece by piece."""


def block(*ranks: int, pieces: bool) -> Callable[[Block], Block]:
    """Make a function a block of the grammar."""

    def note(function: Block) -> Block:
        BLOCKS[function] = ranks, pieces
        return function

    return note


class Writer:
    """The code of a network while it is drawn."""

    def __init__(self, draw: Draw, pieces: bool, biases: bool) -> None:
        self.draw, self.pieces, self.biases = draw, pieces, biases
        self.init: list[str] = []
        self.forward: list[str] = []

    def pick(self, *choices: Any) -> Any:
        """Draw one of the choices, simplest first."""
        return self.draw(st.sampled_from(choices))

    def number(self, low: int, high: int) -> int:
        """Draw a number."""
        return self.draw(st.integers(low, high))

    def module(self, code: str) -> str:
        """Add a module and return its name."""
        name = f"{code.split('(')[0].removeprefix('nn.').lower()}{len(self.init)}"
        self.init.append(f"self.{name} = {code}")
        return f"self.{name}"

    def line(self, code: str) -> None:
        """Add a line of `forward`."""
        self.forward.append(code)

    def call(self, code: str) -> None:
        """Add a module and call it."""
        self.line(f"x = {self.module(code)}(x)")

    def bias(self) -> str:
        """An option of a layer."""
        return "" if self.biases else ", bias=False"

    def blocks(self, shape: Shape, most: int, keep: bool = False) -> Shape:
        """Draw a chain of blocks; `keep` those that keep the shape."""
        for _ in range(self.number(0 if keep else 1, most)):
            fitting = [one for one, (ranks, pieces) in BLOCKS.items()
                       if len(shape) in ranks and (pieces or not self.pieces)]  # fmt: skip
            if keep:
                fitting = [one for one in fitting if one in KEEP]
            fitting += [one for one in fitting if one in OFTEN]
            after = self.draw(st.sampled_from(fitting))(self, shape)
            assume(after == shape or not keep)  # a branch may concatenate
            shape = after
        return shape


@block(1, 2, 3, pieces=True)
def activation(w: Writer, shape: Shape) -> Shape:
    straight = ["x = F.relu(x)", "x = x.relu()", "x = torch.relu_(x)", "x = F.leaky_relu(x, 0.2)", "x = x.abs()",
                "x = F.leaky_relu_(x, 0.1)", "x = x.clamp(min=0)", "x = torch.maximum(x, x * 2)", "x.relu_()",
                "x += x.relu()", "x = -x", "x.mul_(2)"]  # fmt: skip
    bent = ["x = F.gelu(x)", "x = x.tanh()", "x = x.sigmoid()", "x = F.silu(x, inplace=True)", "x.tanh_()", "x = x * x",
            "x = F.softplus(x)", "x = F.elu(x)", "x *= x.sigmoid()", "x = F.mish(x)", "x = x.softmax(-1)", "x = x ** 2",
            "x = F.hardtanh(x)", "x = F.relu6(x)", "x = x / (1 + x ** 2)", "x = x.exp()", "x = (1 + x.abs()).log()",
            "x = x.clamp(-0.5, 0.7)", "x = F.normalize(x, dim=1)", "x = x.log_softmax(-1)"]  # fmt: skip
    modules = ["nn.ReLU()", "nn.ReLU(inplace=True)", "nn.LeakyReLU(0.1, inplace=True)", "nn.PReLU()", "nn.Identity()",
               "nn.Dropout(0.5)"]  # fmt: skip
    bent_modules = ["nn.GELU()", "nn.Tanh()", "nn.SiLU(inplace=True)", "nn.ELU(inplace=True)", "nn.Hardswish()",
                    "nn.Softmax(dim=1)"]  # fmt: skip
    chosen = w.pick(*modules, *straight, *([] if w.pieces else bent + bent_modules))
    if chosen.startswith("nn."):
        w.call(chosen)
    else:
        w.line(chosen)
    return shape


@block(1, 2, pieces=True)
def linear(w: Writer, shape: Shape) -> Shape:
    out = w.number(1, 6)
    w.call(f"nn.Linear({shape[-1]}, {out}{w.bias()})")
    return (*shape[:-1], out)


@block(1, 2, pieces=True)
def reuse(w: Writer, shape: Shape) -> Shape:
    layer = w.module(f"nn.Linear({shape[-1]}, {shape[-1]}{w.bias()})")
    between = w.module(w.pick("nn.ReLU()", "nn.ReLU(inplace=True)"))
    for _ in range(w.number(2, 3)):
        w.line(f"x = {between}({layer}(x))")
    return shape


@block(1, 2, 3, pieces=False)
def layer_norm(w: Writer, shape: Shape) -> Shape:
    assume(shape[-1] > 1)
    w.call(f"nn.{w.pick('LayerNorm', 'RMSNorm')}({shape[-1]})")
    return shape


@block(1, 3, pieces=True)
def batch_norm(w: Writer, shape: Shape) -> Shape:
    w.call(f"nn.BatchNorm{1 if len(shape) == 1 else 2}d({shape[0]})")
    return shape


@block(1, 2, 3, pieces=True)
def branch(w: Writer, shape: Shape) -> Shape:
    name = f"skip{len(w.forward)}"
    w.line(f"{name} = x")
    how = w.pick("x + {}", "torch.cat([x, {}], 1)", "torch.maximum(x, {})", "torch.stack([x, {}]).sum(0)", "in place",
                 *([] if w.pieces else ["x * {}", "x * {}.sigmoid()", "product in place"]))  # fmt: skip
    w.blocks(shape, 2, keep=True)
    if w.pick(False, True):
        other = f"left{len(w.forward)}"
        w.line(f"{other} = x")
        w.line(f"x = {name}")
        w.blocks(shape, 2, keep=True)
        name = other
    if how == "in place":
        w.line(f"x += {name}")
    elif how == "product in place":
        w.line(f"x.mul_({name})")
    else:
        w.line(f"x = {how.format(name)}")
    return (2 * shape[0], *shape[1:]) if "cat" in how else shape


@block(1, 2, 3, pieces=True)
def parts(w: Writer, shape: Shape) -> Shape:
    axis = w.number(1, len(shape))
    size = shape[axis - 1]
    assume(size > 1)
    if size % 2 == 0 and w.pick(True, False):
        w.line(f"a, b = x.{w.pick('chunk(2', f'split({size // 2}')}, {axis})")
        how = w.pick("a + b", "a - b", "torch.cat([b, a], {})", *([] if w.pieces else ["a * b", "a * b.sigmoid()"]))
        w.line(f"x = {how.format(axis)}")
        return shape if "cat" in how else (*shape[: axis - 1], size // 2, *shape[axis:])
    first = w.number(1, size - 1)
    w.line(f"a, b = x.split([{first}, {size - first}], {axis})")
    w.line(w.pick(f"x = torch.cat([b, F.relu(a)], {axis})", f"x = torch.cat([a, b.relu_()], {axis})"))
    return shape


@block(1, 2, 3, pieces=True)
def indexing(w: Writer, shape: Shape) -> Shape:
    axis = w.number(1, len(shape))
    size = shape[axis - 1]
    before = ":, " * axis
    chosen = w.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=3))
    start = w.number(0, size - 1)
    view = ", ".join("-1" if k == axis else "1" for k in range(len(shape) + 1))
    code, out = w.pick(
        (f"x[{before}{start}:]", size - start),
        (f"x[{before}::2]", (size + 1) // 2),
        (f"x[{before}{chosen}]", len(chosen)),
        (f"x.index_select({axis}, torch.tensor({chosen}))", len(chosen)),
        (f"x.narrow({axis}, {start}, {size - start})", size - start),
        (f"x.flip({axis})", size),
        (f"x.roll(1, {axis})", size),
        (f"torch.take_along_dim(x, torch.tensor({chosen}).view({view}), {axis})", len(chosen)),
        (f"torch.stack(x.unbind({axis})[::-1], {axis})", size),
        (f"F.pad(x, ({'0, 0, ' * (len(shape) - axis)}1, 0))", size + 1),
    )  # fmt: skip
    w.line(f"x = {code}")
    return (*shape[: axis - 1], out, *shape[axis:])


@block(1, 2, 3, pieces=True)
def gather(w: Writer, shape: Shape) -> Shape:
    chosen = w.draw(st.lists(st.integers(0, shape[0] - 1), min_size=1, max_size=3))
    sizes = ", ".join(["-1", "-1", *map(str, shape[1:])])
    view = ", ".join(["1", "-1", *["1" for _ in shape[1:]]])
    w.line(f"index = torch.tensor({chosen}).view({view}).expand(len(x), {sizes.removeprefix('-1, ')})")
    w.line("x = x.gather(1, index)")
    return (len(chosen), *shape[1:])


@block(1, pieces=True)
def to_sequence(w: Writer, shape: Shape) -> Shape:
    divisors = [k for k in range(1, shape[0] + 1) if shape[0] % k == 0]
    time = w.draw(st.sampled_from(divisors))
    out = time, shape[0] // time
    w.line(w.pick(f"x = x.reshape(len(x), {out[0]}, {out[1]})", f"x = x.unflatten(1, {out})",
                  f"x = x.reshape(-1, {out[0]}, {out[1]})"))  # fmt: skip
    return out


@block(2, pieces=True)
def turned(w: Writer, shape: Shape) -> Shape:
    code = w.pick("x.transpose(1, 2)", "x.permute(0, 2, 1)", "x.permute(2, 0, 1).permute(1, 0, 2)", "x.mT.contiguous()")
    w.line(f"x = {code}")
    return shape[::-1]


@block(3, pieces=True)
def turned_picture(w: Writer, shape: Shape) -> Shape:
    w.line(w.pick("x = x.transpose(2, 3)", "x = x.permute(0, 1, 3, 2).contiguous()", "x = x.mT"))
    return shape[0], shape[2], shape[1]


@block(2, 3, pieces=True)
def pooled(w: Writer, shape: Shape) -> Shape:
    axis = 1 if len(shape) == 2 else 2
    out = shape[-1:] if len(shape) == 2 else (shape[0], shape[2])
    code = w.pick(
        "mean({})",
        "amax({})",
        "max({}).values",
        "sum({})",
        "select({}, -1)",
        *([] if w.pieces else ["std({}, correction=0)"]),
    )
    assume("std" not in code or shape[axis - 1] > 1)
    w.line(f"x = x.{code.format(axis)}")
    return out


@block(2, 3, pieces=True)
def flat(w: Writer, shape: Shape) -> Shape:
    if len(shape) == 3 and w.pick(True, False):
        w.line("x = x.flatten(2).transpose(1, 2)")
        return shape[1] * shape[2], shape[0]
    w.line(w.pick("x = x.flatten(1)", "x = x.reshape(len(x), -1)"))
    size = 1
    for one in shape:
        size *= one
    return (size,)


@block(2, pieces=True)
def token(w: Writer, shape: Shape) -> Shape:
    w.init.append(f"self.token = nn.Parameter(torch.randn(1, 1, {shape[1]}))")
    w.line("x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)")
    return shape[0] + 1, shape[1]


@block(2, pieces=True)
def places(w: Writer, shape: Shape) -> Shape:
    w.init.append(f"self.places = nn.Parameter(torch.randn{shape})")
    w.line(w.pick("x = x + self.places", "x += self.places"))
    return shape


@block(2, pieces=True)
def convolution_in_time(w: Writer, shape: Shape) -> Shape:
    out = w.number(1, 4)
    layer = w.module(f"nn.Conv1d({shape[1]}, {out}, 3, padding=1{w.bias()})")
    w.line(f"x = {layer}(x.transpose(1, 2)).transpose(1, 2)")
    return shape[0], out


@block(2, pieces=False)
def attention(w: Writer, shape: Shape) -> Shape:
    heads = w.pick(*[k for k in (1, 2, 3) if shape[1] % k == 0])
    kind = w.pick("module", "fused", "by hand", "encoder layer", "in time first")
    if kind in ("module", "in time first"):
        first = kind == "module"
        layer = w.module(f"nn.MultiheadAttention({shape[1]}, {heads}{w.bias()}{', batch_first=True' if first else ''})")
        if first:
            w.line(f"x = {layer}(x, x, x{w.pick('', ', need_weights=False')})[0]")
        else:
            w.line("x = x.transpose(0, 1)")
            w.line(f"x = {layer}(x, x, x)[0].transpose(0, 1)")
    elif kind == "encoder layer":
        first = w.pick("", ", norm_first=True")
        options = f"activation='{w.pick('relu', 'gelu')}', batch_first=True{first}"
        w.call(f"nn.TransformerEncoderLayer({shape[1]}, {heads}, {shape[1] + 2}, {options})")
    else:
        layer = w.module(f"nn.Linear({shape[1]}, {3 * shape[1]}{w.bias()})")
        w.line(f"q, k, v = {layer}(x).unflatten(2, (3, {heads}, {shape[1] // heads})).permute(2, 0, 3, 1, 4)")
        causal = w.pick(False, True)
        if kind == "fused":
            w.line(f"x = F.scaled_dot_product_attention(q, k, v{', is_causal=True' if causal else ''})")
        else:
            w.line("weights = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5")
            if causal:
                w.line("mask = torch.ones(weights.shape[-2:], dtype=torch.bool).triu(1)")
                w.line("weights = weights.masked_fill(mask, -float('inf'))")
            w.line("x = weights.softmax(-1) @ v")
        w.line("x = x.transpose(1, 2).flatten(2)")
    return shape


@block(2, pieces=False)
def recurrence(w: Writer, shape: Shape) -> Shape:
    kind, size = w.pick("GRU", "LSTM", "RNN"), w.number(1, 4)
    layers, both, first = w.number(1, 2), w.pick(False, True), w.pick(True, False)
    options = f"{', batch_first=True' if first else ''}{', bidirectional=True' if both else ''}{w.bias()}"
    layer = w.module(f"nn.{kind}({shape[1]}, {size}, {layers}{options})")
    if not first:
        w.line("x = x.transpose(0, 1)")
    if w.pick(True, False):
        w.line(f"x, _ = {layer}(x)")
        if not first:
            w.line("x = x.transpose(0, 1)")
        return shape[0], size * (1 + both)
    w.line(f"_, {'(x, cell)' if kind == 'LSTM' else 'x'} = {layer}(x)")
    if w.pick(True, False):
        w.line("x = x[-1]")
        return (size,)
    w.line("x = x.transpose(0, 1)")
    return layers * (1 + both), size


@block(2, pieces=False)
def cell(w: Writer, shape: Shape) -> Shape:
    size = w.number(1, 4)
    if w.pick("GRUCell", "LSTMCell") == "GRUCell":
        layer = w.module(f"nn.GRUCell({shape[1]}, {size}{w.bias()})")
        w.line(f"state = x.new_zeros(len(x), {size})")
        w.line("for step in x.unbind(1):")
        w.line(f"    state = {layer}(step, state)")
        w.line("x = state")
    else:
        layer = w.module(f"nn.LSTMCell({shape[1]}, {size}{w.bias()})")
        w.line("state = None")
        w.line("for step in x.unbind(1):")
        w.line(f"    state = {layer}(step, state)")
        w.line("x = state[0]")
    return (size,)


@block(3, pieces=True)
def convolution(w: Writer, shape: Shape) -> Shape:
    groups = w.pick(1, *([shape[0]] if shape[0] > 1 else []))
    out = groups * w.number(1, 2 if groups > 1 else 4)
    kernel, stride, padding, dilation = w.number(1, 3), w.number(1, 2), w.number(0, 1), w.number(1, 2)
    options = f"{kernel}, {stride}, {padding}, groups={groups}{w.bias()}"
    if w.pick(False, True):
        sides = [(side - 1) * stride - 2 * padding + kernel for side in shape[1:]]
        code = f"nn.ConvTranspose2d({shape[0]}, {out}, {options})"
    else:
        sides = [(side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for side in shape[1:]]
        code = f"nn.Conv2d({shape[0]}, {out}, {options}, dilation={dilation})"
    assume(min(sides) > 0 and max(sides) < 12)
    w.call(code)
    return out, *sides


@block(3, pieces=True)
def pooling(w: Writer, shape: Shape) -> Shape:
    height, width = shape[1:]
    kind = w.pick("max", "average", "adaptive average", "adaptive max", "upsample", "pixels", "bilinear")
    if kind == "upsample":
        assume(max(shape[1:]) < 6)
        w.call("nn.Upsample(scale_factor=2)")
        return shape[0], 2 * height, 2 * width
    if kind == "bilinear":
        w.line("x = F.interpolate(x, size=(4, 3), mode='bilinear')")
        return shape[0], 4, 3
    if kind == "pixels":
        assume(height % 2 == 0 and width % 2 == 0)
        w.line("x = F.pixel_unshuffle(x, 2)")
        return 4 * shape[0], height // 2, width // 2
    if kind.startswith("adaptive"):
        side = w.number(1, 3)
        w.call(f"nn.Adaptive{'Avg' if 'average' in kind else 'Max'}Pool2d({side})")
        return shape[0], side, side
    assume(min(height, width) >= 2)
    stride, padding = w.number(1, 2), w.number(0, 1)
    name = "MaxPool2d" if kind == "max" else "AvgPool2d"
    w.call(f"nn.{name}(2, {stride}, {padding})")
    return shape[0], (height + 2 * padding - 2) // stride + 1, (width + 2 * padding - 2) // stride + 1


@block(3, pieces=False)
def norm_of_groups(w: Writer, shape: Shape) -> Shape:
    assume(shape[1] * shape[2] > 1)
    groups = w.pick(*[k for k in range(1, shape[0] + 1) if shape[0] % k == 0])
    w.call(w.pick(f"nn.GroupNorm({groups}, {shape[0]})", f"nn.InstanceNorm2d({shape[0]}, affine=True)"))
    return shape


@block(3, pieces=False)
def squeeze(w: Writer, shape: Shape) -> Shape:
    layer = w.module(f"nn.Conv2d({shape[0]}, {shape[0]}, 1{w.bias()})")
    w.line(f"x = x * {layer}(F.adaptive_avg_pool2d(x, 1)).{w.pick('sigmoid', 'relu')}()")
    return shape


KEEP = (activation, reuse, layer_norm, batch_norm, branch, places, attention, norm_of_groups, squeeze)
"""Blocks that keep the shape."""

OFTEN = (activation, branch, attention, recurrence, convolution)
"""Blocks that are drawn twice as often as others."""


@st.composite
def networks(draw: Draw, *, pieces: bool = False, start: str = "any") -> Network:
    """Draw a network that runs.

    Args:
        draw: given by hypothesis.
        pieces: whether it shall be linear piece by piece.
        start: `"features"`, `"sequence"`, `"picture"`, `"tokens"`, `"numbers"` for the first three, or `"any"`.
    """
    if start in ("any", "numbers"):
        kinds = ["features", "sequence", "picture"] + (["tokens"] if start == "any" else [])
        start = draw(st.sampled_from(kinds))
    biases = draw(st.booleans())
    w, tokens = Writer(draw, pieces, biases), 0
    if start == "tokens":
        tokens, width = w.number(1, 4), w.number(1, 6)
        shape: Shape = (tokens, width)
        w.call(f"nn.Embedding(5, {width})")
    else:
        shape = {
            "features": lambda: (w.number(1, 6),),
            "sequence": lambda: (w.number(1, 5), w.number(1, 6)),
            "picture": lambda: (w.number(1, 3), w.number(2, 7), w.number(2, 7)),
        }[start]()
    first = () if tokens else shape
    shape = w.blocks(shape, 8)
    if len(shape) == 3:
        code = w.pick("x = x.flatten(1)", "x = x.mean((2, 3))")
        w.line(code)
        shape = (shape[0],) if "mean" in code else (shape[0] * shape[1] * shape[2],)
    elif len(shape) == 2:
        code = w.pick("x = x.flatten(1)", "x = x.mean(1)", "x = x[:, -1]")
        w.line(code)
        shape = (shape[0] * shape[1],) if "flatten" in code else (shape[1],)
    w.call(f"nn.Linear({shape[0]}, {CLASSES}{w.bias()})")
    network = Network("\n".join(w.init), "\n".join(w.forward), first, w.number(1, 3), w.number(0, 9), biases, tokens)
    assume(network.runs())
    return network


def for_networks(
    count: int, *, pieces: bool = False, start: str = "any", **choices: Sequence[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Try a property of a network on `count` random ones, and on those of `found.py` with every choice.

    Args:
        count: how many, the same in every run; `LAYERLENS_PROPERTIES` is the number of others.
        pieces: as in `networks`.
        start: as in `networks`.
        **choices: other arguments of the property, one of which is drawn for each network.
    """

    def fits(network: Network) -> bool:
        return (network.of_linear_pieces or not pieces) and (start == "any" or not network.tokens)

    def decorate(property_of: Callable[..., None]) -> Callable[..., None]:
        drawn = {name: st.sampled_from(list(values)) for name, values in choices.items()}
        tried: Any = hypothesis.given(network=networks(pieces=pieces, start=start), **drawn)(property_of)
        for network in filter(fits, FOUND):
            for turn in range(max(map(len, choices.values()), default=1)):
                chosen = {name: values[turn % len(values)] for name, values in choices.items()}
                tried = hypothesis.example(network=network, **chosen)(tried)
        return hypothesis.settings(
            max_examples=SEARCH or count,
            derandomize=not SEARCH,
            deadline=None,
            print_blob=True,
            phases=set(hypothesis.Phase) - {hypothesis.Phase.explain},
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )(tried)

    return decorate
