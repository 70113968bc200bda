"""What a model keeps besides parameters and buffers: tensors in attributes, lists, dicts, caches and other objects."""

from __future__ import annotations

import dataclasses
import operator
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from layerlens.errors import warn

from .trees import CONSTANT, version

MOST = 2000
"""Objects below one attribute; one with more, such as a trainer or a data set, is not the state of a model."""

LARGE = 2**28
"""Bytes of a tensor or array above which it is not copied, and a write into it is warned of."""

_INTERNAL = frozenset([*nn.Module().__dict__, "_hf_hook", "_old_forward", "forward"])
"""Attributes that every module has, or that accelerate sets."""
_PLAIN = frozenset([bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size])
_CONTAINERS = frozenset([dict, list, tuple, set])
"""Classes of Python whose objects have no attributes."""
_FOREIGN = ("torch", "accelerate", "builtins", "logging", "threading", "weakref", "functools", "_thread")
"""Packages whose objects are not looked into, but for containers and distributions."""
_GENERATORS: tuple[tuple[type, Callable[[Any], Any], Callable[[Any, Any], Any]], ...] = (
    (torch.Generator, lambda one: one.get_state(), lambda one, state: one.set_state(state)),
    (
        np.random.Generator,
        lambda one: one.bit_generator.state,
        lambda one, state: setattr(one.bit_generator, "state", state),
    ),
    (np.random.RandomState, lambda one: one.get_state(), lambda one, state: one.set_state(state)),
    (random.Random, lambda one: one.getstate(), lambda one, state: one.setstate(state)),
)
"""Random generators that a model may own: class, reader and setter of the state."""


