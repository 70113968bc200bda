import dataclasses
import gc
import json
import pickle
import stat

import numpy as np
import pytest
import torch

from layerlens.errors import InputError, MissingPackage, OptionError, ResultFileError
from layerlens.results import (
    ActivationMaps,
    AttentionWeights,
    Attribution,
    Curve,
    Entry,
    ErrorExplanation,
    FaithfulnessCurve,
    FeatureVisualization,
    GradientCheck,
    GroupComparison,
    GroupEffects,
    LatentTraversal,
    LayerGradient,
    LayerHealth,
    LayerProfile,
    LayerRow,
    LayerTable,
    Leaderboard,
    Ledger,
    LogitLens,
    Matrix,
    ModelChecks,
    Ranking,
    ReceptiveField,
    RecurrentStates,
    Relevance,
    Result,
    RouteComparison,
    Routes,
    TopInputs,
    TrainingHistory,
    UnitStatistics,
    load,
)
from tests.cases import normal

SETTINGS = {"steps": 8, "baseline": "zero", "noise": 0.5, "exact": True, "seed": None}
SETTINGS |= {"sizes": (1, (2, 3)), "by": {3: "x"}}


def attribution(**changes):
    fields = {
        "values": normal(2, 3, 4, 4),
        "axes": ("batch", "channel", "height", "width"),
        "signed": True,
        "units": "score",
        "target": "class 1",
        "method": "gradient x input",
        "settings": SETTINGS,
        "score": torch.tensor([1.5, -2.25]),
        "checks": {"completeness gap": torch.tensor([0.0, 1e-7])},
        "inputs": normal(2, 3, 4, 4, seed=1),
    }
    return Attribution(**{**fields, **changes})


def ledger():
    return Ledger(
        torch.tensor([3.0, -1.0]),
        (
            Entry("input", "", "x", torch.tensor([2.0, 1.0])),
            Entry("additive", "fc", "bias", torch.tensor([0.5, -2.0])),
            Entry("absorbed", "act", "offset", torch.tensor([0.25, 0.0])),
            Entry("additive", "fc", "shift", torch.tensor([0.25, 0.0])),
        ),
    )


def profile(**changes):
    fields = {
        "quantity": "Jacobian norm",
        "layers": ("conv", "relu", "relu #1"),
        "values": torch.tensor([1.0, 3.0, 2.0]),
        "units": "score per unit",
        "signed": False,
        "method": "reverse mode",
        "settings": {},
        "error": torch.tensor([0.1, 0.2, 0.3]),
    }
    return LayerProfile(**{**fields, **changes})


def relevance():
    names = (field.name for field in dataclasses.fields(Attribution))
    base = {name: getattr(attribution(), name) for name in names}
    layers = {"conv": (normal(2, 3), normal(2, 3, seed=1)), "fc": (normal(2, 2),)}
    return Relevance(**base, ledger=ledger(), layers=layers, profile=profile(), rules_used={"AddmmBackward0": "zero"})


def table(**changes):
    rows = (
        LayerRow("", "Net", 1, "(2, 3)", 1210, 0, 0.25),
        LayerRow("conv", "Conv2d", 2, "(2, 8, 4, 4)", 1200, 1200, 0.75),
        LayerRow("exit", "Linear", 0, "", 10, 10, 0.0),
        LayerRow("new", "ReLU", None, "", 0, 0, None),
    )
    return LayerTable(**{"model": "Net", "rows": rows, "milliseconds": 12.5, "device": "cpu", **changes})


def maps():
    values = torch.arange(24.0).reshape(2, 3, 4)
    return ActivationMaps("conv", 1, values, (0, 5, 9), ("batch", "channel", "length"), None)


