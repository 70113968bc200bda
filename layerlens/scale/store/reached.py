"""What the numbers of a run depend on besides weights and data: the user's code that is reached, and what it reads."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import inspect
import threading
import types
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from layerlens.errors import StoreError
from layerlens.model.hashing import weights_digest

from .bookkeeping import HOOKS, SPREAD, is_bookkeeping
from .plain_values import added, described_tensor, plain, shortened, structure, text_digest
from .source_text import (
    Text,
    file_of,
    has_value,
    names_of,
    package_of,
    package_of_function,
    package_of_module,
    text_of,
    unwrapped,
    version_of,
)

UNKNOWN = "cannot be fingerprinted: "
DEPTH = 3
"""Levels of nested objects of installed packages that are read."""

WARNED = frozenset(["layerlens", "torch"])
"""Packages whose versions the manifest holds in any case."""
BUILDERS = frozenset(
    "__init__ __new__ __post_init__ __init_subclass__ __set_name__ __class_getitem__ __setstate__".split()
)
"""Methods that make objects and classes."""
QUIET_METHODS = frozenset(
    "__repr__ __str__ __del__ __reduce__ __reduce_ex__ __getstate__ __copy__ __deepcopy__ __dir__ __sizeof__".split()
)
"""Methods that no number depends on."""
OF_EVERY_MODULE = frozenset(nn.Module().__dict__)
DYNAMIC = frozenset(["eval", "exec", "globals", "__import__"])
"""Functions by which a text reaches what it does not name."""
QUIET = (threading.Thread, type(threading.Lock()), type(threading.RLock()), weakref.WeakKeyDictionary,
         weakref.WeakValueDictionary, weakref.WeakSet, torch.utils.hooks.RemovableHandle)  # fmt: skip
"""Objects without numbers."""


class Reached:
    """The functions of the user that are reached from a value, by name, and the values that they read.

    Attributes:
        code: name -> digest of the source text, a value, the version of a package, or why it is not known.
    """

    def __init__(self) -> None:
        self.code: dict[str, str] = {}
        self._seen: dict[int, tuple[Any, object]] = {}
        self._names: dict[str, None] = {}
        self._classes: dict[type, bool] = {}
        self._state: dict[type, set[str]] = {}
        self._depth = 0

    def model(self, model: nn.Module) -> dict[str, dict[str, str]]:
        """Add what the modules of a model run; return digests of the attributes of the modules of each class."""
        self._seen |= {id(module): (f"module {path!r}", module) for path, module in model.named_modules()}
        for kind in dict.fromkeys(type(module) for module in model.modules()):
            self._classes.setdefault(kind, False)
        self.finish()
        found: dict[str, dict[str, list[Any]]] = {}
        for module in model.modules():
            for name, described in self._attributes(module).items():
                of_class = found.setdefault(_name(type(module)), {})
                of_class.setdefault(name, []).append([self._seen[id(module)][0], described])
        self.finish()
        return {kind: {name: text_digest(str(one)) for name, one in parts.items()} for kind, parts in found.items()}

    def _attributes(self, module: nn.Module) -> dict[str, Any]:
        """Describe the attributes of a module that its forward pass does not set itself."""
        if all(base.__module__.startswith(SPREAD) for base in type(module).__mro__[:-1] if base is not nn.Module):
            return {}
        state: Any = module.__dict__
        if type(module).__getstate__ is not getattr(object, "__getstate__", None):
            state = module.__getstate__()  # type: ignore[no-untyped-call]
        kept = module.__dict__ if not isinstance(state, dict) else state
        set_in_run = self._set_in_run(type(module))
        names = [name for name in kept if name not in OF_EVERY_MODULE and name not in set_in_run]
        found = {name: self.value(kept[name]) for name in names if not is_bookkeeping(name, kept[name])}
        for name in HOOKS:
            if hooks := [hook for hook in getattr(module, name, {}).values() if not is_bookkeeping("_", hook)]:
                found[name] = [self.value(hook) for hook in hooks]
        return found

    def value(self, value: Any) -> Any:
        """Describe a value as JSON, the same in every process, and add the code that it may run."""
        if value is None or isinstance(value, (bool, int, float, str, bytes, complex)):
            return plain(value)
        if isinstance(value, (torch.dtype, torch.Size, torch.memory_format, torch.layout, slice, range, Path)):
            return str(value)
        if isinstance(value, torch.device):
            return "device"  # where it runs does not change what it computes
        if id(value) not in self._seen:
            self._seen[id(value)] = f"within {_name(type(value))}", value  # until it is described
            try:
                described = self._described(value)
            except RecursionError:
                described = self._unknown(_name(type(value)), "it is nested too deeply")
            self._seen[id(value)] = shortened(described), value
        return self._seen[id(value)][0]

    def _described(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return f"{_name(type(value))}.{value.name} = {self.value(value.value)}"
        if isinstance(value, np.generic):
            return self.value(value.item())
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value)) if value.dtype.kind in "fiub" else value.tolist()
        if isinstance(value, torch.Tensor):
            return described_tensor(value)
        if isinstance(value, QUIET):
            return _name(type(value))
        if isinstance(value, weakref.ReferenceType):
            return self.value(value())
        if isinstance(value, nn.Module):
            own = Reached()
            attributes = own.model(value)
            for name, text in own.code.items():
                self._put(name, text)
            return [structure(value), weights_digest(value), attributes]
        if isinstance(value, functools.partial):
            return ["partial", self.value(value.func), self.value(value.args), self.value(value.keywords)]
        if isinstance(value, types.MethodType):
            return ["method", self.value(value.__func__), self.value(value.__self__)]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, (staticmethod, classmethod, property, functools.cached_property)):
            return [self.value(part) for part in unwrapped(value)]
        if isinstance(value, torch.jit.ScriptFunction):
            return text_digest(str(value.code))
        if isinstance(value, (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType,
                              types.MethodDescriptorType, np.ufunc)):  # fmt: skip
            return self._of_c(value)
        if isinstance(value, type):
            self._classes[value] = True
            return _name(value)
        if isinstance(value, types.ModuleType):
            return self._module(value)
        if "__wrapped__" in getattr(value, "__dict__", ()):  # a cached function, for example
            return self.value(value.__wrapped__)
        return self._object(value)

    def _object(self, value: Any) -> Any:
        kind, name = type(value), _name(type(value))
        if isinstance(value, (Mapping, list, tuple, set, frozenset)) and not hasattr(value, "__dict__"):
            return self._container(value)
        package = package_of_module(kind.__module__)
        if package is None:
            self._classes.setdefault(kind, False)
        elif self._depth >= DEPTH:
            return name
        self._depth += package is not None
        try:
            state = value.__reduce_ex__(2)
        except Exception as error:
            if not hasattr(value, "__dict__") and package != "torch":
                return self._unknown(name, f"an object that cannot be pickled ({error})") if not package else name
            state = getattr(value, "__dict__", None)
        try:
            if isinstance(state, tuple):
                made = [self.value(part) for part in state[1][kind is state[1][0] :]] if state[1] else []
                contents = [list(part) for part in state[3:5] if part is not None]
                inner = self.value(state[2] if len(state) > 2 else None)
                return {name: [made, inner, self.value(contents)] if made or contents else inner}
            return {name: self.value(state)} if state else name
        finally:
            self._depth -= package is not None

    def _container(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(plain(key) if isinstance(key, (str, int)) else self.value(key)): self.value(part)
                    for key, part in value.items()}  # fmt: skip
        found = [self.value(part) for part in value]
        return sorted(map(str, found)) if isinstance(value, (set, frozenset)) else found

    def _function(self, function: types.FunctionType) -> str:
        name = f"{function.__module__}.{function.__qualname__}" if function.__module__ else function.__qualname__
        package = package_of_function(function)
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        held = [(cell, one.cell_contents) for cell, one in cells if cell != "__class__" and has_value(one)]
        held += list(vars(function).items())
        if package is not None:  # a wrapper may hold a function of the user
            self._note_package(package)
            self._depth += 1
            if self._depth <= DEPTH:
                found = [self.value(part) for _, part in held if part is not function]
                name = f"{name} {text_digest(str(found))}" if found else name
            self._depth -= 1
            return name
        try:
            text = text_of(function)
        except StoreError as error:
            return self._unknown(name, str(error))
        held += [("defaults", function.__defaults__ or ()), ("defaults", function.__kwdefaults__ or ())]
        kept = [f"{part}={self.value(value)}" for part, value in held if value != ()]
        self._put(name, text_digest(text.text + "\n".join(kept)))
        if dynamic := DYNAMIC & text.names.keys() - function.__globals__.keys():
            self._unknown(name, f"it uses {', '.join(sorted(dynamic))}, which reach what its text does not name")
        self._names |= text.attributes
        self._globals(function, text)
        return name

    def _globals(self, function: types.FunctionType, text: Text) -> None:
        """Add the global values that a function reads."""
        known = names_of(function.__code__, "LOAD_GLOBAL") | names_of(function.__code__, "LOAD_NAME")
        known = known - names_of(function.__code__, "STORE_GLOBAL") | text.imports.keys()
        local = {name: self._imported(function, *what) for name, what in text.imports.items()}
        dotted: dict[str, list[tuple[str, ...]]] = {}
        for chain in text.chains:
            dotted.setdefault(chain[0], []).append(chain[1:])
        for name in text.names:
            found = local.get(name, function.__globals__.get(name, _MISSING)) if name in known else _MISSING
            chains = dotted.get(name, []) if isinstance(found, types.ModuleType) else []
            for chain in chains + ([()] if name in text.whole or not chains else []):
                self._named(name if name in local else f"{function.__globals__.get('__name__')}.{name}", found, chain)

    def _named(self, name: str, value: Any, chain: tuple[str, ...]) -> None:
        """Add the value of a dotted name; of what packages hold, the functions that the user put there."""
        package: str | None = None
        for attribute in chain:
            if isinstance(value, types.ModuleType):
                package = package_of(file_of(value), value.__name__)
                name, value = f"{value.__name__}.{attribute}", getattr(value, attribute, _MISSING)
        if package is not None:
            self._note_package(package)
            if not isinstance(value, (types.FunctionType, types.MethodType, type)):
                return
        if value is _MISSING:
            return
        described = str(shortened(self.value(value)))
        if not callable(value) and not isinstance(value, types.ModuleType):
            self._put(name, described)

    def _imported(self, function: types.FunctionType, level: int, module: str, attribute: str) -> Any:
        """Return what an import in a function names; it would be imported by the run in any case."""
        try:
            found = importlib.import_module("." * level + module, function.__globals__.get("__package__"))
            return getattr(found, attribute) if hasattr(found, attribute) else (
                importlib.import_module(f"{found.__name__}.{attribute}") if attribute else found)  # fmt: skip
        except Exception:  # whatever the module raises: the function would end as well
            return _MISSING

    def finish(self) -> None:
        """Add the methods of the classes that are reached, by the names in the text of what is reached, to the end."""
        done: set[tuple[type, str]] = set()
        methods: dict[type, list[tuple[str, Any, bool]]] = {}
        before = -1
        while before != (before := len(done) + len(self._classes) + sum(self._classes.values()) + len(self._names)):
            for kind, whole in list(self._classes.items()):
                for base in kind.__mro__[:-1]:
                    if base not in methods:
                        methods[base] = list(self._members(base))
                    for name, part, run in methods[base]:
                        if (base, name) not in done and (
                            run or name in self._names or (whole and (name[:1] != "_" or name in BUILDERS))
                        ):
                            done.add((base, name))
                            self._member(base, name, part)

    def _members(self, kind: type) -> Iterator[tuple[str, Any, bool]]:
        """List what the user defines in a class, also in one of a package, and whether it runs in any case.

        Yields:
            Name, value, and whether it is `forward` or a method with two underscores.
        """
        package = package_of_module(kind.__module__)
        if package is not None:
            self._note_package(package)
        generated = dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))
        for name, part in vars(kind).items():
            if name in QUIET_METHODS:
                continue
            functions = [one for one in unwrapped(part) if isinstance(one, types.FunctionType)]
            made = any(one.__code__.co_filename[:1] == "<" for one in functions) and name != "forward"
            if functions and not (made and (generated or package is not None)):
                if package is None or any(package_of_function(one) is None for one in functions):
                    yield name, part, _runs(name)
            elif not functions and package is None and name[:2] != "__" and not inspect.isdatadescriptor(part):
                yield name, part, False

    def _member(self, kind: type, name: str, part: Any) -> None:
        functions = unwrapped(part)
        if any(isinstance(one, types.FunctionType) for one in functions):
            for one in functions:
                self.value(one)
            return
        described = str(shortened(self.value(part)))
        if not callable(part):
            self._put(f"{_name(kind)}.{name}", described)

    def _module(self, module: types.ModuleType) -> str:
        """Add a module of the user that is passed on as a whole: its text."""
        package = package_of(file_of(module), module.__name__)
        if package is not None:
            self._note_package(package)
        else:
            try:
                self._put(module.__name__, text_digest(Path(file_of(module)).read_text(encoding="utf-8")))
            except (OSError, ValueError) as error:
                self._unknown(module.__name__, f"its text cannot be read ({error})")
        return module.__name__

    def _of_c(self, value: Any) -> Any:
        """Describe a function of C by its name, and the object that it belongs to."""
        name = getattr(value, "__qualname__", getattr(value, "__name__", str(value)))
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, (types.ModuleType, type)):
            return [name, self.value(owner)]
        of = value.__objclass__ if hasattr(value, "__objclass__") else owner if isinstance(owner, type) else None
        module = of.__module__ if of is not None else getattr(value, "__module__", None) or "builtins"
        package = "numpy" if isinstance(value, np.ufunc) else package_of_module(module)
        if package is None and of is None:
            return self._unknown(f"{module}.{name}", "a function of C, which has no source text")
        self._note_package(package or "")
        return f"{module}.{name}"

    def _set_in_run(self, kind: type) -> set[str]:
        """Return the attributes that a class sets while its modules run: the state of a run, not an option."""
        if kind not in self._state:
            functions: dict[str, list[types.CodeType]] = {}
            for base in kind.__mro__:
                for name, part in vars(base).items() if base not in (nn.Module, object) else ():
                    codes = [one.__code__ for one in unwrapped(part)[:1] if isinstance(one, types.FunctionType)]
                    functions.setdefault(name, []).extend(codes)
            left = [name for name in functions if _runs(name) or name in self._names]
            found: set[str] = set()
            while left:
                for code in functions.pop(left.pop(), ()):
                    found |= names_of(code, "STORE_ATTR")
                    left += [one for one in code.co_names if one in functions]
            self._state[kind] = found
        return self._state[kind]

    def _note_package(self, package: str) -> None:
        if package and package not in WARNED:
            self.code[f"package {package}"] = version_of(package) or "unknown version"

    def _unknown(self, name: str, why: str) -> str:
        self._put(name, UNKNOWN + why)
        return name

    def _put(self, name: str, text: str) -> None:
        self.code |= added(self.code, name, text)


_MISSING: Any = object()


def _runs(name: str) -> bool:
    """Return whether a method runs without being named: `forward`, and `__call__`, `__add__`, ..."""
    return name == "forward" or (name[:2] == name[-2:] == "__" and name not in BUILDERS)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