class Bits:
    """The numbers of a tensor, to be restored.

    Args:
        tensor: the tensor, which stays itself.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, self.bits = tensor, tensor.detach().clone()
        self.version, self.attached = version(tensor), tensor.grad_fn is not None

    def written(self) -> bool:
        """Return whether the numbers differ; versions miss the updates of BatchNorm and writes through `.data`."""
        tensor = self.tensor
        if tensor.is_inference():
            return False
        if version(tensor) != self.version or tensor.is_meta or tensor.layout is not torch.strided:
            return version(tensor) != self.version
        return not torch.equal(tensor, self.bits)

    def restore(self) -> None:
        """Write the numbers back, and cut the graph of what wrote into them."""
        if not self.written():
            return
        with torch.no_grad():
            if self.tensor.grad_fn is not None and not self.attached and not self.tensor._is_view():
                self.tensor.detach_()
            self.tensor.copy_(self.bits)


class State:
    """The tensors that modules keep as attributes, however deep, and the numbers next to them.

    Objects are not copied: each container or object below an attribute is noted with what it holds. If a tensor was
    written, added, replaced or removed there, it gets back what it held; then the other attributes of the modules
    (a position, a counter) are restored as well.

    Args:
        modules: all modules of a model.
        known: ids of tensors that are restored elsewhere.
    """

    def __init__(self, modules: Iterable[nn.Module], known: set[int]) -> None:
        self._modules: list[tuple[nn.Module, dict[str, Any]]] = []
        self._attributes: list[_Found] = []
        seen = known
        for module in modules:
            if _of_torch(type(module)) and not module._forward_pre_hooks:  # a hook may set a weight
                continue
            attributes = module.__dict__
            own = {name: attributes[name] for name in attributes.keys() - _INTERNAL}
            self._modules.append((module, own))
            for value in own.values():
                if value.__class__ not in _PLAIN and not _is_plain_tuple(value):
                    found = _Found(value, seen)
                    if found:
                        self._attributes.append(found)

    def restore(self) -> None:
        """Restore what was changed."""
        changed = [found.restore() for found in self._attributes]
        anywhere = any(changed)
        differing = []
        for module, before in self._modules:
            own = module.__dict__
            names = [name for name, value in before.items() if own.get(name, _NOTHING) is not value]
            names += own.keys() - _INTERNAL - before.keys()
            differing += [(own, before, name) for name in names]
        for own, before, name in differing:
            anywhere = anywhere or _has_tensor(own.get(name)) or _has_tensor(before.get(name))
        for own, before, name in differing if anywhere else ():
            if name in before:
                own[name] = before[name]
            else:
                del own[name]


_NOTHING = object()


def _is_plain_tuple(value: object) -> bool:
    """Whether a value is a tuple of plain values, as the kernel size of a convolution, which nothing changes."""
    if value.__class__ is not tuple:
        return False
    return all(one.__class__ in _PLAIN for one in value)


def _of_torch(kind: type) -> bool:
    """Whether a class is a layer of torch, which keeps no tensors besides parameters and buffers."""
    return kind.__module__.startswith("torch.nn.modules.")


class _Found:
    """Everything that is kept below one attribute.

    Args:
        value: the attribute.
        seen: ids of what was found before; this adds its own.
    """

    def __init__(self, value: object, seen: set[int]) -> None:
        self.holders: list[_Holder] = []
        self.tensors: list[Bits] = []
        self._generators: list[tuple[Callable[[Any, Any], Any], Any, Any]] = []
        self._arrays: list[tuple[Any, Any]] = []
        self._large: list[tuple[torch.Tensor, int]] = []
        waiting = [value]
        while waiting:
            one = waiting.pop()
            if one.__class__ in _PLAIN or id(one) in seen:
                continue
            if isinstance(one, torch.Tensor):
                seen.add(id(one))
                if isinstance(one, nn.Parameter):
                    continue
                if one.layout is torch.strided and one.nbytes > LARGE:
                    self._large.append((one, version(one)))
                else:
                    self.tensors.append(Bits(one))
                continue
            if isinstance(one, np.ndarray):
                seen.add(id(one))
                if one.nbytes <= LARGE:
                    self._arrays.append((one, one.copy()))
                continue
            for kind, get, set_ in _GENERATORS if one.__class__ not in _CONTAINERS else ():
                if isinstance(one, kind):
                    seen.add(id(one))
                    self._generators.append((set_, one, get(one)))
            holder = _Holder.of(one)
            if holder is None:
                continue
            seen.add(id(one))
            self.holders.append(holder)
            waiting += holder.parts()
            if len(self.holders) > MOST:
                self.holders, self.tensors = [], []
                return

    def __bool__(self) -> bool:
        return bool(self.holders or self.tensors or self._generators or self._arrays or self._large)

    def restore(self) -> bool:
        """Restore what was changed, and return whether anything with a tensor was."""
        for set_, generator, state in self._generators:
            set_(generator, state)
        if any(version(tensor) != before for tensor, before in self._large):
            warn(
                f"the model wrote into a tensor of more than {LARGE // 2**20} MiB that is not a buffer, and layerlens "
                "does not copy such tensors: it is not as it was. Register it as a buffer, which is restored."
            )
        written = [one for one in self.tensors if one.written()]
        arrays = [(array, bits) for array, bits in self._arrays if array.tobytes() != bits.tobytes()]
        if not (written or arrays or any(holder.changed() for holder in self.holders)):
            return False
        for one in written:
            one.restore()
        for array, bits in arrays:
            array[...] = bits
        for holder in self.holders:
            holder.restore()
        return True


@dataclasses.dataclass(slots=True)
class _Holder:
    """A container or an object, with what it holds; read and set without methods of its own class."""

    of_what: Any
    items: Any = None
    attributes: dict[str, Any] | None = None
    slots: dict[str, Any] | None = None

    @classmethod
    def of(cls, one: object) -> _Holder | None:
        """Return what an object holds; None if it is not looked into."""
        if one.__class__ in _CONTAINERS:
            return cls(one, _items(one))
        if isinstance(one, CONSTANT):
            return None
        items = _items(one)
        package = type(one).__module__
        if items is None and package.partition(".")[0] in _FOREIGN and not package.startswith("torch.distributions"):
            return None
        own = _dict_of(one)
        slots = _slots(one)
        if items is None and own is None and not slots:
            return None
        return cls(one, items, None if own is None else own.copy(), slots or None)

    def parts(self) -> list[Any]:
        """Return what may hold tensors."""
        found: list[Any] = []
        for part in (self.items, self.attributes, self.slots):
            if part:
                values = part.values() if isinstance(part, dict) else part
                found += [value for value in values if value.__class__ not in _PLAIN]
        return found

    def changed(self) -> bool:
        """Return whether a tensor was added, replaced or removed, also inside of what was."""
        now = self.of_what
        pairs = [(_items(now), self.items)]
        if now.__class__ not in _CONTAINERS:
            pairs += [(_dict_of(now), self.attributes), (_slots(now), self.slots)]
        return any(_has_tensor(one) for pair in pairs for one in _differing(*pair))

    def restore(self) -> None:
        """Let it hold what it held."""
        one: Any = self.of_what
        if self.items is not None and not isinstance(one, tuple) and _differing(_items(one), self.items):
            _fill(one, self.items)
        if self.attributes is not None and _differing(_dict_of(one), self.attributes):
            own = object.__getattribute__(one, "__dict__")
            own.clear()
            own.update(self.attributes)
        for name, value in (self.slots or {}).items():
            object.__setattr__(one, name, value)


def _items(one: object) -> Any:
    """A copy of the items of a container; None for another object."""
    if one.__class__ is list or one.__class__ is tuple:
        return [*one]
    if isinstance(one, dict):
        return dict(dict.items(one))
    if isinstance(one, (list, tuple, deque, set)):
        base = next(kind for kind in (list, tuple, deque, set) if isinstance(one, kind))
        return list(base.__iter__(one))  # type: ignore[arg-type]
    return None


def _fill(one: Any, items: Any) -> None:
    if isinstance(one, dict):
        base = OrderedDict if isinstance(one, OrderedDict) else dict
        base.clear(one)
        for key, value in items.items():
            base.__setitem__(one, key, value)
    elif isinstance(one, list):
        list.__setitem__(one, slice(None), items)
    elif isinstance(one, deque):
        deque.clear(one)
        deque.extend(one, items)
    else:
        set.clear(one)
        set.update(one, items)


def _dict_of(one: object) -> dict[str, Any] | None:
    try:
        own = object.__getattribute__(one, "__dict__")
    except AttributeError:
        return None
    return own if type(own) is dict else None


def _slots(one: object) -> dict[str, Any]:
    found = {}
    for kind in type(one).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                try:
                    found[name] = object.__getattribute__(one, name)
                except AttributeError:
                    continue
    return found


def _differing(now: Any, before: Any) -> list[Any]:
    """What is in one of two copies and not in the other, by identity and place."""
    if not now and not before:
        return []
    if isinstance(now or before, dict):
        now, before = now or {}, before or {}
        if _same(now.values(), before.values()) and _same(now, before):
            return []
        keys = [*now, *(key for key in before if key not in now)]
        pairs = [(now.get(key, _NOTHING), before.get(key, _NOTHING)) for key in keys]
        return [one for pair in pairs if pair[0] is not pair[1] for one in pair] or [*now.values()]
    now, before = now or [], before or []
    if _same(now, before):
        return []
    shared = min(len(now), len(before))
    pairs = [pair for pair in zip(now, before, strict=False) if pair[0] is not pair[1]]
    return [*(one for pair in pairs for one in pair), *now[shared:], *before[shared:]]


def _same(now: Collection[Any], before: Collection[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _has_tensor(value: object) -> bool:
    """Whether a value is a tensor or holds one, or an array."""
    if value.__class__ in _PLAIN or value is _NOTHING:
        return False
    waiting, seen = [value], set[int]()
    while waiting and len(seen) < MOST:
        one = waiting.pop()
        if isinstance(one, (torch.Tensor, np.ndarray)):
            return True
        if id(one) in seen:
            continue
        seen.add(id(one))
        holder = _Holder.of(one)
        if holder is not None:
            waiting += holder.parts()
    return False
