"""What a store is resumed by: the source text of what is reached, and the values that it reads."""

import functools
import importlib.util
import linecache
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from layerlens import over
from layerlens.errors import StoreError
from layerlens.scale.store.fingerprint import as_json
from layerlens.scale.store.manifest import Manifest
from layerlens.scale.store.plan import Plan
from layerlens.scale.store.reached import UNKNOWN, Reached

from .helpers import net, pictures

HELPERS = '''
import torch
OFFSET = 1.0
def shifted(y):
    return y + OFFSET
def by_name(y):
    return y * 5
class Box:
    """Holds a number."""
    def __init__(self, number):
        self.number = number * 6
    def times(self, y):
        return self.inner(y) * 7
    def inner(self, y):
        return y
'''
SOURCE = '''
import functools
import torch
from torch import nn
import user_helpers
from user_helpers import Box
SCALE = 2.0
TABLE = torch.arange(100.0)
SETTINGS = {"power": [1, 2.5]}
BOX = Box(3)
def deep(y):
    return y * SCALE + TABLE.sum()
def helper(y, factor=4.0):  # a remark
    from user_helpers import shifted as moved
    return moved(deep(y)) * factor * SETTINGS["power"][1]
def decorated(function):
    @functools.wraps(function)
    def wrapper(y):
        return function(y) + 8
    return wrapper
@decorated
def target(y):
    """A docstring."""
    return BOX.times(helper(y) + user_helpers.by_name(y))[:, 0]
def whole(y):
    return user_helpers.by_name(y) + getattr(user_helpers, "shi" + "fted")(y)
def unrelated(y):
    return y * 9
class Parent(nn.Module):
    gain = 10.0
    def forward(self, x):
        return self.scaled(x) + getattr(self, "named")(x)
    def scaled(self, x):
        return x * self.gain * self.factor
    def named(self, x):
        return Cube.apply(x) + 11
class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x ** 3
    @staticmethod
    def backward(ctx, g):
        return g * 12
class Net(Parent):
    def __init__(self):
        super().__init__()
        self.factor, self.names, self.act, self.seen = 13, ["a", "b"], lambda x: x + 14, None
        self.hidden = torch.full((3,), 15.0)
    def forward(self, x):
        self.seen = x
        return super().forward(self.act(x)) + self.hidden
    def training_step(self, x):
        return x * 16
'''
COUNTS = {
    "OFFSET = 1.0": "OFFSET = 2.0",
    "y + OFFSET": "y - OFFSET",
    "y * 5": "y * 55",
    "number * 6": "number * 66",
    "self.inner(y) * 7": "self.inner(y) * 77",
    "        return y\n": "        return -y\n",
    "SCALE = 2.0": "SCALE = 3.0",
    "arange(100.0)": "arange(100.0).flip(0)",
    "[1, 2.5]": "[1, 2.6]",
    "Box(3)": "Box(4)",
    "factor=4.0": "factor=4.5",
    "TABLE.sum()": "TABLE.mean()",
    "function(y) + 8": "function(y) + 88",
    "[:, 0]": "[:, 1]",
    "gain = 10.0": "gain = 10.5",
    "self.scaled(x) +": "self.scaled(x) -",
    "x * self.gain *": "x / self.gain *",
    "Cube.apply(x) + 11": "Cube.apply(x) + 1",
    "x ** 3": "x ** 2",
    "g * 12": "g * 1",
    "super().__init__()\n        self.factor, self.names, self.act, self.seen = 13": "super().__init__()\n"
    "        self.factor, self.names, self.act, self.seen = 12",
    '["a", "b"]': '["a", "c"]',
    "x + 14": "x + 1",
    "15.0": "15.5",
    "+ self.hidden": "- self.hidden",
}
DOES_NOT = {
    "# a remark": "# another",
    "y * 9": "y * 99",
    "x * 16": "x * 1",
    "def unrelated": "\n\n\ndef unrelated",
    "    return y + OFFSET": "    # adds\n    return y + OFFSET",
}


