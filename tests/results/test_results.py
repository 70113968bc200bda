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
    Attribution,
    LayerRow,
    LayerTable,
    Leaderboard,
    Ledger,
    Result,
    load,
)
from tests.cases import normal
from tests.results.examples import (
    RESULTS,
    VARIANTS,
    attribution,
    curve,
    health,
    ledger,
    lens,
    maps,
    matrix,
    profile,
    ranking,
    relevance,
    table,
)


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
    gc.collect(1)  # a file that numpy left open would warn here


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

    def fail(file, array, **how):
        file.write(b"half")
        raise error

    monkeypatch.setattr(np.lib.format, "write_array", fail)
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
