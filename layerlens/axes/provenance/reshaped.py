"""Axes of a tensor that is reshaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .axis import Axes, Axis, Factor, Part, merged, new, split


class Reshapes:
    """The reshapes of one run: the same axes are merged once, and equal ones are the same object."""

    def __init__(self) -> None:
        self._done: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[list[Axis], list[Axis]]] = {}
        self._axes: dict[Axis, Axis] = {}

    def regrouped(self, group: list[Axis], sizes: list[int]) -> list[Axis]:
        """Return the axes of `sizes` out of those of a group."""
        key = tuple(map(id, group)), tuple(sizes)
        if key in self._done:
            return self._done[key][1]
        found = list(_regrouped([factor for axis in group for factor in axis.factors], sizes))
        if all(axis.known for axis in found):
            for axis in group:
                self._axes.setdefault(axis, axis)
            found = [self._axes.setdefault(axis, axis) for axis in found]
            self._done[key] = group, found
        return found


def reshaped(axes: Axes, sizes: Iterable[int], before: Reshapes | None = None) -> Axes:
    """Return the axes of a tensor that is reshaped to `sizes`: factors are merged and split in order.

    Args:
        axes: axes of the tensor.
        sizes: new sizes.
        before: the reshapes of this run.
    """
    wanted, source, found = list(sizes), list(axes), list[Axis]()
    while wanted:
        if not source:  # the rest of the sizes is 1
            return (*found, *(Axis() for _ in wanted))
        group, targets = [source.pop(0)], [wanted.pop(0)]
        have, want = group[0].size, targets[0]
        while have != want:
            if have < want:
                group.append(source.pop(0))
                have *= group[-1].size
            else:
                targets.append(wanted.pop(0))
                want *= targets[-1]
        while (
            source
            and _one_sample(source[0])
            and not any(after.size > size for after, size in zip(source[1:2], wanted[:1], strict=True))
        ):  # a single sample goes with what it is merged with: units are merged with it only where they are split
            group.append(source.pop(0))
        if wanted and wanted[0] == 1 and len(group[-1].factors) > 1 and group[-1].factors[-1].size == 1:
            targets.append(wanted.pop(0))
        if len(group) == len(targets) == 1 and len(group[0].factors) < 2:
            found.append(group[0])
            continue
        found.extend((before or Reshapes()).regrouped(group, targets))
    return tuple(found)


def _one_sample(axis: Axis) -> bool:
    return axis.size == 1 and any(part.source.role == "batch" for part in axis.parts())


def _regrouped(factors: list[Factor], sizes: list[int]) -> Iterator[Axis]:
    """Yield the axes of `sizes` out of factors of the same product."""
    for position, size in enumerate(sizes):
        taken: list[Factor] = []
        have, last = 1, position == len(sizes) - 1
        while have < size and factors:
            factor = factors.pop(0)
            if size % (have * factor.size) == 0:
                taken.append(factor)
                have *= factor.size
            elif isinstance(factor, Part) and factor.size % (size // have) == 0:
                outer, inner = split(factor, size // have)
                taken.append(outer)
                factors.insert(0, inner)
                have = size
            else:
                why = f"a reshape cuts {Axis((factor,))!r} into {size // have} blocks"
                for rest in sizes[position:]:
                    yield new("unknown", rest, why) if rest > 1 else Axis()
                return
        if last:
            taken.extend(factors)
        elif size == 1 and factors and factors[0].size == 1:
            taken.append(factors.pop(0))
        yield merged(taken)