def top_inputs(**changes):
    fields = {
        "layer": "conv",
        "call": 0,
        "by": "relevance",
        "units": (3, 8),
        "index": torch.tensor([[4, 1], [1, 0]]),
        "values": torch.tensor([[2.0, 0.5], [1.0, -1.0]], dtype=torch.float64),
        "places": torch.tensor([[[0, 1], [2, 2]], [[1, 1], [0, 0]]]),
        "regions": torch.tensor([[0, 3], [1, 4], [2, 6]]).repeat(2, 2, 1, 1),
        "inputs": {0: normal(3, 6, 6), 1: normal(3, 6, 6, seed=1), 4: normal(3, 6, 6, seed=2)},
        "count": 9,
        "target": "class 1",
        "method": "relevance (epsilon), sum over places",
        "settings": SETTINGS,
    }
    return TopInputs(**{**fields, **changes})


def made(**changes):
    fields = {
        "images": normal(3, 3, 4, 4),
        "axes": ("batch", "channel", "height", "width"),
        "bounds": (-1.0, 1.0),
        "targets": ("class 1", "class 1", "unit 3 of conv"),
        "curve": normal(3, 5),
        "score": normal(3),
        "units": "score",
        "settings": SETTINGS,
        "checks": {"transformed": normal(3)},
    }
    return FeatureVisualization(**{**fields, **changes})


def recurrent(**changes):
    run = {name: normal(2, 4, 3, seed=seed) for seed, name in enumerate(("hidden", "update_gate"))}
    states = {"layer 0": run, "layer 0 reverse": run}
    fields = {"layer": "rnn", "kind": "GRU", "states": states, "lengths": torch.tensor([4, 4]), "settings": SETTINGS}
    return RecurrentStates(**{**fields, "checks": {"difference": normal(2)}, **changes})


def field(**changes):
    boxes = torch.tensor([[0, 3], [1, 4]]).expand(3, 3, 2, 2).clone()
    fields = {"layer": "conv", "call": 0, "boxes": boxes, "input_size": (5, 6), "place": (1, 1)}
    fields |= {"effective": normal(2, 5, 6).abs(), "settings": SETTINGS, "inputs": normal(2, 3, 5, 6)}
    return ReceptiveField(**{**fields, **changes})


def traversal():
    steps = torch.tensor([-1.0, 0.0, 1.0])
    outputs, effect = normal(2, 3, 1, 4, 4), torch.tensor([0.5, 0.25])
    return LatentTraversal(("latent 0", "latent 7"), steps, "set", outputs, outputs[0, 1], effect, SETTINGS)


def faithfulness_curve():
    shares = torch.linspace(0, 1, 5).double()
    return FaithfulnessCurve("insertion", shares, normal(2, 5).double(), "blur", "probability", "cat", SETTINGS)


def leaderboard():
    values = normal(3, 2, 4).double()
    groups = ("x", "x", "y", "z")
    return Leaderboard(("a", "b", "c"), ("one", "two"), values, (True, False), ("c",), "cat", SETTINGS, groups)


def group_effects():
    means, p = normal(2, 2, 4).double(), torch.rand(2, 4, dtype=torch.float64)
    parts = [normal(2, 4, seed=k).double() for k in range(3)]
    return GroupEffects("layer 0", ("unit",), ("a - b", "a - b (label 1)"), means, *parts, p, normal(2).double(), "1")


def comparison(kind=GroupComparison, **more):
    effects = {"0": group_effects(), "1": group_effects()}
    shared = (("a", "b"), (4, 5), effects, {"input": group_effects()}, profile(), {"2": "it did not run"})
    return kind(*shared, "cat", "mean activations", SETTINGS, **more)


SAID = ("What it means.", "What it does not.")


def ranking(**changes):
    fields = {"quantity": "drop", "items": ("a", "b", "c"), "values": normal(3, 2), "units": "score", "signed": True}
    fields |= {"method": "zero", "settings": SETTINGS, "series": ("one", "two"), "interval": normal(3, 2, 2)}
    return Ranking(**{**fields, "error": normal(3, 2).abs(), "null": normal(3, 2), "explanation": SAID, **changes})


