import collections
import copy
import dataclasses
import gc
import typing
import weakref

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import checkpoint

from layerlens.errors import InputError, LayerNotFound, OptionError, OverwrittenError, RecordError
from layerlens.inputs.inputs import as_inputs
from layerlens.model.layers import Layers
from layerlens.model.trees import named_tensors
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