def loaded(folder, name, text):
    """Import a module of the user from its text, as a new process would."""
    path = folder / f"{name}.py"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def fingerprint(folder, helpers=HELPERS, source=SOURCE):
    loaded(folder, "user_helpers", helpers)
    user = loaded(folder, "user_model", source)
    reached = Reached()
    attributes = reached.model(user.Net())
    return attributes, reached.code, str(as_json(user.target))


@pytest.fixture
def folder(tmp_path):
    yield tmp_path
    sys.modules.pop("user_helpers", None), sys.modules.pop("user_model", None)


def test_all_that_the_numbers_depend_on_counts_and_nothing_else(folder):
    first = fingerprint(folder)
    whole = as_json(sys.modules["user_model"].whole).code
    assert "user_helpers" in whole and "user_helpers.shifted" not in whole
    assert not any(text.startswith(UNKNOWN) for text in first[1].values())
    assert fingerprint(folder) == first
    for old, new in [*COUNTS.items(), *DOES_NOT.items()]:
        assert (HELPERS + SOURCE).count(old) == 1, old
        found = fingerprint(folder, HELPERS.replace(old, new), SOURCE.replace(old, new))
        assert (found != first) == (old in COUNTS), old


def test_what_changes_while_the_program_runs(folder):
    user = loaded(folder, "user_helpers", HELPERS) and loaded(folder, "user_model", SOURCE)
    model = user.Net()

    def now():
        reached = Reached()
        return reached.model(model), reached.code, str(as_json(user.target))

    seen = [now()]
    model(torch.ones(1, 3))  # what forward sets is not an option of the model
    assert now() == seen[0]

    def mine(self, x):
        return x * 2

    handles = []
    changes = [
        lambda: setattr(user, "SCALE", 3.0),
        lambda: user.TABLE.mul_(2),
        lambda: user.SETTINGS["power"].append(1),
        lambda: setattr(user.BOX, "number", 1),
        lambda: setattr(sys.modules["user_helpers"], "by_name", lambda y: y * 6),
        lambda: setattr(user.Parent, "scaled", lambda self, x: x),
        lambda: setattr(model, "factor", 14),
        lambda: setattr(model, "act", functools.partial(torch.add, other=1)),
        lambda: setattr(model, "act", functools.partial(torch.add, other=2)),
        lambda: handles.append(model.register_forward_hook(lambda module, args, out: out * 2)),
        lambda: setattr(model, "_act", nn.functional.silu),
        lambda: setattr(model, "_act", nn.functional.mish),
        lambda: setattr(model, "_act", [torch.float16]),
        lambda: setattr(model, "_act", [torch.float32]),
        lambda: setattr(model, "_act", (np.ones(2), nn.Linear(1, 1))),
        lambda: setattr(model, "_act", (np.ones(2), nn.Linear(1, 1))),
        lambda: setattr(model, "forward", types.MethodType(mine, model)),
    ]
    for change in changes:
        change()
        seen.append(now())
        assert seen[-1] not in seen[:-1], len(seen)


def test_a_method_of_a_package_that_is_replaced(monkeypatch):
    def code():
        reached = Reached()
        reached.model(nn.Sequential(nn.Linear(2, 2)))
        return reached.code

    assert code() == {}
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert len(code()) == 1


def test_functions_on_one_line_and_of_one_text_differ_by_what_they_hold():
    def raised(power):
        return lambda y: y**power

    one, other = lambda y: y[:, 0], lambda y: y[:, 1]  # fmt: skip
    found = [as_json(part) for part in (one, other, raised(1), raised(2), max, torch.relu)]
    assert len(set(found)) == len(found) and as_json(functools.cache(one)).code == found[0].code


def test_a_file_that_was_changed_after_its_import_is_said(folder):
    user = loaded(folder, "user_helpers", "def tripled(y):\n    return 3 * y\n")
    (folder / "user_helpers.py").write_text("def tripled(y):\n    return 4 * y\n")
    (text,) = as_json(user.tripled).code.values()
    assert text.startswith(f"{UNKNOWN}the text of ") and "changed after it was imported" in text


def without_text():
    space = {}
    exec("def score(y):\n    return y[:, 0]", space)
    return space["score"]