def matrix(**changes):
    fields = {"quantity": "CKA", "rows": ("a", "b"), "columns": ("x", "y", "z"), "values": normal(2, 3).double()}
    fields |= {"axes": ("layer", "layer"), "units": "1", "signed": False, "method": "linear", "settings": SETTINGS}
    return Matrix(**{**fields, "null": normal(2, 3), "explanation": SAID, **changes})


def health(**changes):
    fields = {"quantity": "share", "layers": ("a", "b"), "values": normal(2, 2).abs(), "series": ("dead", "doubled")}
    fields |= {"units": "1", "signed": False, "method": "40 samples", "settings": SETTINGS, "explanation": SAID}
    fields |= {"dead": {"a": (1, 3)}, "doubles": {"b": ((2, 0, -0.999),)}, "mean": normal(2), "std": normal(2).abs()}
    return LayerHealth(**{**fields, "samples": torch.tensor([40, 40]), "bound": normal(2).abs(), **changes})


def lens(**changes):
    fields = {"quantity": "probability", "rows": ("a", "b", "c"), "columns": ("x", "y"), "values": normal(3, 2).abs()}
    fields |= {"axes": ("layer", "position"), "units": "1", "signed": False, "method": "lens", "settings": SETTINGS}
    fields |= {"targets": (4, 7), "scores": torch.tensor([0.5, 0.25]).expand(3, 2, 2), "names": {7: "seven"}}
    fields |= {"top": torch.tensor([[[4, 7], [1, 7]], [[2, 4], [7, 4]], [[4, 2], [7, 2]]]), "explanation": SAID}
    return LogitLens(**{**fields, **changes})


def curve(**changes):
    fields = {"quantity": "accuracy", "along": "eps", "points": torch.tensor([0.0, 0.1]), "series": ("fgsm", "pgd")}
    fields |= {"values": normal(2, 2), "units": "1", "method": "FGSM", "settings": SETTINGS, "error": normal(2, 2)}
    return Curve(**{**fields, "explanation": SAID, **changes})


def training():
    values = {"gradient norm": normal(3, 2).double().abs(), "drift": torch.tensor([[0.0, 0.1, float("nan")]] * 3)}
    layers = {"gradient norm": ("a", "b"), "drift": ("a", "b", "c")}
    logged = {"loss": torch.tensor([[0.0, 2.5], [4.0, 1.5]]).double()}
    checks = {"share of time": torch.tensor(0.04), "steps seen": torch.tensor(9)}
    steps, rows = torch.tensor([0, 4, 8]), torch.tensor([16, 16, 8])
    return TrainingHistory(steps, layers, values, logged, rows, "hooks on SGD.step", SETTINGS, checks, SAID)


def statistics():
    columns = [{"a": normal(3).double(), "a#1": normal(2).double()} for _ in range(6)]
    return UnitStatistics(*columns, samples=100, settings=SETTINGS)


def gradient_check():
    layers = (LayerGradient("a", 0, "Linear", 0.5, 1e-9, False, "the backward pass of Odd"),)
    return GradientCheck(*(normal(2, 3).double() for _ in range(4)), 1e-3, "differences in float64", "cat", layers)


def model_checks():
    rows = (("ledger", True, "residual 1e-7", ""), ("gradient", None, "unclear", "try float64"), ("g", False, "x", "y"))
    return ModelChecks(rows, gradient_check())


