"""Probes together, edits, options, and what is left of the caller's world."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from layerlens.errors import InputError, LayerNotFound, OptionError, OverwrittenError
from layerlens.inputs.inputs import as_inputs
from layerlens.model.trees import named_tensors
from layerlens.probes.probe import Probe
from layerlens.probes.run import capture
from tests.cases import CASES, normal
from tests.probes.test_probe import net

# -- probes together, again and again ----------------------------------------------------------------------------------


def test_nested_probes_record_the_same(hooks_of):
    model = net(nn.Linear(2, 3), nn.ReLU(inplace=True))
    with Probe(model) as outer, Probe(model, "1") as inner:
        model(normal(2, 2))
    assert torch.equal(outer["1"], inner["1"]) and list(inner) == ["1"]
    assert hooks_of(model) == 0


def test_two_runs_in_one_block_are_two_calls():
    model = net(nn.Linear(2, 2))
    with Probe(model) as record:
        first, second = model(normal(1, 2)), model(normal(1, 2, seed=1))
    assert [call.index for call in record.calls("0")] == [0, 1]
    assert torch.equal(record.calls("0")[0].output, first) and torch.equal(record.calls("0")[1].output, second)


def test_a_probe_entered_again_goes_on_counting():
    model = net(nn.Linear(2, 2))
    probe = Probe(model)
    for _ in range(2):
        with probe:
            model(normal(1, 2))
    assert [(call.index, call.order) for call in probe.record.calls("0")] == [(0, 0), (1, 1)]


def test_a_probe_inside_itself_is_refused(hooks_of):
    model = net(nn.Linear(2, 2))
    probe = Probe(model)
    with probe, pytest.raises(OptionError, match="already attached; make a second Probe to nest them"):
        probe.__enter__()
    assert hooks_of(model) == 0


def test_nothing_holds_the_activations_after_the_record_is_gone():
    model = net(nn.Linear(2, 2), nn.ReLU())
    with Probe(model, graph=True) as record:
        model(normal(1, 2))
    held = weakref.ref(record["0"])
    del record
    gc.collect()
    assert held() is None


# -- edits -------------------------------------------------------------------------------------------------------------


def test_an_edit_changes_the_output_and_what_is_recorded():
    model = net(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = normal(2, 3)
    with Probe(model, ["1", "2"], edits={nn.ReLU: torch.zeros_like}) as record:
        output = model(x)
    assert not record["1"].any()
    assert torch.equal(output, model[2](torch.zeros(2, 4))) and torch.equal(output, record["2"])
    assert not torch.equal(model(x), output)


def test_edits_nest_the_outer_first():
    model = net(nn.Identity())
    with (
        Probe(model, edits={"0": lambda y: y + 1}) as outer,
        Probe(model, edits={"0": lambda y: y * 10}) as inner,
    ):
        output = model(torch.ones(1))
    assert (outer["0"], inner["0"], output) == (torch.tensor([2.0]), torch.tensor([20.0]), torch.tensor([20.0]))


def test_an_empty_selection_is_for_edits_only():
    model = net(nn.Linear(2, 2))
    with Probe(model, (), edits={"0": lambda y: y * 0}) as record:
        assert not model(torch.ones(1, 2)).any()
    assert len(record) == 0


def test_two_edits_of_one_layer_are_refused():
    with pytest.raises(OptionError, match="two edits name layer '0'; merge them into one list or function"):
        Probe(net(nn.ReLU()), edits={"0": torch.neg, nn.ReLU: torch.neg})


def test_an_edit_that_returns_nothing_is_refused(hooks_of):
    model = net(nn.ReLU())
    with pytest.raises(OptionError, match="the edit of layer '0' returned None; it must return"):  # noqa: SIM117
        with Probe(model, edits={"0": lambda y: None}):
            model(torch.ones(1))
    assert hooks_of(model) == 0


def test_an_edit_of_an_unknown_layer_is_refused():
    with pytest.raises(LayerNotFound, match="no layer 'head'"):
        Probe(net(nn.ReLU()), edits={"head": torch.neg})


# -- options -----------------------------------------------------------------------------------------------------------


def test_graph_keeps_gradients_through_what_was_recorded():
    model = net(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    x = normal(2, 3)
    with Probe(model, "0", graph=True) as record:
        score = model(x).sum()
    (gradient,) = torch.autograd.grad(score, record["0"])
    before = model[0](x).detach()
    assert torch.equal(gradient, model[2].weight * (before > 0))
    assert torch.equal(record["0"], before)


def test_graph_by_reference_raises_when_overwritten():
    model = net(nn.Linear(3, 4), nn.ReLU(inplace=True))
    with Probe(model, keep="reference", graph=True) as record:
        model(normal(2, 3))
    with pytest.raises(OverwrittenError):
        record["0"]
    assert record["1"].requires_grad


def test_graph_and_cpu_do_not_go_together():
    with pytest.raises(OptionError, match="keep='cpu' takes tensors out of the graph"):
        Probe(net(nn.ReLU()), keep="cpu", graph=True)


@pytest.mark.parametrize("keep", ["clone", "reference", "cpu"])
def test_values_are_detached_without_graph(keep):
    model = net(nn.Linear(3, 4))
    with Probe(model, keep=keep) as record:
        assert model(normal(2, 3)).requires_grad
    assert not record["0"].requires_grad


def test_keep_by_layer():
    model = net(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    with Probe(model, keep={"0": "clone"}) as record:
        model(normal(2, 3))
    assert torch.equal(record["0"], model[0](normal(2, 3)))
    assert record.calls("2")[0].stored and not record.calls("0")[0].stored


@pytest.mark.parametrize("make", [lambda m, k: Probe(m, keep=k), lambda m, k: capture(m, torch.ones(1), keep=k)])
def test_an_unknown_policy_names_the_known(make):
    with pytest.raises(OptionError, match=r"unknown keep policy 'clones'\. Closest: clone\. Known: .*reference, clone"):
        make(net(nn.ReLU()), "clones")


def test_inputs_hold_keyword_arguments_too():
    case = CASES["two_inputs"]
    model = case.build()
    record = capture(model, case.example(), ["", "conv"], inputs=True)
    args, kwargs = record.calls("")[0].inputs
    assert args == () and kwargs["scale"] == 0.5
    assert torch.equal(kwargs["table"], case.example()["table"])
    assert torch.equal(record.calls("conv")[0].inputs[0][0], case.example()["image"])
    assert capture(model, case.example()).calls("conv")[0].inputs is None


def test_timing_holds_children_and_is_off_by_default():
    model = net(nn.Linear(64, 64), nn.ReLU())
    with Probe(model, ["", "0"], timing=True) as record:
        model(normal(8, 64))
    assert 0 < record.calls("0")[0].seconds < record.calls("")[0].seconds < 10
    assert capture(model, normal(8, 64)).calls("0")[0].seconds is None


def test_reduce_keeps_only_what_it_returns():
    model = CASES["cnn"].build()
    x = normal(2, 3, 8, 8)
    record = capture(model, x, "conv*", reduce=lambda output: output.mean(dim=(2, 3)))
    full = capture(model, x, "conv*")
    for path in full:
        assert torch.equal(record[path], full[path].mean(dim=(2, 3)))
    assert record.nbytes < full.nbytes / 10
    assert record.calls("conv1")[0].axes is None


def test_axes_are_named_where_known():
    record = capture(CASES["cnn"].build(), normal(2, 3, 8, 8))
    assert record.calls("conv1")[0].axes == ("batch", "channel", "height", "width")
    assert record.calls("fc")[0].axes == ("batch", "feature")
    assert record.calls("relu")[0].axes == ("batch", "channel", "height", "width")
    record = capture(CASES["lstm"].build(), normal(2, 5, 4))
    states = dict.fromkeys(["h_n", "c_n"], ("layer", "batch", "feature"))
    assert record.calls("rnn")[0].axes == {"output": ("batch", "time", "feature"), **states}


def test_forward_replaces_the_call():
    model = CASES["vae"].build()
    record = capture(model, normal(2, 1, 8, 8), forward=lambda model, x: model.encode(x))
    assert "encode" in record and "decode" not in record


# -- the caller's world ------------------------------------------------------------------------------------------------


def test_capture_leaves_the_input_and_the_modes_alone(case):
    model = case.build().train()
    given = case.example()
    before = {name: tensor.clone() for name, tensor in as_inputs(given).tensors().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        capture(model, given)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in as_inputs(given).tensors().items())


def test_a_model_that_writes_into_its_input_does_not_reach_the_caller():
    x = -torch.ones(1, 2)
    record = capture(net(nn.ReLU(inplace=True)), x)
    assert torch.equal(x, -torch.ones(1, 2)) and not record["0"].any()


def test_capture_works_in_inference_mode_and_gives_ordinary_tensors():
    with torch.inference_mode():
        record = capture(CASES["cnn"].build(), normal(2, 3, 8, 8))
    assert not record["fc"].is_inference()
    record["fc"].requires_grad_()


def test_capture_of_no_model_and_no_input():
    with pytest.raises(InputError, match=r"a model must be a torch\.nn\.Module, got function"):
        capture(lambda x: x, torch.ones(1))
    with pytest.raises(InputError, match=r"cannot pass NoneType to a model"):
        capture(net(nn.ReLU()), None)


# -- checkpoints and compilers -----------------------------------------------------------------------------------------


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.block, self.fc, self.reentrant = net(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 1), reentrant

    def forward(self, x):
        return self.fc(checkpoint(self.block, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_a_checkpointed_block_is_not_recorded_twice(reentrant, graph):
    model = Checkpointed(reentrant)
    x = normal(2, 3).requires_grad_()
    with Probe(model, graph=graph, inputs=True, timing=True) as record:
        model(x).sum().backward()
    assert [len(record.calls(path)) for path in ("block", "block.0", "block.1", "fc")] == [1, 1, 1, 1]
    plain = copy.deepcopy(model.block)
    twin = normal(2, 3).requires_grad_()
    model.fc(plain(twin)).sum().backward()
    assert torch.allclose(x.grad, twin.grad)


@pytest.mark.parametrize("compiled", ["wrapped", "in place", "inner"])
@pytest.mark.filterwarnings("ignore:.*is compiled")
@pytest.mark.parametrize("use", ["capture", "probe"])
def test_a_compiled_model_is_captured_as_the_eager_one(compiled, use):
    eager = net(nn.Linear(3, 4), nn.ReLU(inplace=True), net(nn.Linear(4, 2), nn.Tanh()))
    model, prefix = copy.deepcopy(eager), ""
    if compiled == "wrapped":
        model, prefix = torch.compile(model, backend="eager"), "_orig_mod."
    elif compiled == "in place":
        model.compile(backend="eager")
    else:
        model[2].compile(backend="eager")
    x = normal(2, 3)
    with torch.no_grad():
        model(x)  # hooks that come after the first call of compiled code are skipped silently
        if use == "capture":
            record = capture(model, x)
        else:
            with Probe(model) as record:
                model(x)
    expected = capture(eager, x)
    for path in expected:
        assert torch.equal(record[prefix + path], expected[path])
    with torch.no_grad():
        assert torch.equal(model(x), eager(x))


def test_names_of_nested_outputs_lead_to_their_tensors():
    record = capture(CASES["nested"].build(), normal(2, 6))
    assert [name for name, _ in named_tensors(record["split"])] == ["0", "2.high.0"]
