import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import layerlens
from layerlens import Lens
from layerlens.errors import InputError, OptionError
from layerlens.inputs.batches import Data
from layerlens.inputs.inputs import as_inputs
from tests.cases import normal

NAMES = ("age", "bmi", "smoker")


def table(rows=4):
    values = normal(rows, 3).numpy()
    frame = pd.DataFrame(values, columns=list(NAMES), index=[f"p{row}" for row in range(rows)])
    return frame.assign(smoker=frame["smoker"] > 0)


def net(columns=3, dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(columns, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


class Embedded(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 3), nn.Linear(6, 2)

    def forward(self, ids):
        return self.head(self.words(ids).flatten(1))


class Two(nn.Module):
    def forward(self, left, right):
        return left.sum(dim=1) * 2 + (right * torch.tensor([1.0, 3.0])).sum(dim=1) * left[:, 0]


def test_a_table_is_its_numbers_with_names():
    frame = table()
    given = as_inputs(frame)
    assert torch.equal(given.args[0], torch.from_numpy(frame.to_numpy(np.float32)))
    assert given.features == {"0": NAMES} and given.index == ("p0", "p1", "p2", "p3")
    assert given.rows(torch.tensor([2, 0])).index == ("p2", "p0")


def test_a_series_is_one_sample():
    given = as_inputs(table().loc["p2"])
    assert given.args[0].shape == (1, 3) and given.features == {"0": NAMES} and given.index == ("p2",)


def test_numbers_are_no_names():
    given = as_inputs(pd.DataFrame(np.ones((2, 3))))
    assert given.features == {} and given.index is None
    assert as_inputs(table().reset_index(drop=True)[2:]).index == (2, 3)


def test_nullable_and_nested_columns():
    frame = pd.DataFrame({("a", "x"): [1, 2], ("a", "y"): [0.5, 1]}).astype("Float64")
    given = as_inputs({"one": frame, "two": torch.zeros(2, 1)})
    assert given.features == {"one": ("a / x", "a / y")} and given.kwargs["one"].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda frame: frame.assign(city="Bonn", day=pd.Timestamp("2020")), r"'city' \(.*\), 'day' .* hold no numbers"),
        (lambda frame: frame.assign(city="Bonn").iloc[0], "'city' .*get_dummies.*df.drop"),
        (lambda frame: frame.assign(bmi=[1, None, 2, None]), r"missing in column\(s\) 'bmi' \(2 of 4\)"),
        (lambda frame: frame.rename(columns={"bmi": "age"}), "several columns are named 'age'"),
        (lambda frame: (frame, frame["age"]), "a Series next to other inputs"),
        (lambda frame: (frame, frame[::-1]), "different names"),
    ],
)
def test_a_table_that_is_not_of_numbers_is_refused(change, said):
    with pytest.raises(InputError, match=said):
        as_inputs(change(table()))


def test_the_dtype_is_that_of_the_model():
    frame, model = table(), net(dtype=torch.float64)
    found = Lens(model).saliency(frame, target=0, method="gradient")
    assert found.tensor.dtype == torch.float64
    expected = Lens(model).saliency(torch.from_numpy(frame.to_numpy(np.float64)), target=0, method="gradient")
    assert torch.allclose(found.tensor, expected.tensor, atol=1e-14)
    assert Lens(model).inputs(frame.to_numpy(np.float32)).args[0].dtype == torch.float64


def test_whole_numbers_are_what_the_model_takes():
    frame = pd.DataFrame({"a": [1, 2], "b": [3, 4]})
    assert Lens(net(2)).inputs(frame).args[0].dtype == torch.float32
    assert Lens(Embedded()).inputs(frame).args[0].dtype == torch.int64
    assert Lens(Embedded()).saliency(frame, target=0, method="gradient").tensor.shape == (2, 2)