RESULTS = {
    "LayerGradient": lambda: gradient_check().layers[0],
    "GradientCheck": gradient_check,
    "ModelChecks": model_checks,
    "Attribution": attribution,
    "Relevance": relevance,
    "ActivationMaps": maps,
    "LayerTable": table,
    "LayerProfile": profile,
    "Ledger": ledger,
    "TopInputs": top_inputs,
    "AttentionWeights": lambda: AttentionWeights("Net", {"a": normal(1, 2, 3, 3)}, {"a": "softmax and product"}),
    "Routes": lambda: Routes("Net", (("a", "b", "b"), ("a",))),
    "RouteComparison": lambda: RouteComparison(("b",), (), {"a": (1.0, 2.0)}, 1, "a"),
    "FeatureVisualization": lambda: made(),
    "RecurrentStates": lambda: recurrent(),
    "ReceptiveField": lambda: field(),
    "LatentTraversal": lambda: traversal(),
    "FaithfulnessCurve": lambda: faithfulness_curve(),
    "Leaderboard": lambda: leaderboard(),
    "LayerHealth": lambda: health(),
    "LogitLens": lambda: lens(),
    "Ranking": ranking,
    "Matrix": matrix,
    "Curve": curve,
    "TrainingHistory": training,
    "UnitStatistics": statistics,
    "GroupEffects": lambda: group_effects(),
    "GroupComparison": lambda: comparison(),
    "ErrorExplanation": lambda: comparison(
        ErrorExplanation, labels=torch.tensor([0, 1]), predicted=torch.tensor([0, 0]), used=torch.tensor([True, False])
    ),
    "Entry": lambda: ledger().entries[0],
}
VARIANTS = {
    **RESULTS,
    "bfloat16": lambda: attribution(values=normal(2, 3).bfloat16(), inputs=None),
    "half": lambda: attribution(values=normal(2, 3).half()),
    "float64": lambda: attribution(values=normal(2, 3).double(), axes=None),
    "integers and booleans": lambda: attribution(checks={"a": torch.tensor([1, 2]), "b": torch.tensor([True, False])}),
    "several inputs": lambda: attribution(values={"a": normal(2, 3), "b": normal(2, 5)}, inputs=None),
    "tokens": lambda: attribution(values=normal(2, 2), tokens=[["<s>", "Zürich\n"], ["a", "\u2603"]]),
    "part of a graph": lambda: attribution(values=normal(2, 3).requires_grad_() * 2),
    "not contiguous": lambda: attribution(values=normal(3, 2).T),
    "not finite": lambda: attribution(values=torch.tensor([[float("nan"), float("inf"), -0.0]])),
    "top inputs of several": lambda: top_inputs(regions=None, inputs={0: {"a": normal(2), "b": normal(3)}}),
    "attention in part": lambda: AttentionWeights(
        "Net", {"a": normal(1, 1, 1, 2)}, {"a": "by hand"}, {"a": (2,)}, {"a": (0, 1)}, "mean", [["x", "y", "z"]]
    ),
    "several series": lambda: profile(values=normal(3, 2), series=("a", "b"), error=None, null=normal(3, 2)),
}


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and left.shape == right.shape
        assert torch.equal(left.detach().nan_to_num(7), right.nan_to_num(7))
        assert torch.equal(torch.signbit(left.detach()), torch.signbit(right))
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (tuple, list)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif dataclasses.is_dataclass(left):
        for field in dataclasses.fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name))
    else:
        assert left == right


# -- files -------------------------------------------------------------------------------------------------------------


def test_every_result_type_is_in_this_file():
    ours = {
        name for name, kind in Result.classes.items() if kind.__module__.startswith("layerlens.results")
    } - {"LayerRow", "Explained"}  # fmt: skip
    assert ours == set(RESULTS)


