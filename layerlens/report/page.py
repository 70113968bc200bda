"""The page of a report: one HTML file without scripts and without anything from outside."""

from __future__ import annotations

import base64
import os
import struct
from pathlib import Path
from typing import Any

from layerlens.errors import ResultFileError, need
from layerlens.files import no_place, whole, with_ending

from .content import Note, Picture, Report, Strip

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
SHARE = 0.71
"""Pixels of the page per pixel of a picture; the same for all, so that text has one size."""


def check_place(path: str | os.PathLike[str]) -> None:
    """Check, before the work, that a page can be written to `path`.

    Raises:
        ResultFileError: when it cannot.
        MissingPackage: when jinja2 is not installed.
    """
    check_file(path)
    need("jinja2", "a report", "report")


def check_file(path: str | os.PathLike[str]) -> None:
    """Check that an HTML file can be written to `path`.

    Raises:
        ResultFileError: when it cannot.
    """
    place = Path(path)
    if place.suffix.lower() != ".htm" and not os.path.isdir(place):
        with_ending(place, ".html", "a page", "; a browser prints it to a PDF")
    if why := no_place(place):
        raise ResultFileError(f"cannot write a page to {place}: {why}")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise ResultFileError(f"cannot write a page to {place}: no permission in {place.parent}.")


def write(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write the page of a report, whole or not at all.

    Raises:
        ResultFileError: when the file cannot be written there.
        MissingPackage: when jinja2 is not installed.
    """
    check_place(path)
    content = render("report.html", report=report).encode()
    with whole(Path(path)) as file:
        file.write(content)
    return Path(path)


def render(template: str, **values: Any) -> str:
    """Return a page from a template; every value is escaped, and a missing one is an error.

    Raises:
        MissingPackage: when jinja2 is not installed.
    """
    jinja2 = need("jinja2", "a report", "report")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tests = {"picture": Picture, "strip": Strip, "note": Note}
    environment.tests.update({name: lambda block, kind=kind: isinstance(block, kind) for name, kind in tests.items()})
    environment.filters["image"] = image
    text: str = environment.get_template(template).render(policy=POLICY, **values)
    return text


def image(png: bytes) -> dict[str, Any]:
    """Return a PNG as attributes of an `img`: source, size, and width on the page in pixels."""
    width, height = struct.unpack(">II", png[16:24])
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return {"src": source, "width": width, "height": height, "shown": round(SHARE * width)}
