"""Sphinx settings of the documentation site; `docs/site/build.py` collects the pages and runs Sphinx."""

import os
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # this copy of layerlens, installed or not

import docstrings  # noqa: E402

import layerlens  # noqa: E402

project = "layerlens"
author = "the layerlens authors"
copyright = author
version = release = layerlens.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "mathml"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
master_doc = "index"
exclude_patterns = ["jupyter_execute"]

myst_enable_extensions = ["dollarmath", "attrs_block", "colon_fence"]
myst_heading_anchors = 3
myst_update_mathjax = False
html_math_renderer = "mathml"

nb_execution_mode = os.environ.get("LAYERLENS_NOTEBOOKS", "off")  # "cache": once per text of a notebook
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_excludepatterns = ["*.md"]
nb_merge_streams = True

default_role = "code"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = False  # a source does not hold the options that a decorator adds
autodoc_type_aliases = {name: name for name in docstrings.ALIASES}
python_maximum_signature_line_length = 110
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
toc_object_entries_show_parents = "hide"
add_module_names = False

html_theme = "furo"
html_title = f"layerlens {release}"
html_static_path = [str(HERE / "static"), str(files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf")]
html_css_files = ["layerlens.css"]
html_show_sourcelink = False
html_copy_source = False
html_show_copyright = False
pygments_style = "friendly"
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True


def setup(app: Any) -> None:
    """Connect the functions that rewrite docstrings and signatures."""
    app.connect("autodoc-process-docstring", docstrings.docstring)
    app.connect("autodoc-process-signature", docstrings.signature)
