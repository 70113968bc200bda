import collections
import copy
import dataclasses
import typing

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from layerlens.errors import LayerNotFound, OverwrittenError, RecordError
from layerlens.inputs.inputs import as_inputs
from layerlens.model.layers import Layers
from layerlens.probes.probe import Probe
from layerlens.probes.run import capture
from tests.cases import CASES, normal


def net(*layers, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(*layers).eval()


def tensors(value):
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def same(left, right):
    left, right = tensors(left), tensors(right)
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# -- every model of the zoo, against hooks written here ----------------------------------------------------------------


def raw_calls(model, x):
    """Every call of every module by hooks that know nothing of layerlens; values are cloned at once."""
    calls = collections.defaultdict(list)
    order = []

    def hook(path):
        def after(module, args, kwargs, output):
            calls[path].append(pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone(), (args, kwargs, output)))
            order.append(path)

        return after

    handles = [m.register_forward_hook(hook(path), with_kwargs=True) for path, m in model.named_modules()]
    state = torch.get_rng_state()
    try:
        with torch.no_grad():
            model(**x) if isinstance(x, dict) else model(x)
    finally:
        torch.set_rng_state(state)
        for handle in handles:
            handle.remove()
    return calls, order


@pytest.mark.parametrize("keep", ["auto", "clone", "cpu"])
def test_every_layer_of_every_case_is_captured_as_raw_hooks_see_it(case, keep, hooks_of):
    model = case.build()
    expected, order = raw_calls(model, case.example())
    record = capture(model, case.example(), ["", "**"], keep=keep)
    assert [call.layer for call in record.order] == order
    assert [call.order for call in record.order] == list(range(len(order)))
    for path in Layers(model):
        assert [call.index for call in record.calls(path)] == list(range(len(expected[path])))
        for call, (_, _, output) in zip(record.calls(path), expected[path], strict=True):
            assert type(call.output) is type(output), path
            assert same(call.output, output), path
            assert not any(tensor.requires_grad for tensor in tensors(call.output))
    assert hooks_of(model) == 0


def test_inputs_of_every_case_are_those_on_entry(case):
    """The oracle copies before the layer runs: an in-place layer must not show its output as its input."""
    model = case.build()
    expected = collections.defaultdict(list)
    handles = [
        module.register_forward_pre_hook(
            lambda module, args, kwargs, path=path: expected[path].append(copy.deepcopy(tensors((args, kwargs)))),
            with_kwargs=True,
        )
        for path, module in model.named_modules()
        if path
    ]
    state = torch.get_rng_state()
    with torch.no_grad():
        as_inputs(case.example()).run(model)
    torch.set_rng_state(state)
    for handle in handles:
        handle.remove()
    record = capture(model, case.example(), inputs=True)
    for path in record:
        seen = [tensors(call.inputs) for call in sorted(record.calls(path), key=lambda call: call.index)]
        assert same(seen, expected[path]), path


# -- what peers get wrong, row by row ----------------------------------------------------------------------------------


def test_a_layer_called_three_times_keeps_every_call():
    model = CASES["video"].build()
    record = capture(model, CASES["video"].example(), ["frame.4", "lstm"])
    calls = record.calls("frame.4")
    assert [call.index for call in calls] == [0, 1, 2]
    frames = torch.stack([model.frame(frame) for frame in CASES["video"].example().unbind(1)])
    assert torch.equal(torch.stack([call.output for call in calls]), frames)
    assert not torch.equal(calls[0].output, calls[2].output)
    with pytest.raises(RecordError, match=r"^layer 'frame\.4' ran 3 times; take one with record\.calls\('frame\.4'\)"):
        record["frame.4"]


def test_a_shared_module_answers_to_both_names():
    one = nn.Linear(3, 3)
    model = net(one, nn.ReLU(), one)
    record = capture(model, normal(2, 3))
    assert len(record.calls("0")) == len(record.calls("2")) == 2
    assert "2" in record and list(record) == ["0", "1"]
    assert torch.equal(record.calls("2")[1].output, model(normal(2, 3)))


