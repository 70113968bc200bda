"""Public functions: docstrings that describe every parameter, and misspelt options that are named."""

import ast
import inspect
import pathlib
import warnings

import pytest

import layerlens
from layerlens.errors import OptionError, UnknownOption, warn
from layerlens.signatures import SHARED, public, with_section
from tests.stubs import STUBS


@public
def example(model, x, *, steps=3, seed=0):
    """Do something.

    Args:
        x: ... Pictures only.
        steps: number of steps.

    Returns:
        The seed.
    """
    return seed


def test_shared_parameters_are_described_in_the_order_of_the_signature():
    lines = inspect.getdoc(example).split("\n")
    start = lines.index("Args:")
    stop = lines.index("Returns:")
    entries = "\n".join(lines[start + 1 : stop - 1]).replace("\n        ", " ").split("\n")
    assert entries == [
        f"    model: {SHARED['model']}",
        f"    x: {SHARED['x']} Pictures only.",
        "    steps: number of steps.",
        f"    seed: {SHARED['seed']}",
    ]
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("text", ["Do.", "Do.\n\n    Returns:\n        It.\n    ", "Do.\n\n    More of it.\n    "])
def test_a_docstring_without_args_gets_them(text):
    def function(seed=0):
        pass

    function.__doc__ = text
    found = inspect.getdoc(public(function))
    function.__doc__ = inspect.cleandoc(text)  # as Python 3.13 compiles it
    assert inspect.getdoc(public(function)) == found
    assert f"Args:\n    seed: {SHARED['seed']}" in found and found.startswith("Do.\n\n")
    assert ("Returns:" in text) == ("\n\nReturns:\n    It." in found)


def test_a_misspelt_option_is_named_with_the_nearest():
    assert example(None, None, seed=5) == 5
    with pytest.raises(UnknownOption, match=r"example\(\) has no option 'stepz'. Closest: steps") as found:
        example(None, None, stepz=1)
    assert isinstance(found.value, OptionError) and isinstance(found.value, TypeError)


def test_sections_that_functions_share_are_added_before_those_that_follow():
    text = "Do.\n\n    Raises:\n        KeyError: when it is missing.\n\n    Example:\n        >>> 1\n    "
    shared = {"InputError": "when it is empty.", "KeyError": "never."}
    found = with_section(with_section(text, "Raises", shared), "Returns", {"": "It."})
    assert inspect.cleandoc(found).split("\n") == [
        "Do.",
        "",
        "Returns:",
        "    It.",
        "",
        "Raises:",
        "    InputError: when it is empty.",
        "    KeyError: when it is missing.",
        "",
        "Example:",
        "    >>> 1",
    ]
    more = with_section("Do.\n\n    Returns:\n        ... And more.\n    ", "Returns", {"": "It."})
    assert "It. And more." in more and "..." not in more


@public(renamed={"draws": "repeats"})
def renamed_example(model, *, repeats=3):
    """Do something.

    Args:
        repeats: number of repeats.
    """
    return repeats


@public(renamed={"draws": "repeats"})
def renamed_and_extensible(**options):
    """Do something.

    Args:
        **options: of another function.
    """
    return options


def test_the_old_name_of_an_option_is_accepted_with_a_warning():
    with pytest.warns(DeprecationWarning, match=r"renamed_example\(draws=\) is now repeats="):
        assert renamed_example(None, draws=5) == 5
    with pytest.warns(DeprecationWarning, match="is now repeats="):
        assert renamed_and_extensible(draws=5, other=1) == {"repeats": 5, "other": 1}
    assert renamed_example(None, repeats=4) == 4  # no warning


def test_the_old_name_of_an_option_is_not_shown():
    assert list(inspect.signature(renamed_example).parameters) == ["model", "repeats"]
    assert "draws" not in inspect.getdoc(renamed_example)
    with pytest.raises(UnknownOption, match=r"Closest: repeats\. Known: repeats\.$"):
        renamed_example(None, repeat=5)


@pytest.mark.parametrize("options", [{"draws": 5, "repeats": 5}, {"repeats": 5, "draws": 5}])
def test_an_option_given_by_both_names_is_refused(options):
    with pytest.raises(OptionError, match="got 'draws', the old name of 'repeats', as well"):
        renamed_example(None, **options)


def test_a_warning_is_at_the_line_that_entered_layerlens():
    inside = {"__name__": "layerlens.deep", "warn": warn}
    exec("def deep(count):\n    deep(count - 1) if count else warn('mind this')", inside)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        exec(compile("deep(3)", "user.py", "exec"), {"deep": inside["deep"], "__name__": "user"})
    assert [(one.filename, one.lineno) for one in caught] == [("user.py", 1)]


def test_the_types_of_the_package_are_as_generated():
    for file, text in STUBS.items():
        kept = (pathlib.Path(layerlens.__file__).parent / file).read_text()
        assert imports(ast.parse(kept)) == imports(ast.parse(text())), f"{file} is old: python -m tests.stubs"


def imports(tree):
    """Every imported name with its module, and the text of everything else."""
    names = {(node.module, name.name) for node in tree.body if isinstance(node, ast.ImportFrom) for name in node.names}
    return names, [ast.unparse(node) for node in tree.body if not isinstance(node, ast.ImportFrom)]
