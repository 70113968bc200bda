"""The source text of a function, as it runs now: the same in every process and every version of Python."""

from __future__ import annotations

import ast
import dis
import functools
import importlib.machinery
import importlib.metadata
import io
import linecache
import sys
import sysconfig
import textwrap
import tokenize
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from layerlens.errors import StoreError

Name = TypeVar("Name")
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
OWN = str(Path(__file__).parents[2])
STDLIB = tuple({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
INSTALLED = ("site-packages", "dist-packages")
"""Folders of installed packages."""


class Text:
    """The text of a function, and what is named in it.

    Attributes:
        text: lines from its first decorator on, without indentation and comments.
        names: names that are read in it.
        chains: dotted names, such as `("config", "scale")`.
        whole: names that are used without a dot.
        attributes: names of attributes, and strings that could be one, as in `getattr(self, "scale")`.
        imports: name -> `(level, module, attribute)` of what it imports itself; the attribute is empty for a module.
    """

    def __init__(self, text: str, node: Function) -> None:
        self.text = text
        body = [node.body] if isinstance(node, ast.Lambda) else [*node.decorator_list, *node.body]
        inner = [one for part in body for one in ast.walk(part)]
        self.names = _distinct(one.id for one in inner if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load))
        self.chains = _distinct(filter(None, (_chain(one) for one in inner)))
        bases = {id(one.value) for one in inner if isinstance(one, ast.Attribute)}
        self.whole = {one.id for one in inner if isinstance(one, ast.Name) and id(one) not in bases}
        self.attributes = _distinct(one.attr for one in inner if isinstance(one, ast.Attribute))
        strings = (one.value for one in inner if isinstance(one, ast.Constant) and isinstance(one.value, str))
        self.attributes |= _distinct(string for string in strings if string.isidentifier())
        self.imports: dict[str, tuple[int, str, str]] = {}
        for one in inner:
            for alias in one.names if isinstance(one, (ast.Import, ast.ImportFrom)) else ():
                if isinstance(one, ast.ImportFrom):
                    self.imports[alias.asname or alias.name] = one.level, one.module or "", alias.name
                else:
                    whole = alias.name if alias.asname else alias.name.partition(".")[0]
                    self.imports[alias.asname or whole] = 0, whole, ""


def _distinct(found: Iterator[Name]) -> dict[Name, None]:
    return dict.fromkeys(found)


def _chain(node: ast.AST) -> tuple[str, ...]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return (node.id, *reversed(names)) if names and isinstance(node, ast.Name) else ()


_known: dict[types.CodeType, Text] = {}
_ABSENT = "its source is not at hand (made by exec, or typed into a Python without history)"


def text_of(function: types.FunctionType) -> Text:
    """Return the source text of a function.

    Raises:
        StoreError: when there is none, or the file is not the one that was run.
    """
    code = function.__code__
    if code not in _known:
        _known[code] = _read(function)
    return _known[code]


def _read(function: types.FunctionType) -> Text:
    code, file = function.__code__, function.__code__.co_filename
    linecache.checkcache(file)
    lines = linecache.getlines(file, function.__globals__)
    if not lines:
        raise StoreError(_ABSENT)
    try:
        nodes, codes = _index(file, "".join(lines))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise StoreError(f"its source cannot be read ({error})") from error
    key = code.co_name, code.co_firstlineno
    near = [one for one in codes if (one.co_name, one.co_firstlineno) == key]
    found = nodes.get(key, [])
    same = [place for place, one in enumerate(near) if _equal(one, code)]
    if same and len(near) == len(found):
        found = [found[same[0]]]
    elif not found or (not same and _as_written(function)):
        if file.startswith("<"):  # not a file: Python 3.13 keeps the text of `python -c`, named as all code of exec is
            raise StoreError(_ABSENT)
        raise StoreError(f"the text of {file} is no longer the one that runs: it was changed after it was imported")
    text = "\n".join(_cut(lines, node) for node in found)  # several on one line: all of them count
    return Text(text, found[0])


@functools.lru_cache(maxsize=16)
def _index(file: str, text: str) -> tuple[dict[tuple[str, int], list[Function]], list[types.CodeType]]:
    """Return the functions of a file by name and first line, and the code of each, in the same order."""
    tree = ast.parse(text)
    nodes: dict[tuple[str, int], list[Function]] = {}
    for node in _functions(tree):
        decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
        first = min(one.lineno for one in (node, *decorators))
        nodes.setdefault(("<lambda>" if isinstance(node, ast.Lambda) else node.name, first), []).append(node)
    return nodes, list(_codes(compile(tree, file, "exec", dont_inherit=True)))


def _functions(tree: ast.AST) -> Iterator[Function]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield node
        yield from _functions(node)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            yield part
            yield from _codes(part)


def _equal(one: object, other: object) -> bool:
    if isinstance(one, types.CodeType) and isinstance(other, types.CodeType):
        parts = zip(one.co_consts, other.co_consts, strict=False)
        same = (one.co_code, one.co_names, len(one.co_consts)) == (other.co_code, other.co_names, len(other.co_consts))
        return same and all(_equal(a, b) for a, b in parts)
    return one == other if isinstance(one, frozenset) else repr(one) == repr(other)


def _as_written(function: types.FunctionType) -> bool:
    """Return whether the code of a function is made of its text alone, which import hooks may rewrite."""
    loader = function.__globals__.get("__loader__")
    return loader is None or loader is importlib.machinery.BuiltinImporter or type(loader) in (
        importlib.machinery.SourceFileLoader, importlib.machinery.BuiltinImporter)  # fmt: skip


def _cut(lines: list[str], node: Function) -> str:
    """Return the text of a function without indentation and comments."""
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    first, last = min(one.lineno for one in (node, *decorators)), node.end_lineno or node.lineno
    part = [line.rstrip("\r\n") for line in lines[first - 1 : last]]
    if isinstance(node, ast.Lambda):  # offsets count bytes
        part[-1] = part[-1].encode()[: node.end_col_offset].decode()
        part[0] = part[0].encode()[node.col_offset :].decode()
        part = ["(", *part, ")"]
    part = textwrap.dedent("\n".join(part)).split("\n")
    whole: list[int] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO("\n".join(part)).readline):
            if token.type == tokenize.COMMENT:
                row, column = token.start[0] - 1, token.start[1]
                part[row] = part[row][:column].rstrip()
                whole += [] if part[row] else [row]
    except (tokenize.TokenError, SyntaxError):  # comments are kept
        pass
    return "\n".join(line for row, line in enumerate(part) if row not in whole)