def test_names_are_in_results_files_and_tables(tmp_path):
    frame, lens = table(), Lens(net())
    found = lens.saliency(frame, target=0, method="gradient")
    for one in (found, layerlens.load(found.save(tmp_path / "found")), found - found, lens.relevance(frame, target=0)):
        assert one.features == {"0": NAMES} and one.index == tuple(frame.index)
    wide = found.to_frame()
    assert list(wide.columns) == list(NAMES) and list(wide.index) == list(frame.index)
    assert np.array_equal(wide.to_numpy(), found.numpy())
    long = found.to_pandas()
    picked = long[(long["sample"] == "p2") & (long["feature"] == "bmi")]["value"].item()
    assert picked == wide.loc["p2", "bmi"]
    assert found.sample_name(1) == "p1" and found.features_of() == NAMES


def test_names_can_be_given_to_a_result():
    found = Lens(net()).saliency(normal(2, 3), target=0, method="gradient")
    assert found.features == {} and found.sample_name(1) == "1"
    named = found.named(NAMES, index=["x", "y"])
    assert list(named.to_frame().columns) == list(NAMES) and named.index == ("x", "y")
    with pytest.raises(InputError, match="2 names of features were given for input '0' of shape"):
        found.named(["a", "b"])
    with pytest.raises(InputError, match="differ from each other"):
        found.named(["a", "a", "b"])
    with pytest.raises(InputError, match="1 names were given for 2 sample"):
        found.named(index=["x"])
    with pytest.raises(InputError, match="different index"):
        named + named.named(index=["y", "x"])


def test_feature_names_of_a_lens():
    lens = Lens(net(), feature_names=NAMES)
    assert lens.saliency(normal(2, 3), target=0, method="gradient").features == {"0": NAMES}
    with pytest.raises(InputError, match="not the feature_names= of the model, in their order"):
        lens.saliency(table()[list(NAMES[::-1])])
    with pytest.raises(InputError, match="2 names of features"):
        Lens(net(), feature_names=["a", "b"]).saliency(normal(2, 3))
    two = Lens(Two(), feature_names={"left": ["l"], "right": ["r0", "r1"]})
    found = two.saliency((normal(2, 1), normal(2, 2)), method="gradient")
    assert found.features == {"0": ("l",), "1": ("r0", "r1")}
    with pytest.raises(OptionError, match="unknown input in feature_names= 'x'"):
        Lens(net(), feature_names={"x": NAMES}).saliency(normal(2, 3))


def test_a_series_of_steps_has_names_of_channels():
    lens = Lens(nn.Sequential(nn.Conv1d(3, 2, 3), nn.Flatten(), nn.Linear(8, 2)), feature_names=NAMES)
    found = lens.saliency(normal(2, 3, 6), target=0, method="gradient")
    assert set(found.to_pandas()["channel"]) == set(NAMES)


def test_groups_of_columns_have_their_shapley_value():
    left, right = pd.DataFrame({"l": [2.0, 1.0]}), pd.DataFrame({"r0": [1.0, 2.0], "r1": [3.0, 0.5]})
    found = Lens(Two()).saliency((left, right), method="kernel_shap", features={"a": ["l", "r1"], "b": ["r0"]})
    x, y, z = (torch.tensor(one.to_numpy(np.float32)) for one in (left["l"], right["r0"], right["r1"]))
    both, alone, whole = 2 * x + 3 * z * x, torch.zeros(2), 2 * x + (y + 3 * z) * x
    expected = (both + whole - alone) / 2  # of a: before and after b
    assert torch.allclose(found.values["0"][:, 0], expected)
    assert torch.allclose(found.values["1"], torch.stack([whole - expected, expected], dim=1))
    with pytest.raises(OptionError, match="unknown column 'r2'"):
        Lens(Two()).saliency((left, right), method="kernel_shap", features={"a": ["r2"]})
    with pytest.raises(OptionError, match="give columns by their names"):
        Lens(Two()).saliency((left, right), method="kernel_shap", features={"a": [0]})


def test_sobol_and_morris_name_the_columns():
    frame = pd.DataFrame(normal(80, 3).numpy(), columns=list(NAMES))
    lens = Lens(net())
    assert lens.sobol(frame, target=0, samples=64, replicates=1).items == NAMES
    assert lens.morris(frame, target=0).items == NAMES
    assert lens.morris(frame, target=0, features={"body": ["age", "bmi"], "other": ["smoker"]}).items == (
        "body",
        "other",
    )