def test_an_lstm_returns_its_tuple():
    model = CASES["lstm"].build()
    output, (hidden, cell) = capture(model, normal(2, 5, 4))["rnn"]
    assert output.shape == (2, 5, 6) and hidden.shape == cell.shape == (2, 2, 6)
    assert torch.equal(output[:, -1], hidden[1])


def test_nested_outputs_keep_their_shape_and_none_its_place():
    record = capture(CASES["nested"].build(), normal(2, 6), ["", "split"])
    low, nothing, rest = record["split"]
    assert nothing is None and rest["count"] == 2 and isinstance(rest["high"], list)
    first, middle, last = record[""]
    assert first is None and list(middle) == ["logits", "nothing"] and middle["nothing"] is None
    assert torch.equal(last[0], low) and torch.equal(last[1], rest["high"][0])


class Pair(typing.NamedTuple):
    mean: torch.Tensor
    spread: torch.Tensor | None


@dataclasses.dataclass
class Bundle:
    pair: Pair
    name: str


class Rich(nn.Module):
    def forward(self, x):
        return Bundle(Pair(x.mean(1), None), "rich")


def test_named_tuples_and_dataclasses_stay_what_they_are():
    record = capture(nn.Sequential(Rich()), normal(2, 3))
    output = record["0"]
    assert isinstance(output, Bundle) and isinstance(output.pair, Pair)
    assert output.name == "rich" and output.pair.spread is None
    assert torch.equal(output.pair.mean, normal(2, 3).mean(1))


def test_a_model_output_stays_a_model_output():
    from transformers.modeling_outputs import SequenceClassifierOutput

    case = CASES["hf_bert"]
    output = capture(case.build(), case.example(), "")[""]
    assert isinstance(output, SequenceClassifierOutput)
    assert output.loss is None and output.logits is output["logits"] and output.logits.shape == (2, 3)


