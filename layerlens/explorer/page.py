"""The page of an explorer: one HTML file with its script and style, which a content policy names by their hashes."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import string
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from layerlens.files import whole

FRAME = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,'DejaVu Sans',sans-serif;margin:1rem;"
    "color:CanvasText;background:Canvas}img{max-width:100%;height:auto}table{border-collapse:collapse}"
    "th,td{padding:.2rem .8rem .2rem 0;vertical-align:top}"
)
"""Style of the frame of a result."""


def render(title: str, content: dict[str, Any], numbers: Any) -> str:
    """Return the page.

    Args:
        title: title of the page.
        content: what is shown, which becomes JSON.
        numbers: all numbers, float32.
    """
    style, script = map(template, ("explorer.css", "explorer.js"))
    inner = [text for one in content["results"] for text in re.findall(r"<style[^>]*>(.*?)</style>", one["html"], re.S)]
    styles = " ".join(dict.fromkeys(map(_hash, [style, *inner])))
    policy = (
        f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {styles}; "
        f"style-src-elem {styles}; style-src-attr 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    )
    data = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    packed = base64.b64encode(np.asarray(numbers, dtype="<f4").tobytes()).decode()
    return string.Template(template("explorer.html")).substitute(
        title=escape(title), policy=escape(policy), style=style, script=script, data=data, numbers=packed
    )


def write(text: str, path: str | os.PathLike[str]) -> Path:
    """Write a page, whole or not at all."""
    with whole(Path(path)) as file:
        file.write(text.encode())
    return Path(path)


def framed(html: str) -> str:
    """Return the HTML of a result as a document of its own."""
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><style>{FRAME}</style><body>{html}</body></html>'


def template(name: str) -> str:
    """Return a file of the front end."""
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def png(content: bytes) -> str:
    """Return a PNG as the source of an `img`."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