def test_a_table_is_a_data_set():
    frame = table(5)
    whole = list(Data(frame, labels=frame["smoker"].astype(int), batch_size=2).batches())
    assert [batch.inputs.index for batch in whole] == [("p0", "p1"), ("p2", "p3"), ("p4",)]
    assert torch.equal(torch.cat([batch.inputs.args[0] for batch in whole]), as_inputs(frame).args[0])
    rows = list(Data([frame.iloc[row] for row in range(5)], batch_size=3).batches())
    assert [batch.inputs.index for batch in rows] == [("p0", "p1", "p2"), ("p3", "p4")]
    with pytest.raises(InputError, match="a Series is one sample, not a data set"):
        list(Data(frame["age"]).batches())


def test_figures_show_the_names():
    found = Lens(net()).saliency(table(), target=0, method="gradient")
    texts = [label.get_text() for axes in found.plot(sample=1).fig.axes for label in axes.get_yticklabels()]
    assert [text for text in texts if text in NAMES] == list(NAMES)


def test_references_are_read_as_the_input():
    frame, lens = table(8).assign(smoker=0.5), Lens(net())
    numbers = lens.inputs(frame).args[0]
    found = lens.saliency(frame, target=0, method="kernel_shap", baseline=frame.mean())
    expected = lens.saliency(numbers, target=0, method="kernel_shap", baseline=numbers.mean(dim=0))
    assert torch.allclose(found.tensor, expected.tensor, atol=1e-6)
    assert lens.saliency(frame, target=0, method="gradient_shap", baselines=frame[:4]).features == {"0": NAMES}
    with pytest.raises(InputError, match="the reference has other columns than input '0', or in another order"):
        lens.saliency(frame, target=0, method="kernel_shap", baseline=frame.mean()[::-1])


def test_groups_of_samples_differ_in_named_columns():
    frame, lens = table(30), Lens(net())
    found = lens.compare_groups(frame, groups=frame["age"] > 0, permutations=50).attributions["input"]
    assert found.features == NAMES and any(f"at {name}" in text for _, text in found.summary() for name in NAMES)
    texts = [label.get_text() for axes in found.plot().axes for label in axes.get_yticklabels()]
    assert [text for text in texts if text in NAMES] == list(NAMES)


def test_a_store_keeps_the_names():
    for frame in (table(20), table(20).reset_index(drop=True)):
        store = Lens(net()).over(frame, batch_size=8).saliency(target=0, method="gradient")
        found = store.attribution([3, 17])
        assert found.features == {"0": NAMES} and found.index == tuple(frame.index[[3, 17]])
        few = Lens(net()).saliency(frame.iloc[[3, 17]], target=0, method="gradient")
        assert torch.allclose(found.tensor, few.tensor, atol=1e-6)


def test_a_row_of_numbers_by_column_is_a_table():
    lens = Lens(net())
    given = lens.inputs({"age": 1.0, "bmi": 2, "smoker": True, "label": 1})
    assert torch.equal(given.args[0], torch.tensor([[1.0, 2.0, 1.0]])) and given.features == {"0": NAMES}
    rows = [{"age": 1.0, "bmi": float(k), "smoker": 0.0, "label": k} for k in range(3)]
    (batch,) = Data(rows, read=lens.inputs).batches()
    assert batch.labels == [0, 1, 2] and batch.inputs.features == {"0": NAMES}


def test_a_table_of_another_library_is_refused_with_a_way_out():
    class Other:
        def to_pandas(self):
            return table()

    with pytest.raises(InputError, match=r"cannot pass Other to a model.*Try .to_pandas\(\)"):
        as_inputs(Other())


def test_figures_of_several_samples_name_them():
    found = Lens(net()).saliency(table(3), target=0, method="gradient")
    fig = found.plot().fig
    texts = " ".join(text.get_text() for text in fig.findobj(lambda part: hasattr(part, "get_text")))
    assert all(f"{name}, sample {number}" in texts for number, name in enumerate(found.index))
    assert "p1, sample 1 of 3" in " ".join(
        text.get_text() for text in found.plot(sample=1).fig.findobj(lambda part: hasattr(part, "get_text"))
    )