@pytest.mark.parametrize("make", VARIANTS.values(), ids=VARIANTS)
def test_a_result_comes_back_as_it_was(make, tmp_path):
    result = make()
    path = result.save(tmp_path / "result")
    assert path == tmp_path / "result.npz"
    assert_same(result, load(path))
    assert_same(result, type(result).load(str(path)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.npz"]


def test_no_pickle_is_written(tmp_path):
    path = relevance().save(tmp_path / "r.npz")
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    assert all(array.dtype != object for array in arrays.values())
    description = json.loads(bytes(arrays["description"]))
    assert description["format"] == "layerlens-result/1" and description["value"]["class"] == "Relevance"


def test_a_pickle_is_not_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was run",))

    path = tmp_path / "trap.npz"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ResultFileError, match=r"trap\.npz is not a result of layerlens, or is damaged"):
        load(path)
    np.savez(path, description=np.array([Trap()], dtype=object))
    with pytest.raises(ResultFileError, match=r"trap\.npz is not a result of layerlens, or is damaged"):
        load(path)


def test_a_missing_file_and_a_missing_folder(tmp_path):
    with pytest.raises(ResultFileError) as error:
        load(tmp_path / "none.npz")
    assert str(error.value) == f"there is no file {tmp_path / 'none.npz'}."
    with pytest.raises(ResultFileError) as error:
        attribution().save(tmp_path / "no" / "r")
    assert str(error.value) == (
        f"cannot save to {tmp_path / 'no' / 'r.npz'}: the folder {tmp_path / 'no'} does not exist. Make it first."
    )


def damage(path, how):
    data = path.read_bytes()
    if how == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif how == "flipped":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes(byte ^ 255 for byte in data[middle : middle + 40]) + data[middle + 40 :])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("no archive")
    elif how == "one array":
        np.save(path.with_suffix(".npy"), np.ones(3))
        path.with_suffix(".npy").replace(path)
    elif how == "another archive":
        np.savez(path, weights=np.ones(3))
    elif how == "array gone":
        with np.load(path) as archive:
            description = archive["description"]
        np.savez(path, description=description)


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "text", "one array", "another archive", "array gone"])
def test_a_damaged_file_says_so(how, tmp_path):
    path = attribution().save(tmp_path / "r.npz")
    damage(path, how)
    with pytest.raises(ResultFileError, match=r"r\.npz is not a result of layerlens, or is damaged \("):
        load(path)
    gc.collect()  # a file that numpy left open would warn here


def test_another_format_and_another_class(tmp_path):
    path = ledger().save(tmp_path / "r.npz")
    with pytest.raises(ResultFileError, match=r"r\.npz holds a Ledger, not a Attribution\."):
        Attribution.load(path)
    text = json.dumps({"format": "layerlens-result/9", "value": None})
    np.savez(path, description=np.frombuffer(text.encode(), dtype=np.uint8))
    with pytest.raises(
        ResultFileError, match=r"has format 'layerlens-result/9'; this layerlens reads 'layerlens-result/1'"
    ):
        load(path)
    text = json.dumps({"format": "layerlens-result/1", "value": {"class": "Popen", "fields": {}}})
    np.savez(path, description=np.frombuffer(text.encode(), dtype=np.uint8))
    with pytest.raises(ResultFileError, match=r"is not a result of layerlens, or is damaged \('Popen'\)"):
        load(path)


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(error, tmp_path, monkeypatch):
    path = attribution(method="old").save(tmp_path / "r.npz")

    def fail(file, **arrays):
        file.write(b"half")
        raise error

    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(type(error)):
        attribution(method="new").save(path)
    with pytest.raises(type(error)):
        attribution().save(tmp_path / "other")
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.npz"]
    assert load(path).method == "old"


def test_a_setting_that_cannot_be_kept_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ResultFileError, match=r"cannot save a value of type object: <object"):
        attribution(settings={"x": object()}).save(tmp_path / "r")
    assert not list(tmp_path.iterdir())


def test_a_file_is_as_readable_as_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    path = attribution().save(tmp_path / "r")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_subclass_of_tuple_comes_back_as_a_tuple(tmp_path):
    path = attribution(settings={"shape": torch.Size([2, 3])}).save(tmp_path / "r")
    assert load(path).settings == {"shape": (2, 3)}


# -- showing -----------------------------------------------------------------------------------------------------------


def test_repr_of_an_attribution():
    assert repr(attribution()) == (
        "Attribution(method: gradient x input, target: class 1, values: float32 (2, 3, 4, 4), in score, "
        "score: 1.5, -2.25, completeness gap: 0, 1e-07)"
    )
    many = attribution(values={"ids": normal(2, 3), "row": normal(2, 5)})
    assert "values: ids float32 (2, 3); row float32 (2, 5), in score" in repr(many)
    assert "score: 0, 1, 2, ... (9)" in repr(attribution(score=torch.arange(9.0)))


@pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS)
def test_every_result_shows_itself(make):
    result = make()
    assert len(repr(result)) < 1000 and "tensor(" not in repr(result)
    page = result._repr_html_()
    if isinstance(result, LayerTable):
        rows = len(result) + 1
    elif isinstance(result, Leaderboard):
        rows = len(result.table())
    else:
        rows = len(result.summary()) + len(getattr(result, "settings", ()))
    assert page.count("<tr>") == page.count("</tr>")
    assert page.count("<tr>") == rows


@pytest.mark.parametrize(
    "result",
    [
        attribution(target="<script>alert(1)</script> & co", checks={"<b>": torch.zeros(2)}),
        table(rows=(LayerRow("<script>", "A&B", None, "", 0, 0, None),)),
        profile(quantity="<script>"),
    ],
    ids=["attribution", "table", "profile"],
)
def test_html_is_escaped(result):
    page = result._repr_html_()
    assert "<script>" not in page and "<b>" not in page and "&lt;" in page


def test_the_layer_table_as_text():
    lines = repr(table()).splitlines()
    assert lines[0] == "Net: layers 3, parameters 1,210, one forward 12.5 ms"
    assert [line.split() for line in lines[1:]] == [
        ["path", "type", "calls", "output", "axes", "parameters", "time"],
        ["(model)", "Net", "1", "(2,", "3)", "1,210", "25.0%"],
        ["conv", "Conv2d", "2", "(2,", "8,", "4,", "4)", "1,200", "75.0%"],
        ["exit", "Linear", "did", "not", "run", "10"],
        ["new", "ReLU"],
    ]
    long = table(rows=tuple(LayerRow(f"layer{k}", "ReLU", 1, "", 0, 0, 0.0) for k in range(90)))
    assert len(repr(long).splitlines()) == 42 and "51 more" in repr(long)


# -- what results compute ----------------------------------------------------------------------------------------------


def test_tensor_and_numpy():
    assert isinstance(attribution().numpy(), np.ndarray)
    assert attribution(values=normal(2, 3).bfloat16()).numpy().dtype == np.float32
    several = attribution(values={"a": normal(2, 3), "b": normal(2, 5)})
    assert {name: array.shape for name, array in several.numpy().items()} == {"a": (2, 3), "b": (2, 5)}
    assert attribution().tensor.shape == (2, 3, 4, 4)
    with pytest.raises(InputError, match=r"there are values for several inputs: a, b\. Take one: \.values\[name\]"):
        _ = several.tensor


def test_the_ledger_adds_up():
    book = ledger()
    assert (
        book.inputs.tolist() == [2, 1] and book.additive.tolist() == [0.75, -2] and book.absorbed.tolist() == [0.25, 0]
    )
    assert book.residual.tolist() == [0, 0] and book.residual.dtype == torch.float64
    assert book.gap.tolist() == pytest.approx([1 / 3, 2])
    broken = dataclasses.replace(book, score=torch.tensor([3.0, -1.5]))
    assert broken.residual.tolist() == [0, -0.5] and broken.relative.tolist() == [0, 0.25] and broken.worst == 1
    assert book.table(0)[0] == ("", "x", "input", 2.0) and len(book.table()) == 4
    assert book.by_layer()["fc"]["additive"].tolist() == [0.75, -2] and list(book.by_layer()) == ["input", "fc", "act"]
    assert Ledger(torch.zeros(2), ()).relative.tolist() == [0, 0]


def test_a_profile_ranks_its_layers():
    assert profile().ranked()[0] == ("relu", 3.0)
    both = profile(values=torch.tensor([[1.0, 9.0], [3.0, 0.0], [2.0, 1.0]]), series=("a", "b"))
    assert [name for name, _ in both.ranked(1)] == ["conv", "relu #1", "relu"]
    assert both.to_pandas().loc["relu"].tolist() == [3, 0] and list(both.to_pandas()) == ["a", "b"]
    assert list(profile().to_pandas()) == ["Jacobian norm"]


