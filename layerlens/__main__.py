"""The command line: `python -m layerlens demo`, `report` and `explore`."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .errors import InputError, LayerLensError, OptionError, suggestion
from .files import same_file

OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 wrong use, 130 canceled.

    Args:
        argv: arguments; None for those of the process.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = parser().parse_args(given)
    arguments.given = given
    try:
        return int(arguments.run(arguments))
    except LayerLensError as error:
        print(f"layerlens: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("layerlens: canceled; nothing was written.", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; `arguments.run(arguments)` runs the chosen one."""
    top = argparse.ArgumentParser(prog="layerlens", description="Look inside any PyTorch model.")
    top.add_argument("--version", action="version", version=f"layerlens {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    _demo_options(commands)
    _report_options(commands)
    _explore_options(commands)
    return top


def _demo_options(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="figures and a page from a real model",
        description="Run every analyzer on a real model and write figures (PNG, PDF) and one page, index.html.",
    )
    demo.add_argument("--out", type=Path, default=Path("gallery"), help="folder for the results (default: gallery)")
    demo.add_argument(
        "--model",
        choices=("auto", "efficientnet", "embedded"),
        default="auto",
        help="EfficientNet-Lite0 (needs the demo extra) or the small model of the package; auto: the first there is",
    )
    demo.add_argument("--image", type=Path, action="append", help="a picture of your own; can be given several times")
    demo.add_argument("--target", help="class to explain, a name or an index (default: the predicted class)")
    demo.set_defaults(run=_demo)


def _report_options(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="one HTML page on a model of yours",
        description="Look into a model of yours and write one self-contained HTML page: what was run, checks, "
        "relevance and saliency of each input, profiles by layer.",
    )
    _subject_options(report, "report.html", "one for all or one per sample")
    add = report.add_argument
    add("--method", nargs="+", help="saliency methods shown next to relevance (default: auto integrated_gradients)")
    add("--no-controls", action="store_true", help="leave out the comparison with controls, the slowest part")
    report.set_defaults(run=_report)


def _explore_options(commands: Any) -> None:
    explore = commands.add_parser(
        "explore",
        help="one HTML page to look around in a model of yours with the mouse",
        description="Look into a model of yours and write one self-contained HTML page: layers, units, tokens, heads "
        "and the ledger of each input, to be opened with mouse or keyboard.",
    )
    _subject_options(explore, "explorer.html", "each for all samples")
    add = explore.add_argument
    add("--method", nargs="+", help="saliency methods to compare relevance with (default: gradient)")
    add("--units", type=int, default=12, help="units of a layer whose maps are shown (default: 12)")
    explore.set_defaults(run=_explore)


def _subject_options(parser: argparse.ArgumentParser, out: str, targets: str) -> None:
    """Add the options that say what is looked at: model, inputs, targets, and where the page goes."""
    add = parser.add_argument
    add("--model", required=True, metavar="MODULE:FACTORY", help="a function that returns the model, or the model")
    add("--input", required=True, type=Path, nargs="+", metavar="FILE",
        help="pictures (.png .jpg), arrays (.npy .npz .safetensors; each file a batch, several arrays in one are "
        "keyword arguments), or texts (.txt)")  # fmt: skip
    add("--out", type=Path, default=Path(out), help=f"the page (default: {out})")
    add("--target", nargs="+",
        help=f"what to explain, {targets}: a class name or index, a place (=-1,5), the next "
        "token of a text, or module:function of the output (default: the predicted class)")  # fmt: skip
    add("--class-names", type=Path, metavar="FILE", help="names of the classes, one per line")
    add("--layers", nargs="+", help="layers by path or glob (default: the blocks)")
    add("--tokenizer", metavar="MODULE:FACTORY", help="for texts: a function that returns the tokenizer")
    add("--size", type=int, nargs="+", metavar="PIXELS", help="size of pictures: one number, or height and width")
    add(
        "--mean",
        type=float,
        nargs="+",
        default=[0.0],
        help="mean brightness of pictures, 0..1: one number, or one per channel",
    )
    add("--std", type=float, nargs="+", default=[1.0], help="standard deviation of their brightness, in the same form")
    add("--channels", type=int, choices=(1, 3), default=3, help="channels of pictures (default: 3)")
    add("--single", action="store_true", help="array files have one sample each, without the batch axis")
    add("--title", help="title of the page")


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import gallery
    from .demo.demo_subject import subject
    from .inputs.images import read_picture

    gallery.check_folder(arguments.out)
    chosen = subject(arguments.model)
    pictures = chosen.pictures
    if arguments.image:
        pictures = {}
        for path in arguments.image:
            if path.resolve().parent == arguments.out.resolve():
                raise OptionError(f"the picture {path} is in the folder of --out, where it could be replaced; give "
                                  "another folder, --out gallery.")  # fmt: skip
            title = path.name if path.name not in pictures else str(path)
            pictures[title] = chosen.preprocess(read_picture(path))
    target = arguments.target
    if target is not None and target not in chosen.class_names and target.lstrip("-").isdigit():
        target = int(target)
    print(f"layerlens: {chosen.name} on {len(pictures)} picture(s) ...", file=sys.stderr, flush=True)
    report = gallery.make(chosen, pictures, target, command=_command_line(arguments))
    files = gallery.write(report, arguments.out)
    print(gallery.summary(report))
    print(f"\n{len(files)} files in {arguments.out}; open {files[0]}")
    return 0


def _report(arguments: argparse.Namespace) -> int:
    from .report import build, write
    from .report.page import check_place

    check_place(arguments.out)
    lens, inputs, labels, targets = _subject(arguments)
    options = {"methods": arguments.method} if arguments.method else {}
    found = build(
        lens, inputs, targets[0] if len(targets) == 1 else targets or None, path=arguments.out, labels=labels,
        layers=arguments.layers, title=arguments.title, controls=not arguments.no_controls,
        recipe=lambda samples: _command_line(arguments), **options,
    )  # fmt: skip
    path = write(found, arguments.out)
    more = f", {len(found.warnings)} warning(s)" if found.warnings else ""
    print(f"{path}: {len(found.panels)} sample(s); checks: {found.tally}{more}")
    for finding in found.findings:
        print(f"  {finding}")
    return 0


def _explore(arguments: argparse.Namespace) -> int:
    from .report.page import check_file

    check_file(arguments.out)
    lens, inputs, labels, targets = _subject(arguments)
    options = {"methods": arguments.method} if arguments.method else {}
    found = lens.explore(
        inputs, targets=targets or None, layers=arguments.layers, labels=labels, title=arguments.title,
        units=arguments.units, **options,
    )  # fmt: skip
    path = found.save(arguments.out)
    size = path.stat().st_size / 2**20
    print(f"{path}: {size:.1f} MiB; {', '.join(found.views)}; {len(found.warnings)} warning(s)")
    return 0


def _subject(arguments: argparse.Namespace) -> tuple[Any, list[Any], list[str], list[Any]]:
    """Return the lens, the inputs, their labels, and the targets of a command.

    Raises:
        OptionError: when the page would replace one of its inputs.
    """
    from torch import nn

    from .lens import Lens
    from .report.files import Preparation, read_inputs

    for path in (*arguments.input, arguments.class_names):
        if path is not None and same_file(path, arguments.out):
            raise OptionError(
                f"--out {arguments.out} is an input, which it would replace; give another, such as --out page.html."
            )
    names = None if arguments.class_names is None else _lines(arguments.class_names)
    prepare = Preparation(_size(arguments.size), arguments.mean, arguments.std, arguments.channels)
    prepare.check()
    tokenizer = None if arguments.tokenizer is None else create(arguments.tokenizer, "the tokenizer")
    inputs, labels = read_inputs(arguments.input, prepare, tokenizer, single=arguments.single)
    model = create(arguments.model, "the model", nn.Module)
    lens = Lens(model, class_names=names, tokenizer=tokenizer)
    return lens, inputs, labels, [parse_target(text, names, tokenizer is not None) for text in arguments.target or ()]


def _command_line(arguments: argparse.Namespace) -> str:
    return shlex.join(["python", "-m", "layerlens", *arguments.given])


def parse_target(text: str, names: list[str] | None, tokens: bool) -> Any:
    """Return a target from its text on the command line: a name, an index, a place, or `module:function`.

    Example:
        >>> parse_target("cat", ["cat"], False), parse_target("3", ["cat"], False), parse_target("-1,5", None, False)
        ('cat', 3, (-1, 5))
    """
    if names is not None and text in names:
        return text
    if OBJECT.fullmatch(text):
        return import_object(text, "the target")
    if tokens and names is None:
        return text
    if re.fullmatch(r"-?\d+(,-?\d+)*", text):
        parts = tuple(int(part) for part in text.split(","))
        return parts[0] if len(parts) == 1 else parts
    return text


def import_object(where: str, what: str) -> Any:
    """Import what `module:name` names, also from a module in the working folder.

    Raises:
        InputError: when there is no such module or name, or it cannot be imported.
    """
    if not OBJECT.fullmatch(where):
        raise InputError(f"{what} is given as module:name, for example mymodels:resnet; got {where!r}.")
    module_name, _, name = where.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise InputError(f"{what}: there is no module {module_name!r} here or among the installed ones.") from None
        raise InputError(f"{what}: {module_name!r} needs the module {error.name!r}, which is not installed.") from error
    except Exception as error:
        raise InputError(f"{what}: importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{what}: {module_name!r} has no {name!r}.{suggestion(part, dir(found))}")
        found = getattr(found, part)
    return found


def create(where: str, what: str, kind: type[Any] | None = None) -> Any:
    """Call the function `module:factory` and return its result; if the name is a value of that `kind`, return that.

    Raises:
        InputError: when it cannot be found or called, or returns something else.
    """
    found = import_object(where, what)
    if kind is not None and isinstance(found, kind):
        return found
    if not callable(found):
        raise InputError(f"{what}: {where!r} is a {type(found).__name__}; give a function that returns {what}.")
    factory: Callable[[], Any] = found
    try:
        value = factory()
    except Exception as error:
        raise InputError(f"{what}: {where}() failed: {type(error).__name__}: {error}") from error
    if kind is not None and not isinstance(value, kind):
        raise InputError(f"{what}: {where}() returned a {type(value).__name__}, not a {kind.__name__}.")
    return value


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the class names in {str(path)!r} cannot be read ({error}).") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise InputError(f"{str(path)!r} has no class names; give one per line.")
    return [line.strip() for line in lines]


def _size(given: list[int] | None) -> tuple[int, int] | None:
    if given is None:
        return None
    if len(given) > 2:
        raise OptionError(f"--size takes one number, or height and width; got {len(given)} numbers.")
    return given[0], given[-1]


if __name__ == "__main__":
    sys.exit(main())