@pytest.mark.parametrize("how", ["capture", "clone", "cpu", "graph"])
def test_a_relu_in_place_after_the_layer_does_not_change_what_was_recorded(how):
    model = net(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    x = normal(2, 4)
    truth = model[0](x).detach().clone()
    assert (truth < 0).any()
    if how == "capture":
        record = capture(model, x)
    else:
        with Probe(model, graph=how == "graph", keep="clone" if how == "graph" else how) as record:
            model(x)
    assert torch.equal(record["0"], truth)
    assert torch.equal(record["1"], truth.relu())


def test_reading_an_overwritten_reference_raises():
    model = net(nn.Linear(4, 8), nn.ReLU(inplace=True))
    with Probe(model, keep="reference") as record:
        model(normal(2, 4))
    assert record.calls("0")[0].overwritten and not record.calls("1")[0].overwritten
    with pytest.raises(OverwrittenError) as error:
        record["0"]
    assert str(error.value) == (
        "layer '0', call 0: a later operation wrote into this output in place, so its value is lost. Capture with "
        "keep='clone' (or keep='auto' of lens.capture)."
    )


def test_the_input_of_an_in_place_layer_is_not_its_output():
    model = net(nn.Linear(4, 8), nn.ReLU(inplace=True))
    x = normal(2, 4)
    record = capture(model, x, "1", inputs=True)
    assert torch.equal(record.calls("1")[0].inputs[0][0], model[0](x))
    assert (record.calls("1")[0].inputs[0][0] < 0).any()
    with Probe(model, "1", keep="reference", inputs=True) as record:
        model(x)
    assert (record["1"] >= 0).all()  # the output is intact and can be read
    with pytest.raises(OverwrittenError, match="wrote into this input in place"):
        record.calls("1")[0].inputs  # noqa: B018


def test_inference_tensors_do_not_count_writes_and_are_copied():
    model = net(nn.Linear(4, 8), nn.ReLU(inplace=True))
    with torch.inference_mode(), Probe(model, keep="reference") as record:
        model(normal(2, 4))
    assert torch.equal(record["0"], model[0](normal(2, 4)))


def test_auto_copies_only_what_was_overwritten():
    model = net(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    runs = []
    model.register_forward_pre_hook(lambda module, args: runs.append(1))
    capture(model, normal(2, 4), "2")
    assert len(runs) == 1
    record = capture(model, normal(2, 4))
    assert len(runs) == 2
    assert not record.calls("0")[0].stored and record.calls("2")[0].stored


def test_auto_runs_a_random_model_the_same_way_twice():
    drawn = []
    model = net(nn.Linear(4, 8), nn.ReLU(), Noise(drawn.append), nn.ReLU(inplace=True))
    capture(model, normal(2, 4))
    model[1].inplace = True  # which takes a second run to find
    record = capture(model, normal(2, 4))
    assert len(drawn) == 3 and torch.equal(*drawn[1:])
    assert torch.equal(record["2"], record["1"] + drawn[1])


class Noise(nn.Module):
    def __init__(self, note):
        super().__init__()
        self.note = note

    def forward(self, x):
        noise = torch.randn_like(x)
        self.note(noise)
        return x + noise


def test_a_layer_that_did_not_run_says_so():
    record = capture(CASES["early_exit"].build(), CASES["early_exit"].example())
    assert record.unrun == ("blocks", "blocks.4", "blocks.4.0", "blocks.4.1")
    assert record.calls("blocks.4") == [] and "blocks.4" not in record and "blocks.3" in record
    with pytest.raises(RecordError, match=r"^layer 'blocks\.4' did not run: the run took another route\."):
        record["blocks.4"]


class Failing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), SystemExit(3)])
@pytest.mark.parametrize("use", ["probe", "capture"])
def test_an_error_leaves_no_hook_and_the_record_is_partial(error, use, hooks_of):
    model = nn.Sequential(nn.Linear(2, 2), Failing(error), nn.Linear(2, 2)).train()
    probe = Probe(model, inputs=True, timing=True, edits={"0": lambda output: output})
    with pytest.raises(type(error)) as raised:
        if use == "probe":
            with probe:
                model(torch.ones(1, 2))
        else:
            capture(model, torch.ones(1, 2))
    assert raised.value is error
    assert hooks_of(model) == 0
    assert model.training and model[1].training
    if use == "probe":
        assert probe.record.partial and "0" in probe.record
        with pytest.raises(RecordError, match="layer '2' did not run: the run ended by an error before it"):
            probe.record["2"]


def test_an_error_while_attaching_leaves_no_hook(hooks_of, monkeypatch):
    model = net(nn.Linear(2, 2), nn.ReLU())

    def refuse(*args, **kwargs):
        raise RuntimeError("no hooks here")

    monkeypatch.setattr(model[1], "register_forward_hook", refuse, raising=False)
    with pytest.raises(RuntimeError, match="no hooks here"), Probe(model):
        pass
    assert hooks_of(model) == 0


def test_the_hooks_of_the_user_stay_and_run_first():
    model = net(nn.Linear(2, 2))
    handle = model[0].register_forward_hook(lambda module, args, output: output + 100)
    record = capture(model, torch.zeros(1, 2))
    assert (record["0"] > 50).all()
    assert list(model[0]._forward_hooks) == [handle.id]


def test_one_forward_serves_every_layer():
    model = net(*(nn.Linear(2, 2) for _ in range(6)))
    runs = []
    model.register_forward_pre_hook(lambda module, args: runs.append(1))
    assert len(capture(model, torch.ones(1, 2))) == 6
    assert len(runs) == 1


def test_an_unknown_layer_is_refused_before_anything_runs():
    with pytest.raises(LayerNotFound, match=r"no layer 'lstn' in LastStep"):
        capture(CASES["lstm"].build(), normal(2, 5, 4), "lstn")
