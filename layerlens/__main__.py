"""The command line: `python -m layerlens demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .errors import LayerLensError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 wrong use, 130 cancelled.

    Args:
        argv: the arguments; None takes those of the process.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _demo(arguments)
    except LayerLensError as error:
        print(f"layerlens: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("layerlens: cancelled; nothing was written.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="layerlens", description="Look inside any PyTorch model.")
    parser.add_argument("--version", action="version", version=f"layerlens {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
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
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    from .demo import gallery
    from .demo.subject import read_picture, subject

    gallery.check_folder(arguments.out)
    chosen = subject(arguments.model)
    pictures = chosen.pictures
    if arguments.image:
        pictures = {}
        for path in arguments.image:
            title = path.name if path.name not in pictures else str(path)
            pictures[title] = chosen.preprocess(read_picture(path))
    target = arguments.target
    if target is not None and target not in chosen.class_names and target.lstrip("-").isdigit():
        target = int(target)
    made = gallery.make(chosen, pictures, target)
    files = gallery.write(made, arguments.out)
    print(gallery.summary(made))
    print(f"\n{len(files)} files in {arguments.out}; open {files[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
