"""Lens binds: names, text, forward and inputs reach the analyzers; the functions are the same."""

import ast
import inspect
import operator
import pydoc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens, errors
from layerlens.binding import bind
from tests.cases import CASES, normal
from tests.test_docstrings import section


class Tokenizer:
    """What a Lens needs of a tokenizer: letters are tokens."""

    def __call__(self, texts, return_tensors, padding=False):
        assert return_tensors == "pt"
        length = max(map(len, texts))
        assert padding or len({len(text) for text in texts}) == 1
        rows = [[ord(c) - 96 for c in text] + [0] * (length - len(text)) for text in texts]
        return {"input_ids": torch.tensor(rows), "attention_mask": (torch.tensor(rows) > 0).long()}

    def convert_ids_to_tokens(self, ids):
        return [chr(index + 96) if index else "[PAD]" for index in ids]


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def test_class_names_are_targets_and_labels():
    lens = Lens(small(), class_names=["cat", "dog", "Egyptian cat"])
    x = normal(2, 4)
    by_name = lens.saliency(x, target="egyptian CAT", method="gradient")
    by_index = lens.saliency(x, target=2, method="gradient")
    assert torch.equal(by_name.values, by_index.values)
    assert by_index.target == "Egyptian cat"
    assert lens.relevance(x).target.endswith("(predicted)")
    with pytest.raises(errors.TargetError, match=r"no class is named 'dgo' among 3\. Closest: dog"):
        lens.saliency(x, target="dgo")


def test_text_goes_through_the_tokenizer_and_tokens_come_back():
    lens = Lens(CASES["hf_bert"].build(), tokenizer=Tokenizer())
    result = lens.relevance(["abc", "de"], target=1)
    assert result.values.shape == (2, 3)
    assert result.axes == ("batch", "token")
    assert result.tokens == [["a", "b", "c"], ["d", "e", "[PAD]"]]
    assert float(result.ledger.relative.max()) < 1e-5
    assert lens.saliency("abc", target=1, method="gradient", magnitude=True).tokens == [["a", "b", "c"]]
    with pytest.raises(errors.InputError, match="no tokenizer"):
        Lens(small()).saliency("abc")


def test_forward_is_used_by_every_analyzer():
    model = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Conv2d(1, 2, 3)})
    lens = Lens(model, forward=lambda model, x: model["a"](x))
    x = normal(2, 4)
    assert lens.relevance(x, target=0).values.shape == (2, 4)
    assert lens.saliency(x, target=0, method="gradient").values.shape == (2, 4)
    assert lens.capture(x)["a"].shape == (2, 3)
    assert lens.capture(x).unrun == ("b",)
    assert [row.calls for row in lens.layers(x).rows if row.path == "b"] == [0]
    assert lens.sensitivity(x, "a").layers == ("a",)
    assert lens.activation_maps(x, "a").values.shape == (2, 3)


def test_repr_tells_what_it_holds():
    assert repr(Lens(small(), class_names={0: "a"})) == "Lens(Sequential: 3 layers, 43 parameters, 1 class names)"


def test_what_is_no_model_is_refused():
    with pytest.raises(errors.InputError, match=r"a model must be a torch.nn.Module, got function"):
        Lens(torch.relu if inspect.isfunction(torch.relu) else (lambda x: x))
    with pytest.raises(errors.TargetError, match="class_names must be a sequence"):
        Lens(small(), class_names="cat")
    for names in ({"cat": 0, "dog": 1}, ["cat", 1]):
        with pytest.raises(errors.TargetError, match="class_names are names by index"):
            Lens(small(), class_names=names)


def test_every_public_name_is_there_and_documented():
    for name in layerlens.__all__:
        assert getattr(layerlens, name).__doc__, name
    assert set(layerlens.__all__) <= set(dir(layerlens))
    with pytest.raises(AttributeError, match="no attribute 'lense'"):
        layerlens.lense  # noqa: B018


def test_type_checkers_see_the_same_names():
    stub = ast.parse(Path(layerlens.__file__).with_suffix(".pyi").read_text())
    told = [name.name for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names]
    assert sorted(told) == layerlens.__all__


def test_methods_are_listed_where_they_are_called():
    assert "grad_cam" in Lens(nn.Linear(2, 2)).saliency.methods()


# -- signatures --------------------------------------------------------------------------------------------------------

BOUND = [name for name, value in vars(Lens).items() if isinstance(value, bind)]


@pytest.mark.parametrize("name", BOUND)
def test_a_method_shows_every_option_of_its_function(name):
    binding, method = vars(Lens)[name], getattr(Lens(small()), name)
    function = inspect.signature(binding.function).parameters
    shown = inspect.signature(method).parameters
    assert list(shown) == [one for one in list(function)[1:] if one in shown]
    assert set(function) - set(shown) <= {"model", "lens", "forward", "read", "aim", "tokenizer", "names"}
    assert all(shown[one].default == function[one].default for one in shown)
    assert section(inspect.getdoc(method), "Args") == list(shown)
    if name in layerlens.__all__:
        assert inspect.unwrap(getattr(layerlens, name)) is inspect.unwrap(binding.function)


