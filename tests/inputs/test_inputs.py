import collections

import numpy as np
import pytest
import torch
from torch import nn

from layerlens.errors import InputError
from layerlens.inputs.inputs import Inputs, as_inputs
from tests.cases import normal


class Echo(nn.Module):
    def forward(self, *args, **kwargs):
        return args, kwargs


X = normal(2, 3)


def test_a_tensor_is_the_one_argument():
    given = as_inputs(X)
    assert given.args[0] is X and given.kwargs == {}
    assert given.batch == 2 and list(given.tensors()) == ["0"]


def test_a_tuple_or_list_is_several_arguments():
    for kind in (tuple, list):
        given = as_inputs(kind([X, None, [X, 3]]))
        assert given.args == (X, None, [X, 3]) and given.kwargs == {}
        assert list(given.tensors()) == ["0", "2.0"]


def test_a_mapping_is_keyword_arguments():
    for mapping in ({"a": X, "flag": True}, collections.UserDict(a=X, flag=True)):
        given = as_inputs(mapping)
        assert given.args == () and given.kwargs == {"a": X, "flag": True}
        assert list(given.tensors()) == ["a"]


def test_an_encoding_of_a_tokenizer_is_keyword_arguments():
    from transformers import BatchEncoding

    ids = torch.ones(2, 4, dtype=torch.long)
    given = as_inputs(BatchEncoding({"input_ids": ids, "attention_mask": ids}))
    assert list(given.kwargs) == ["input_ids", "attention_mask"] and given.batch == 2


def test_inputs_are_read_once():
    given = as_inputs(X)
    assert as_inputs(given) is given


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.float64, torch.float32), (np.float32, torch.float32), (np.int64, torch.int64), (np.bool_, torch.bool)],
)
def test_numpy_arrays_become_tensors_of_their_own(dtype, expected):
    array = np.ones((2, 3), dtype=dtype)
    for given in (as_inputs(array), as_inputs((array,)), as_inputs({"0": array})):
        tensor = given.tensors()["0"]
        assert tensor.dtype == expected
        tensor.zero_()
        assert array.all()


def test_run_passes_copies():
    args, kwargs = as_inputs((X, "text")).run(Echo())
    assert torch.equal(args[0], X) and args[0] is not X and args[1] == "text" and kwargs == {}
    args[0].zero_()
    assert X.any()


def test_run_keeps_the_graph():
    x = X.clone().requires_grad_()
    args, _ = as_inputs(x).run(Echo())
    (gradient,) = torch.autograd.grad(args[0].sum(), x)
    assert torch.equal(gradient, torch.ones(2, 3))


def test_run_by_a_forward_of_the_user():
    given = as_inputs({"a": X})
    assert given.run("model", lambda model, a: (model, a.shape)) == ("model", (2, 3))


def test_floating_leaves_out_masks_and_ids():
    given = as_inputs({"ids": torch.ones(2, 3, dtype=torch.long), "mask": X > 0, "x": X, "half": X.half()})
    assert list(given.floating()) == ["x", "half"]


def test_replace_exchanges_by_name_and_leaves_the_containers_of_the_caller():
    nested = {"deep": [X, X]}
    given = as_inputs((X, nested))
    other = given.replace({"1.deep.1": X + 1})
    assert torch.equal(other.args[1]["deep"][1], X + 1) and other.args[1]["deep"][0] is X and other.args[0] is X
    assert nested["deep"][1] is X and given.args[1] is nested
    other = as_inputs({"a": X, "b": X}).replace({"b": -X})
    assert other.kwargs["a"] is X and torch.equal(other.kwargs["b"], -X)


def test_rows_take_samples_of_every_tensor_with_a_batch():
    given = Inputs((X, torch.tensor(3.0), "text"), {"mask": torch.ones(2, 1)})
    rows = given.rows(torch.tensor([1, 1, 0]))
    assert torch.equal(rows.args[0], X[[1, 1, 0]]) and rows.args[1].item() == 3 and rows.args[2] == "text"
    assert rows.kwargs["mask"].shape == (3, 1) and rows.batch == 3
    some = given.rows(torch.tensor([1, 1, 0]), but={"mask"})
    assert some.kwargs["mask"] is given.kwargs["mask"] and torch.equal(some.args[0], X[[1, 1, 0]])


def test_the_batch_must_be_agreed_on():
    with pytest.raises(InputError) as error:
        _ = as_inputs({"a": X, "b": normal(3, 1)}).batch
    assert str(error.value).startswith(
        "the inputs differ in their first axis, which must be the batch: a: 2, b: 3. Where no axis counts samples"
    )
    with pytest.raises(InputError, match=r"no tensor with a batch axis; give tensors of shape \(batch, \.\.\.\)"):
        _ = as_inputs(torch.tensor(1.0)).batch


@pytest.mark.parametrize(
    ("x", "text"),
    [
        ("a text", "text needs a tokenizer: Lens(model, tokenizer=...), or pass the encoding as a dict."),
        (["one", "two"], "text needs a tokenizer"),
        (3, "cannot pass int to a model. Give a tensor, a tuple of tensors, or a dict."),
        (None, "cannot pass NoneType to a model."),
        ({1: X}, "a dict input is passed as keyword arguments; its keys must be str, got [1]."),
        ({"a": 3}, "the input (dict with a) holds no tensor."),
        ((), "the input (tuple of 0) holds no tensor."),
        (torch.zeros(0, 3), "input '0' is empty: float32 (0, 3)."),
        ({"x": torch.tensor([1.0, float("nan")])}, "input 'x' (float32 (2,)) holds NaN; every number computed from it"),
        (np.array([1j]), "cannot make a tensor of a numpy array of dtype complex128."),
        (np.array(["a"]), "cannot make a tensor of a numpy array of dtype <U1."),
    ],
)
def test_what_no_model_takes_is_refused(x, text):
    with pytest.raises(InputError) as error:
        as_inputs(x)
    assert str(error.value).startswith(text)


def test_infinity_is_allowed_for_masks():
    as_inputs({"x": X, "mask": torch.full((2, 3), float("-inf"))})


def test_every_case_is_read_and_runs(case):
    given = as_inputs(case.example())
    names = list(given.tensors())
    assert names == list(given.map(torch.clone).tensors())
    given.rows(torch.tensor([1])).run(case.build())


def test_an_error_of_the_model_says_what_it_was_run_on():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.Flatten(), torch.nn.Linear(2 * 36, 4))
    for x, said in ((torch.ones(3, 8, 8), "float32 (3, 8, 8)"), ({"input": torch.ones(1, 3, 9, 9)}, "input float32")):
        with pytest.raises(InputError) as error:
            as_inputs(x).run(net)
        assert str(error.value).startswith(f"Sequential does not take {said}")

        def fails(*_, **__):
            raise RuntimeError("something of the model itself")

        with pytest.raises(RuntimeError) as error:
            as_inputs(x).run(net, fails)
        if hasattr(error.value, "add_note"):  # Python 3.11 and newer
            (note,) = error.value.__notes__
            assert note.startswith(f"The model was run on {said}") and "the first axis is the batch" in note
    with pytest.raises(InputError) as error:  # an error of ours says all by itself
        as_inputs(X).run(net, lambda *_: as_inputs(None))
    assert not hasattr(error.value, "__notes__")