def test_what_cannot_be_fingerprinted_is_said_and_not_resumed(tmp_path, monkeypatch):
    # Python 3.13 keeps the text of `python -c`, under the name that code of exec has too
    monkeypatch.setitem(linecache.cache, "<string>", (9, None, ["def score(y):\n", "    return y[:, 1]\n"], "<string>"))
    score = without_text()

    def run(version=None, store="run"):
        data = over(net(), pictures(), store=tmp_path / store, batch_size=21, version=version)
        return data.saliency(target=score, method="gradient")

    with pytest.warns(UserWarning, match=r"cannot be resumed.*score: its source is not at hand.*version='1'"):
        run()
    with pytest.raises(StoreError, match=r"is not resumed: .*score: its source is not at hand"):
        run()
    with pytest.raises(StoreError, match="version: None there, '1' now"):
        run("1")
    assert run("1", "other").complete and run("1", "other").complete
    with pytest.raises(StoreError, match="version: '1' there, '2' now"):
        run("2", "other")


def unknown_in(value):
    code = getattr(as_json(value), "code", {})
    return {name.rpartition(".")[2]: text for name, text in code.items() if UNKNOWN in text}


def test_what_has_no_text_is_named():
    class Locked:
        def __init__(self, held):
            self.held = held

        def __call__(self, y):
            return y

    calls = (number for number in range(3))
    assert list(unknown_in(Locked(calls))) == ["generator"]
    assert unknown_in(Locked([1, "a", {2.0}, torch.ones(2), slice(3)])) == {}

    def evaluated(y):
        return eval("y * 2")

    assert list(unknown_in(evaluated)) == ["evaluated #2"]


def test_a_helper_that_changed_is_named(folder, tmp_path):
    def run(helpers):
        loaded(folder, "user_helpers", helpers)
        user = loaded(folder, "user_model", SOURCE)
        torch.manual_seed(0)
        return over(user.Net(), torch.ones(4, 3), store=tmp_path / "run").saliency(target=user.target)

    run(HELPERS)
    with pytest.raises(
        StoreError, match=r"settings, target.*code, user_helpers\.by_name: '\w{16}' there, '\w{16}' now"
    ):
        run(HELPERS.replace("y * 5", "y * 6"))


def test_a_version_stands_for_code_and_not_for_weights_or_options():
    def manifest(sign=1, **changes):
        def reduce(y):
            return sign * y

        settings = {"reduce": as_json(reduce), "layers": changes.get("layers", "a")}
        return Manifest.of("capture", settings, changes.get("model", net()), {}, Plan(1), changes.get("version", "1"))

    assert manifest(sign=-1).differences(manifest()) == []
    assert "settings, reduce" in manifest(sign=-1, version=None).differences(manifest(version=None))[0]
    assert manifest(layers="b").differences(manifest()) == ["settings, layers: 'b' there, 'a' now"]
    assert manifest(version="2").differences(manifest()) == ["version: '2' there, '1' now"]
    assert "model, modules" in manifest(model=nn.Linear(2, 2)).differences(manifest())[2]


def test_what_the_user_registered_counts(tmp_path):
    from layerlens.extend import Kind, Row, method, register
    from layerlens.scale.jobs.base import METHODS, registered

    assert registered("gradient") == {}

    def rule(factor):
        return Row(Kind.RATIO, lambda ctx, x: (factor * x, 0.0))

    found = []
    for factor in (1.0, 2.0):
        with register("CubeBackward", rule(factor)):
            found.append(registered()["registered rows"]["CubeBackward"])
    assert found[0] != found[1] and registered() == {}

    def mine(model, x, *, target=None, forward=None):
        """Return the gradient."""
        return helpers[-1](model, x)

    helpers = []
    try:
        method(family="gradient", passes="1 gradient", source="a user")(mine)
        for helper in (lambda model, x: x, lambda model, x: -x):
            helpers.append(helper)
            found.append(registered("mine")["registered method"])
    finally:
        METHODS.pop("mine", None)
    assert found[2] != found[3] and any("mine" in name for name in found[3].code)
