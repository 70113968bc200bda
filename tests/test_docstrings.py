"""The docstrings of everything public, as help() shows them: every parameter, what is returned, an example."""

import inspect
import re

import pytest

import layerlens
from layerlens import edits, extend, faithfulness, plotting, rules
from layerlens.analyzers.common.measure_registry import MEASURES
from layerlens.analyzers.common.registry import METHODS
from layerlens.scale.over import Over

MODULES = (layerlens, extend, faithfulness, edits, rules, plotting)
PUBLIC = {f"{module.__name__}.{name}": getattr(module, name) for module in MODULES for name in module.__all__}
PUBLIC |= {f"saliency.{name}": row.function for name, row in METHODS.items()}
PUBLIC |= {f"sensitivity.{name}": row.function for name, row in MEASURES.items()}
PUBLIC |= {f"Over.{name}": value for name, value in vars(Over).items() if not name.startswith("_")}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
RETURNED = {"Call", "Record", "Store", "Plot"}
"""Classes whose objects functions return: their attributes are described, not how they are made."""
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value) and value.__name__ not in RETURNED}
ENTRY = re.compile(r"^    \**(\w+)(?:, (\w+))*(?:, (\w+))*:", re.MULTILINE)


def section(text, name):
    """The entries of a section of a docstring, such as the parameters of `Args`."""
    found = re.search(rf"^{name}:\n((?:    .*\n|\n)*)", text + "\n", re.MULTILINE)
    return [one for match in ENTRY.finditer(found[1]) for one in match.groups() if one] if found else []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_of_a_function_is_described(name):
    function = FUNCTIONS[name]
    text = inspect.getdoc(function)
    described = section(text, "Args")
    parameters = [one for one in inspect.signature(function).parameters if one != "self"]
    assert [one for one in parameters if one not in described] == []
    assert [one for one in described if one not in parameters] == [], "described, and not in the signature"
    assert [one for one in parameters if one in described] == parameters, "in another order"
    first = text.split("\n")[0]
    assert first.endswith(".") and len(first) <= 120, first


@pytest.mark.parametrize("name", CLASSES)
def test_every_parameter_of_a_class_is_described(name):
    kind = CLASSES[name]
    if issubclass(kind, BaseException) or not kind.__module__.startswith("layerlens"):
        return
    texts = [inspect.cleandoc(one.__doc__ or "") for one in kind.__mro__ if one.__module__.startswith("layerlens")]
    described = {one for text in texts for name in ("Args", "Attributes") for one in section(text, name)}
    if kind.__init__ is not object.__init__ and not issubclass(kind, __import__("enum").Enum):
        parameters = [one for one in inspect.signature(kind).parameters if one not in ("args", "kwargs")]
        assert [one for one in parameters if one not in described] == []


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.removeprefix("layerlens.") in layerlens.__all__])
def test_a_public_function_has_an_example(name):
    assert "\nExample:\n" in inspect.getdoc(FUNCTIONS[name])
