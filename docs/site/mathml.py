"""Equations as MathML, which browsers draw without a script or a font from outside."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging

PRIME = re.compile(r"<msup>(<m[in]>[^<]*</m[in]>)<mi>&#x02032;</mi></msup>")
"""A prime as latex2mathml writes it: as a superscript, although the character is already raised."""

logger = logging.getLogger(__name__)


def mathml(tex: str, *, display: str) -> str:
    """Return the MathML of an equation.

    Raises:
        ValueError: if a command is unknown; latex2mathml would show its name in the equation.
    """
    made = convert(tex, display=display)
    if "\\" in made:
        unknown = made[made.index("\\") :].partition("<")[0]
        raise ValueError(f"{unknown!r} is not known to latex2mathml")
    return PRIME.sub(r'<mrow>\1<mo lspace="0" rspace="0">&#x02032;</mo></mrow>', made)


def inline(self: Any, node: nodes.math) -> None:
    """Write an inline equation."""
    _write(self, node, "inline", "span")
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """Write a displayed equation."""
    _write(self, node, "block", "div")
    raise nodes.SkipNode


def _write(translator: Any, node: nodes.Element, display: str, tag: str) -> None:
    tex = node.astext()
    try:
        made = mathml(tex, display=display)
    except Exception as error:  # latex2mathml raises many kinds, and a broken equation must fail the build
        logger.warning("equation %r cannot be drawn: %s", tex, error, location=node)
        made = translator.encode(tex)
    translator.body.append(f'<{tag} class="math {display}">{made}</{tag}>')


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the renderer, which `html_math_renderer = "mathml"` selects."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