def test_maps_name_their_strongest_units():
    assert maps().strongest(2) == [(9, 15.5), (5, 11.5)]
    assert maps().strongest(50)[-1][0] == 0
    assert "layer: conv #1" in repr(maps())


def test_the_table_as_a_data_frame_and_without_pandas(monkeypatch):
    frame = table().to_pandas()
    assert list(frame["path"]) == ["", "conv", "exit", "new"]
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    for result in (table(), profile()):
        with pytest.raises(MissingPackage, match=r"to_pandas needs pandas: pip install 'layerlens-torch\[pandas\]'"):
            result.to_pandas()


def test_results_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        attribution().method = "other"


def test_measurements_are_ordered_looked_up_and_explained():
    found = ranking(values=torch.tensor([[1.0, 0.0], [-3.0, 2.0], [2.0, 1.0]]))
    assert [name for name, _ in found.ranked()] == ["b", "c", "a"]
    assert [name for name, _ in found.ranked("two")] == ["b", "c", "a"]
    assert ranking(signed=False, values=found.values).ranked()[0] == ("c", 2.0)
    assert found.explain() == "What it means. What it does not."
    with pytest.raises(OptionError, match=r"unknown series 'tow'\. Closest: two"):
        found.column("tow")
    grid = matrix(values=torch.tensor([[1.0, float("nan"), 3.0], [2.0, 0.0, 5.0]]))
    assert grid.at("b", "z") == 5 and grid.ranked()[0] == ("b", "z", 5.0) and len(grid.ranked()) == 5
    with pytest.raises(OptionError, match="there is no layer 'c'"):
        grid.at("c", "x")
    assert curve().of("pgd").shape == (2,)
    with pytest.raises(OptionError, match=r"unknown series 'pdg'\. Closest: pgd"):
        curve().of("pdg")
    assert "Nothing is said of limits" in profile(explanation=("", "")).explain()


@pytest.mark.parametrize("make", [ranking, matrix, curve])
def test_measurements_become_tables(make):
    pytest.importorskip("pandas")
    found = make()
    table = found.to_pandas()
    values = found.values.T if make is curve else found.values
    assert np.array_equal(table.to_numpy(), values.numpy())
    assert np.array_equal(found.numpy(), found.values.numpy())


def test_a_lens_says_what_is_likeliest_and_from_where_on_it_is():
    found = lens()
    assert found.says("b", "y") == [("seven", 0.5), ("4", 0.25)]
    assert found.settles("y") == "b"  # likeliest in b and c
    assert found.settles("x") == "c"  # in a as well, but not in b between
    assert lens(targets=(3, 7)).settles(0) is None
    with pytest.raises(OptionError, match="there is no position 'z'"):
        found.says("a", "z")
    with pytest.raises(OptionError, match="there are 3 layers, and no number 3"):
        found.says(3, 0)
    assert ("target", "4, seven") in found.summary()


def test_health_tells_every_number_of_a_layer():
    found = health(values=torch.tensor([[0.5, 0.25], [0.0, 0.0]]))
    told = found.of("a")
    assert told["dead"] == 0.5 and told["samples"] == 40 and "gradient norm" not in told
    assert list(found.to_pandas().columns) == ["dead", "doubled", "mean", "std", "samples", "bound of dead"]
    assert dict(found.summary())["dead units"] == "a (2)"
    assert dict(health(dead={}).summary())["dead units"] == "none"
    with pytest.raises(OptionError, match=r"there is no layer 'c'"):
        found.of("c")


def test_a_control_answers_to_its_old_name():
    board = Leaderboard(("mine", "center"), ("deletion",), torch.ones(2, 1, 3), (False,), ("center",), "1", {})
    with pytest.warns(DeprecationWarning, match="the control 'centre' is now 'center'"):
        assert board.mean("centre") == board.mean("center") == 1
