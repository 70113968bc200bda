import inspect
import re

import pytest

from layerlens import errors
from layerlens.errors import LayerLensError, OptionError, choose, closest, suggestion


def test_every_error_is_one_of_ours_and_one_of_pythons():
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]
    assert len(kinds) > 10
    for kind in kinds:
        assert issubclass(kind, LayerLensError), kind
        assert kind is LayerLensError or any(base.__module__ == "builtins" for base in kind.__mro__[1:-3]), kind
        assert str(kind("one 'text'")) == "one 'text'", kind  # no KeyError: it would show the repr


def test_the_closest_names():
    names = ["encoder.layer.5", "encoder.layer.4", "decoder", "fc"]
    assert closest("encoder.layer.9", names, 2) == ["encoder.layer.5", "encoder.layer.4"]
    assert closest("FC", names) == ["fc"]
    assert closest("zzz", names) == []
    assert closest("fc", ["fc", "fc"]) == ["fc"]
    assert suggestion("decodr", names) .startswith(" Closest: decoder") and suggestion("zzz", names) == ""  # fmt: skip


@pytest.mark.parametrize("value", ["meen", None, 3, ["mean"]])
def test_choose_names_what_is_known(value):
    text = f"unknown way {value!r}." + (" Closest: mean." if value == "meen" else "") + " Known: mean, max."
    with pytest.raises(OptionError, match=re.escape(text)):
        choose("way", value, ("mean", "max"))
    assert choose("way", "max", ("mean", "max")) == "max"
