"""Build the documentation site: `python docs/site/build.py [--execute] [--out build/docs]`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import explorers  # noqa: E402
import stage  # noqa: E402


def build(out: Path, *, execute: bool, only_changed: bool = True) -> int:
    """Collect the pages and turn them into HTML; warnings are errors.

    Args:
        out: the folder of the site; sources and caches are next to it.
        execute: run the notebooks whose text has changed since their last run.
        only_changed: skip pages that are up to date.

    Returns:
        The exit code of Sphinx: 0 if there was no warning.
    """
    from sphinx.cmd.build import build_main

    source, cache = (out.with_name(f"{out.name}-{name}") for name in ("source", "cache"))
    stage.stage(source)
    os.environ["LAYERLENS_NOTEBOOKS"] = "cache" if execute else "off"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(stage.ROOT), os.environ.get("PYTHONPATH")]))
    options = ["-q", "-W", "--keep-going", "-b", "html", "-c", str(HERE), "-d", str(cache)]
    options += [] if only_changed else ["-E"]
    code = int(build_main([*options, f"-Dnb_execution_cache_path={cache / 'notebooks'}", str(source), str(out)]))
    if code == 0:
        explorers.write(out / "explorers")
    return code


def main() -> int:
    """Read the command line, build the site, and print where its front page is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--execute", action="store_true", help="run the notebooks, so that their pages have outputs")
    parser.add_argument("--out", type=Path, default=stage.ROOT / "build" / "docs", help="the folder of the site")
    given = parser.parse_args()
    code = build(given.out.resolve(), execute=given.execute)
    if code == 0:
        print(f"open {given.out / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
