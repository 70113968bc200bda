"""Claims about axes, checked by experiments: samples are exchanged, places of the input and units of layers change.

Each experiment knows nothing of operations: it runs the model again and looks at which entries of every tensor moved.
A claim is confirmed, contradicted, or open: where everything depends on everything alike, an experiment cannot say.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.axes.follow import Followed
from layerlens.axes.layout import described, grid, heads, role, roles
from layerlens.axes.provenance.axis import Axes, Axis, Factor, Part, Source
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.tensors import tensors_of
from layerlens.model.trees import unmapped

Key = tuple[str, int, str]
"""Path of the layer, index of the call, name of the tensor."""


@dataclasses.dataclass
class Claims:
    """What became of the claims: `what` -> number confirmed; and what was contradicted, in words."""

    confirmed: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    open: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def add(self, what: str, key: Key, verdict: bool | None, detail: str = "") -> None:
        """Count one claim."""
        if verdict is None:
            self.open[what] += 1
        elif verdict:
            self.confirmed[what] += 1
        else:
            self.wrong.append(f"{what} of {key}: {detail}")


def check(
    model: nn.Module,
    inputs: Inputs,
    followed: Followed,
    forward: Forward | None = None,
    *,
    independent: bool = True,
    held: Sequence[str] = (),
) -> Claims:
    """Check every claim about the axes of a run; `inputs` have at least two samples, each with other numbers.

    Args:
        model: the model, in eval mode.
        inputs: the arguments of the run that was followed.
        followed: the axes.
        forward: called instead of the model.
        independent: whether no sample influences another.
        held: names of inputs whose places cannot be changed.
    """
    found, axes = Claims(), dict(_every(followed))
    base = _run(model, inputs, forward)
    for key, claimed in axes.items():
        if key in base:
            fits = tuple(axis.size for axis in claimed) == tuple(base[key].shape)
            found.add("sizes", key, fits, f"{[axis.size for axis in claimed]} for {tuple(base[key].shape)}")
    if independent:
        _samples(model, inputs, followed, forward, axes, base, found)
    _places(model, inputs, followed, forward, axes, base, found, held)
    _units(model, inputs, forward, axes, base, found)
    return found


def same_claims(first: Followed, second: Followed, ignored: str = "batch") -> list[str]:
    """Return in words where two runs with batches of different sizes differ in what they claim."""
    one, two = dict(_every(first)), dict(_every(second))
    found = []
    for key in one.keys() & two.keys():
        a, b = _summary(one[key]), _summary(two[key])
        if a != b:
            found.append(f"{key}: {a} and {b}")
    return found


def _summary(axes: Axes) -> Any:
    if not any(part.source.kind == "input" for axis in axes for part in axis.parts()):
        # a mask, or a bias of positions with a mask on it, may repeat itself per sample: no axis is left for one sample
        axes = tuple(axis for axis in axes if any(part.source.kind != "extra" for part in axis.parts()))
    return described(axes), roles(axes), grid(axes), tuple(map(heads, axes))


def _every(followed: Followed) -> Iterator[tuple[Key, Axes]]:
    for site in followed.calls:
        for name, axes in site.outputs.items():
            yield (site.path, site.index, name), axes


@contextlib.contextmanager
def _watched(model: nn.Module, see: Callable[[Key, torch.Tensor], None]) -> Iterator[None]:
    paths = {id(module): path for path, module in model.named_modules()}
    count: collections.Counter[str] = collections.Counter()

    def hook(module: nn.Module, args: object, output: object) -> None:
        path = paths[id(module)]
        for name, tensor in tensors_of(module, output).items():
            tensor = unmapped(tensor)
            if tensor.layout is torch.strided and not tensor.is_nested:
                see((path, count[path], name), tensor)
        count[path] += 1

    modules = {id(module): module for module in model.modules()}.values()
    handles = [module.register_forward_hook(hook) for module in modules
               if not isinstance(module, torch.jit.ScriptModule)]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run(
    model: nn.Module,
    inputs: Inputs,
    forward: Forward | None,
    see: Callable[[Key, torch.Tensor], None] | None = None,
    seed: int = 0,
) -> dict[Key, torch.Tensor]:
    found: dict[Key, torch.Tensor] = {}

    def keep(key: Key, tensor: torch.Tensor) -> None:
        found[key] = tensor.detach().clone()

    with torch.random.fork_rng(devices=[]), torch.no_grad(), _watched(model, see or keep):
        torch.manual_seed(seed)
        inputs.run(model, forward)
    return found


# -- samples -----------------------------------------------------------------------------------------------------------


def _samples(
    model: nn.Module, inputs: Inputs, followed: Followed, forward: Forward | None, axes: dict[Key, Axes],
    base: dict[Key, torch.Tensor], found: Claims,
) -> None:  # fmt: skip
    """Exchange samples: the batch axis of every tensor follows, and nothing else moves."""
    batch = [name for name, claimed in followed.inputs.items() if claimed and role(claimed[0]) == "batch"]
    tensors = inputs.tensors()
    names = list(tensors)
    turned = inputs.replace(
        {name: tensors[name].roll(1, 0) for name in batch}
        or dict(zip(names, [tensors[name] for name in (names[-1], *names[:-1])], strict=True))
    )
    now, other = _run(model, turned, forward), _run(model, inputs, forward, seed=1)
    alone = {(site.path, site.index, name) for site in followed.calls for name in site.alone}
    for key, claimed in axes.items():
        if key not in other or not torch.equal(other[key].nan_to_num(), base[key].nan_to_num()):
            continue  # the noise of a sample stays where it is
        if key not in now or now[key].shape != base[key].shape or any(role(axis) == "unknown" for axis in claimed):
            continue
        expected = _rolled(base[key], claimed)
        scale = base[key].double().abs().mean().item() + 1e-12
        gap = (now[key].double() - expected.double()).abs()
        gap = gap[torch.isfinite(gap)]
        off = gap.mean().item() / scale if gap.numel() else 0.0
        moved = any(_batch(axis) for axis in claimed)
        what = "one sample" if key in alone else "samples" if moved else "no samples"
        found.add(what, key, (off < 1e-3) is (key not in alone), f"{described(claimed)}: off by {off:.3g}")


def _batch(axis: Axis) -> bool:
    return any(part.source.role == "batch" for part in axis.parts())


def _rolled(tensor: torch.Tensor, axes: Axes) -> torch.Tensor:
    """The tensor with the batch of each axis turned by one sample."""
    for place, axis in enumerate(axes):
        if _batch(axis):
            order = _turned(axis)
            tensor = tensor.index_select(place, order)
    return tensor


def _turned(axis: Axis) -> torch.Tensor:
    """For each entry of an axis the entry of the sample before."""
    order = torch.zeros((), dtype=torch.long)
    for factor in axis.factors:
        here = torch.arange(factor.size)
        if isinstance(factor, Part):
            here = here.roll(1) if factor.source.role == "batch" else here
        else:
            pieces, start = [], 0
            for segment in factor.segments:
                pieces.append(start + (_turned(segment) if _batch(segment) else torch.arange(segment.size)))
                start += segment.size
            here = torch.cat(pieces)
        order = (order.reshape(-1, 1) * factor.size + here).flatten()
    return order


# -- places and units --------------------------------------------------------------------------------------------------


def coordinates(axes: Axes, source: Source) -> list[torch.Tensor]:
    """Return for each entry of a tensor where in a source it lies, in a shape that broadcasts to its own; NaN nowhere.

    There are several answers where several axes hold the same, such as those of what attends and is attended to.
    """
    rank = len(axes)
    holding = [place for place, axis in enumerate(axes) if any(part.source is source for part in axis.parts())]
    levels: dict[tuple[float, ...], list[int]] = {}
    for place in holding:
        strides = tuple(sorted({abs(part.stride) for part in axes[place].parts() if part.source is source}))
        levels.setdefault(strides, []).append(place)
    found = []
    for places in itertools.product(*levels.values()) if holding else ():
        total = torch.zeros((1,) * rank, dtype=torch.float64)
        for place in places:
            total = total + _along(axes[place], source).reshape([-1 if place == here else 1 for here in range(rank)])
        parts = [part for place in places for part in axes[place].parts() if part.source is source]
        if any(part.rolled for part in parts):
            start, length = sum(part.offset for part in parts), parts[0].wrap
            inside = total - start < length
            total = torch.where(inside, start + (total - start - parts[0].rolled) % length, total)
        found.append(total)
    return found


def _along(axis: Axis, source: Source) -> torch.Tensor:
    total = torch.zeros((1,), dtype=torch.float64)
    for factor in axis.factors:
        total = (total.reshape(-1, 1) + _inside(factor, source)).flatten()
    return total


def _inside(factor: Factor, source: Source) -> torch.Tensor:
    if isinstance(factor, Part):
        if factor.source is source:
            return factor.offset + factor.stride * torch.arange(factor.size, dtype=torch.float64)
        return torch.zeros(factor.size, dtype=torch.float64)
    return torch.cat([_along(segment, source) if any(part.source is source for part in segment.parts())
                      else torch.full((segment.size,), math.nan, dtype=torch.float64)
                      for segment in factor.segments])  # fmt: skip


class _Moves:
    """How much the entries at every coordinate of a source moved, in each of several changed runs."""

    def __init__(self, axes: dict[Key, Axes], base: dict[Key, torch.Tensor], source: Source) -> None:
        self.base, self.where = base, dict[Key, list[tuple[torch.Tensor, torch.Tensor]]]()
        self.energies: dict[tuple[Key, int], list[torch.Tensor]] = collections.defaultdict(list)
        for key, claimed in axes.items():
            if key not in base or any(role(axis) == "unknown" for axis in claimed):
                continue
            if tuple(axis.size for axis in claimed) != tuple(base[key].shape):
                continue
            for own in coordinates(claimed, source):
                values, which = (own * 1e4).round().nan_to_num(math.inf).unique(return_inverse=True)
                if len(values) > 1:
                    self.where.setdefault(key, []).append((values / 1e4, which))

    def see(self, key: Key, tensor: torch.Tensor) -> None:
        """Note the moves of one tensor of a changed run."""
        if key not in self.where or tensor.shape != self.base[key].shape:
            return
        moves = (tensor - self.base[key]).abs().float().nan_to_num().square()
        for number, (values, which) in enumerate(self.where[key]):
            alike = [place for place, size in enumerate(which.shape) if size == 1]
            found = (moves.mean(alike, keepdim=True) if alike else moves).flatten().double()
            summed = torch.zeros(len(values), dtype=torch.float64).index_add_(0, which.flatten(), found)
            self.energies[key, number].append(summed / torch.bincount(which.flatten(), minlength=len(values)))

    def verdicts(
        self, changed: Sequence[float], extent: float, *, exact: bool
    ) -> Iterator[tuple[Key, bool | None, str]]:
        """Yield what the runs say about each tensor."""
        for (key, number), energies in self.energies.items():
            if len(energies) == len(changed):
                scale = float(self.base[key].abs().float().square().mean()) + 1e-30
                yield key, *_verdict(self.where[key][number][0], energies, changed, extent, exact, scale)


def _verdict(
    values: torch.Tensor,
    energies: list[torch.Tensor],
    changed: Sequence[float],
    extent: float,
    exact: bool,
    scale: float,
) -> tuple[bool | None, str]:
    """Compare where entries moved most with where something was changed."""
    inside = torch.isfinite(values)
    values, moves = values[inside], torch.stack(energies)[:, inside]
    if exact:
        held = [row for row, unit in enumerate(changed) if bool((values == unit).any())]
        moves, changed = moves[held], [changed[row] for row in held]
        near = 0.0
    else:
        near = float((values[1:] - values[:-1]).median()) + 0.1 * extent
    if len(values) < 2 or len(changed) < 2:
        return None, "too few entries"
    most = moves.max(1, keepdim=True).values
    if bool((most <= 1e-10 * scale).any()):
        return None, "nothing moved"
    logs = (moves / most + 1e-8).log()
    others = logs - logs.median(0, keepdim=True).values  # what moves in every run alike is taken out
    clear = 2 if bool((moves.min(1).values < 1e-6 * moves.max(1).values).any()) else 4  # all of it moves where it mixes
    shown = []
    for rows, ends in ((logs, False), (others, not exact)):
        peaks = [float(values[row.argmax()]) for row in rows]
        reach = [min(max(place, float(values[0])), float(values[-1])) for place in changed]
        off = [peak - place for peak, place in zip(peaks, reach, strict=True)]
        if ends:  # differences of wide bells grow to the ends
            first, last = changed.index(min(changed)), changed.index(max(changed))
            off[first], off[last] = max(off[first], 0.0), min(off[last], 0.0)
        right = [abs(one) <= near + 1e-3 for one in off]
        if all(right):
            return True, ""
        gaps = [_gap(row, values, peak, near) for row, peak in zip(rows, peaks, strict=True)]
        shown.append(any(gap > clear and not fine for gap, fine in zip(gaps, right, strict=True)))
    return (False, f"changed {changed}, moved most {peaks}") if all(shown) else (None, "no clear peak")


def _gap(row: torch.Tensor, values: torch.Tensor, peak: float, near: float) -> float:
    """By how much the highest entry is above all that are not near it."""
    others = row[(values - peak).abs() > near + 1e-3]
    return float(row.max() - others.max()) if others.numel() else 0.0


def _places(
    model: nn.Module, inputs: Inputs, followed: Followed, forward: Forward | None, axes: dict[Key, Axes],
    base: dict[Key, torch.Tensor], found: Claims, held: Sequence[str],
) -> None:  # fmt: skip
    """Change a few patches of each input that is not held: what covers them moves most, along each axis."""
    tensors = inputs.tensors()
    for name, claimed in followed.inputs.items():
        given = tensors[name]
        if name in held:
            continue
        if given.dtype == torch.bool or (not given.is_floating_point() and int(given.max()) <= 1):
            continue
        parts = {place: axis.part for place, axis in enumerate(claimed)
                 if axis.part is not None and axis.part.source.role == "place" and axis.size > 3}  # fmt: skip
        moves = [(part, _Moves(axes, base, part.source), _spread(part.size, 3, number))
                 for number, part in enumerate(parts.values())]  # fmt: skip
        for run in range(3 if parts else 0):
            patch = [slice(None)] * given.ndim
            for place, (_, _, spread) in zip(parts, moves, strict=True):
                patch[place] = spread[run]
            turned = inputs.replace({name: _changed(given, tuple(patch))})

            def see(key: Key, tensor: torch.Tensor, moves: Any = moves) -> None:
                for _, kept, _ in moves:
                    kept.see(key, tensor)

            _run(model, turned, forward, see)
        for part, kept, spread in moves:
            centers = [(piece.start + piece.stop - 1) / 2 for piece in spread]
            for key, verdict, why in kept.verdicts(centers, part.size, exact=False):
                found.add("places", key, verdict, f"{part.source.name} {described(axes[key])}: {why}")


def _spread(size: int, count: int, turn: int) -> list[slice]:
    """Return patches along one axis, in another order for each: exchanged axes do not look alike."""
    width = max(1, size // 12)
    starts = [round((2 * k + 1) / (2 * count) * size - width / 2) for k in range(count)]
    pieces = [slice(max(0, min(start, size - width)), max(0, min(start, size - width)) + width) for start in starts]
    return pieces[turn % count :] + pieces[: turn % count]


def _changed(given: torch.Tensor, patch: tuple[slice, ...]) -> torch.Tensor:
    turned = given.clone()
    view = turned[patch]
    if given.is_floating_point():
        noise = torch.randn(view.shape, generator=torch.Generator().manual_seed(3))
        view += (0.5 * noise * given.std()).to(given.dtype)
    else:
        view.copy_(torch.where(view == int(given.max()), view - 1, view + 1))
    return turned


_ROWS: dict[str, int] = {"Linear": 0, "Conv1d": 0, "Conv2d": 0, "Conv3d": 0, "Embedding": 1, "Conv1D": 1}
"""Kind of layer -> axis of its weight that counts its units."""


def _units(
    model: nn.Module, inputs: Inputs, forward: Forward | None, axes: dict[Key, Axes], base: dict[Key, torch.Tensor],
    found: Claims, most: int = 3,
) -> None:  # fmt: skip
    """Change the weights of one unit of a layer: its entry on the unit axis moves most."""
    tried: list[tuple[nn.Module, Key, Source]] = []
    seen: set[int] = set()
    modules = dict(model.named_modules())
    for key, claimed in axes.items():
        module, which = modules[key[0]], _ROWS.get(type(modules[key[0]]).__name__)
        if which is None or key[1] or key not in base or not isinstance(getattr(module, "weight", None), nn.Parameter):
            continue
        own = [axis.part for axis in claimed if axis.part is not None and axis.part.source.kind == "unit"]
        size = module.weight.shape[which]
        parts = [part for part in own if part is not None and part.size == size == part.source.size]
        if not parts:
            if size > 3 and any(part.source.kind != "extra" for axis in claimed for part in axis.parts()):
                found.add("units", key, False, f"{described(claimed)} has no axis of {size} units")
            continue
        if len(parts) == 1 and id(parts[0].source) not in seen and size > 3:
            seen.add(id(parts[0].source))
            tried.append((module, key, parts[0].source))
    step = max(1, math.ceil(len(tried) / most))
    for module, _, source in itertools.islice(tried, 0, None, step):
        moves, which = _Moves(axes, base, source), _ROWS[type(module).__name__]
        weight = module.get_parameter("weight")
        changed = [source.size // 5, source.size // 2, source.size - 2]
        for unit in changed:
            before = weight.detach().clone()
            with torch.no_grad():
                weight.select(which, unit).mul_(-0.5)
                bias = getattr(module, "bias", None)
                if isinstance(bias, nn.Parameter):
                    bias_before = bias.detach().clone()
                    bias[unit] += 0.1
            try:
                _run(model, inputs, forward, moves.see)
            finally:
                with torch.no_grad():
                    weight.copy_(before)
                    if isinstance(bias, nn.Parameter):
                        bias.copy_(bias_before)
        for key, verdict, why in moves.verdicts(changed, source.size, exact=True):
            found.add("units", key, verdict, f"{described(axes[key])}: {why}")