@pytest.mark.parametrize("name", [name for name in BOUND if name not in ("saliency", "sensitivity")])
def test_a_misspelt_option_is_named_with_the_nearest(name):
    method = getattr(Lens(small()), name)
    option = next(one for one in reversed(list(inspect.signature(method).parameters)) if len(one) > 1 or one == "x")
    with pytest.raises(errors.UnknownOption, match=rf"{method.__name__}\(\) has no option '{option}_'.*{option}"):
        method(**{f"{option}_": 1})


@pytest.mark.parametrize(("family", "count"), [("saliency", 42), ("sensitivity", 11)])
def test_methods_of_a_family_have_their_own_signatures(family, count):
    methods = getattr(Lens(small()), family)
    names = [name for name in dir(methods) if not name.startswith("_") and name != "methods"]
    assert len(names) == count == len(methods.methods())
    for name in names:
        function = inspect.signature(getattr(Lens, family).functions()[name]).parameters
        shown = inspect.signature(getattr(methods, name)).parameters
        assert set(function) - set(shown) <= {"model", "forward", "read"}
    with pytest.raises(AttributeError, match="has no method 'rize'"):
        methods.rize  # noqa: B018


def test_a_method_of_a_family_is_the_same_call():
    lens, x = Lens(small(), class_names=["cat", "dog", "owl"]), normal(2, 4)
    by_name = lens.saliency(x, target="dog", method="smooth_grad", samples=3)
    assert torch.equal(lens.saliency.smooth_grad(x, target="dog", samples=3).values, by_name.values)
    assert torch.equal(lens.sensitivity.jacobian(x).values, lens.jacobian(x).values)
    with pytest.raises(errors.UnknownOption, match=r"has no option 'sample'\. Closest: samples"):
        lens.saliency.smooth_grad(x, sample=3)


def test_type_checkers_name_a_misspelt_option() -> None:
    """`make lint` checks annotated tests: there an ignored error that mypy does not find is an error."""
    lens, x = Lens(small()), normal(1, 4)
    with pytest.raises(errors.UnknownOption):
        lens.ablate(x, foo=1)  # type: ignore[call-arg]
    with pytest.raises(errors.UnknownOption):
        lens.saliency.rise(x, foo=1)  # type: ignore[call-arg]
    with pytest.raises(errors.UnknownOption):
        lens.saliency(x, method="rise", foo=1)  # type: ignore[call-overload]
    lens.ablate(x)
    lens.saliency.rise(x, samples=8)
    lens.saliency(x, method="rise", samples=8)


@pytest.mark.parametrize("name", ["ablate", "saliency", "saliency.rise", "sensitivity.jacobian"])
def test_help_shows_the_whole_signature(name):
    method = operator.attrgetter(name)(Lens(small()))
    shown = pydoc.plain(pydoc.render_doc(method))
    assert "".join(str(inspect.signature(method)).split()) in "".join(shown.split())  # 3.13: a parameter a line


def test_a_method_knows_its_lens():
    lens = Lens(small())
    assert lens.ablate.__self__ is lens
    assert lens.ablate == lens.ablate != lens.patch
    assert len({lens.ablate, lens.ablate}) == 1


PACKAGE: Any = layerlens


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda lens: PACKAGE.Lens(lens.model, classnames=["a"]),
            r"Lens\(\) has no option 'classnames'. Closest: class_names",
        ),
        (lambda lens: PACKAGE.Data([1], batchsize=2), r"Data\(\) has no option 'batchsize'. Closest: batch_size"),
        (lambda lens: layerlens.edits.zero(unit=1), r"Part\(\) has no option 'unit'. Closest: units"),
        (lambda lens: PACKAGE.Probe(lens.model, layer="0"), r"Probe\(\) has no option 'layer'. Closest: layers"),
        (lambda lens: PACKAGE.relevance(model=lens.model, x=1, rule=1), "no option 'rule'. Closest: rules"),
        (lambda lens: lens.sensitivity(normal(2, 4), method="jacobian", drws=1), "no option 'drws'. Closest: draws"),
    ],
)
def test_a_misspelt_option_is_named_outside_of_methods_too(call, message):
    with pytest.raises(errors.UnknownOption, match=message):
        call(Lens(small()))


def test_arguments_by_position_that_do_not_fit_are_named():
    lens = Lens(small())
    with pytest.raises(TypeError, match=r"relevance\(\) takes 1 by position \(x\), got 2\. Give the others by name"):
        lens.relevance(1, 2)
    with pytest.raises(TypeError, match=r"relevance\(\) got multiple values for argument 'x'\."):
        lens.relevance(1, x=1)