@functools.cache
def package_of(file: str, module: str) -> str | None:
    """Return the package whose version stands for a file; "" for Python's own, None for files of the user.

    Args:
        file: its path; empty for code of C.
        module: name of the module in it.
    """
    top = module.partition(".")[0]
    if file.startswith(OWN):
        return "layerlens"
    if any(f"/{folder}/" in file.replace("\\", "/") for folder in INSTALLED):
        return top if version_of(top) else None
    own = file.startswith(STDLIB) or file.startswith("<frozen ")
    if own or (not file and (top in sys.stdlib_module_names or top in sys.builtin_module_names)):
        return ""
    return None


@functools.cache
def version_of(package: str) -> str | None:
    """Return the version of an installed package by the name that it is imported by; None if it has none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        own = getattr(sys.modules.get(package), "__version__", None)
        if isinstance(own, str):
            return own
    names = importlib.metadata.packages_distributions().get(package, ())
    return ", ".join(importlib.metadata.version(name) for name in names) or None


def file_of(module: types.ModuleType) -> str:
    """Return the path of a module; empty for code of C."""
    return getattr(module, "__file__", None) or ""


def package_of_module(name: str | None) -> str | None:
    """Return the package of a module by name, see `package_of`; the file of the package counts for code of C."""
    for known in (name or "", (name or "").partition(".")[0]):
        if file := file_of(sys.modules.get(known, types)) if known in sys.modules else "":
            return package_of(file, name or "")
    return package_of("", name or "")


def package_of_function(function: types.FunctionType) -> str | None:
    """Return the package of a function by its file, see `package_of`."""
    return package_of(function.__code__.co_filename, function.__globals__.get("__name__") or "")


def unwrapped(part: Any) -> list[Any]:
    """Return the functions of a method, a property or a decorated function."""
    if isinstance(part, (staticmethod, classmethod)):
        return [part.__func__]
    if isinstance(part, property):
        return [one for one in (part.fget, part.fset) if one is not None]
    return [part.func] if isinstance(part, functools.cached_property) else [part]


@functools.lru_cache(maxsize=8192)
def names_of(code: types.CodeType, operation: str) -> frozenset[str]:
    """Return the names in an operation of a code, and of the functions in it."""
    found: set[str] = set()
    wanted = dis.opmap.get(operation)
    shift = operation == "LOAD_GLOBAL" and sys.version_info >= (3, 11)
    extended, raw = 0, code.co_code
    for place in range(0, len(raw), 2):
        number = raw[place + 1] | extended
        if raw[place] == wanted:
            found.add(code.co_names[number >> shift])
        extended = number << 8 if raw[place] == dis.EXTENDED_ARG else 0
    return frozenset(found.union(*(names_of(part, operation) for part in code.co_consts
                                   if isinstance(part, types.CodeType))))  # fmt: skip


def has_value(cell: types.CellType) -> bool:
    """Return whether a name of a closure has a value other than None."""
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that has no value yet
        return False
