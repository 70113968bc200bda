"""Models whose weights are not all here, and blocks that are computed again: the same numbers, or a refusal by name.

Two processes are in `test_sharded.py`.
"""

import contextlib
import functools

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

import layerlens as ll
from layerlens import errors
from layerlens.inputs.inputs import as_inputs
from layerlens.model.borrowed import borrowed
from layerlens.model.placement import home, need_weights, offloaded, sharded
from tests.cases import CASES

RULES = ("epsilon", "epsilon_plus", "epsilon_alpha2_beta1_flat", "cp", "attn", "gate")
X = torch.linspace(-1, 1, 2 * 3 * 6 * 6).sin().reshape(2, 3, 6, 6)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def net():
    """A convolutional net whose batch norm is no identity."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(20, 3)).eval()
    model[1].running_mean.uniform_(-0.5, 0.5)
    model[1].running_var.uniform_(0.5, 2)
    return model


class Scaled(nn.Module):
    """A module with a parameter of its own around its layers."""

    def __init__(self):
        super().__init__()
        self.scale, self.first, self.last = nn.Parameter(torch.rand(4)), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.first(x * self.scale).relu())


def llama(**options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=12, max_position_embeddings=16, use_cache=False, **sizes, **options)
    return LlamaForCausalLM(config).eval()


def last(output):
    """The logit of token 1 at the last place, (batch,)."""
    return output.logits[:, -1, 1]


def mean(output):
    return output.flatten(1).mean(dim=1)


def told(relevance):
    """All that a relevance says: values, layers, and the ledger row by row."""
    entries = {f"{e.kind} {e.layer} {e.source}": e.amount for e in relevance.ledger.entries}
    return {"values": relevance.values, "layers": dict(relevance.layers), **entries}


def shown(record):
    return {path: record[path] for path in record}


def analyzers(target, image):
    """Name -> what is computed of (model, x)."""
    found = {
        "capture": lambda model, x: shown(ll.capture(model, x)),
        "gradient": lambda model, x: ll.saliency(model, x, target=target, method="gradient").values,
        "integrated_gradients": lambda model, x: (
            ll.saliency(model, x, target=target, method="integrated_gradients", steps=4, tolerance=10.0).values
        ),
        "jacobian": lambda model, x: ll.sensitivity(model, x, method="jacobian", draws=2).values,
        "noise_response": lambda model, x: (
            ll.sensitivity(model, x, method="noise_response", levels=(0.5,), draws=2).values
        ),
    }
    for rules in ("auto", *RULES):
        if image or "flat" not in rules:
            found[f"relevance {rules}"] = lambda model, x, rules=rules: told(
                ll.relevance(model, x, target=target, rules=rules, layers=None)
            )
    if image:
        found["occlusion"] = lambda model, x: ll.saliency(model, x, target=target, method="occlusion").values
        found["grad_cam"] = lambda model, x: ll.saliency(model, x, target=target, method="grad_cam", relu=False).values
    return found


def assert_same(found, wanted):
    """Bit for bit, nested as they may be."""
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def checkpointed(model, **options):
    """The model with its layers checkpointed, under the name of that in any version of transformers."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options or None)
    return model


def state(model):
    """Where the weights are, and all that accelerate put on the modules."""
    weights = [(id(p), p.device.type, p.requires_grad, p.grad is None) for p in model.parameters()]
    return weights, [(m.training, id(vars(m).get("_hf_hook")), id(vars(m).get("forward"))) for m in model.modules()]


def spread(model, kind, folder):
    """The model with its weights elsewhere."""
    accelerate = pytest.importorskip("accelerate")
    if kind == "cpu":
        accelerate.cpu_offload(model, execution_device="cpu")
    elif kind == "disk":
        accelerate.disk_offload(model, str(folder), execution_device="cpu")
    else:
        places = dict(zip([name for name, _ in model.named_children()], ["disk", "cpu"] * 9, strict=False))
        accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=str(folder))
    return model


def deep_lift(model, x):
    return ll.saliency(model, x, target=1, method="deep_lift").values


OF_IMAGES = {**analyzers(1, image=True), "deep_lift": deep_lift}


@functools.cache
def expected(name):
    return OF_IMAGES[name](net(), X)


@pytest.mark.parametrize("name", list(OF_IMAGES))
@pytest.mark.parametrize("kind", ["cpu", "disk", "map"])
def test_an_offloaded_model_gives_the_same_numbers_and_stays_as_it_was(kind, name, tmp_path):
    model = spread(net(), kind, tmp_path)
    assert offloaded(model) and home(model) == torch.device("cpu")
    before = state(model)
    assert_same(OF_IMAGES[name](model, X), expected(name))
    assert state(model) == before


@pytest.mark.parametrize("tied", [False, True])
def test_an_offloaded_language_model(tied, tmp_path):
    model = spread(llama(tie_word_embeddings=tied), "cpu", tmp_path)
    before = state(model)
    for name in ("gradient", "relevance auto", "relevance attn", "relevance epsilon_plus"):
        analyzer = analyzers(last, image=False)[name]
        assert_same(analyzer(model, IDS), analyzer(llama(tie_word_embeddings=tied), IDS))
        assert state(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())  # it can still be trained


NEED_WEIGHTS = {
    "the relevance of parameters": lambda model: ll.relevance(model, X, target=1, parameters="*.weight"),
    "the null": lambda model: ll.sensitivity(model, X, null=True, draws=1),
    "weight_sensitivity": lambda model: ll.weight_sensitivity(model, X, measure="pruning", sparsities=(0.5,)),
    "cascading_randomization": lambda model: ll.faithfulness.cascading_randomization(model, X, "gradient", target=1),
    "a copy of the model": lambda model: ll.compare(model, dict(net().state_dict()), X),
}


@pytest.mark.parametrize("what", list(NEED_WEIGHTS))
def test_what_needs_the_weights_themselves_is_refused(what, tmp_path):
    model = spread(net(), "disk", tmp_path)
    before = state(model)
    with pytest.raises(
        errors.InputError, match=rf"{what}.*needs the weights.*'0', '1', '3', '6' elsewhere.*device_map"
    ):
        NEED_WEIGHTS[what](model)
    assert state(model) == before
    need_weights(net(), what)


@pytest.mark.parametrize("act", ["edit", "target", "stop"])
def test_weights_go_back_where_they_were_after_an_error(act, tmp_path):
    def fail(value):
        raise ValueError("on purpose")

    model = spread(Scaled().eval(), "cpu", tmp_path)
    x, before = torch.ones(2, 4), state(model)
    with pytest.raises(ValueError, match="on purpose") if act != "stop" else contextlib.nullcontext():
        if act == "edit":
            ll.capture(model, x, edits={"first": fail})
        elif act == "target":
            ll.saliency(model, x, target=fail, method="gradient")
        else:
            assert ll.capture(model, x, "first", stop=True).stopped
    assert state(model) == before and model.scale.is_meta
    assert ll.capture(model, x)["last"].shape == (2, 3)


def test_data_go_where_an_offloaded_model_runs(tmp_path):
    data = [X[:1], X[1:]]
    found = [
        ll.top_inputs(model, data, "3", by="activation", count=1, batched=True).values
        for model in (net(), spread(net(), "cpu", tmp_path))
    ]
    assert torch.equal(*found)


def test_a_model_whose_weights_were_never_loaded_is_refused():
    model = net().to("meta")
    with pytest.raises(errors.InputError, match="has no weights: they are on the meta device"):
        ll.saliency(model, X, target=1, method="gradient")
    assert ll.capture(model, as_inputs(X).map(lambda x: x.to("meta")))["6"].is_meta
    assert not offloaded(model) and not sharded(model)


@pytest.mark.filterwarnings("ignore")
def test_relevance_does_not_pass_quantized_layers_in_silence():
    model = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), {nn.Linear}, dtype=torch.qint8
    )
    with pytest.raises(errors.RelevanceError, match=r"has no gradient in torch.*before it was quantized"):
        ll.relevance(model, torch.ones(1, 4), target=0)
    with pytest.raises(errors.TargetError, match="no gradient flows"):
        ll.saliency(model, torch.ones(1, 4), target=0, method="gradient")
    assert "differences" in ll.sensitivity(model, torch.ones(1, 4), draws=2).method
    assert ll.sensitivity(model, torch.ones(1, 4), method="noise_response", draws=2).values.isfinite().all()
    assert ll.saliency(nn.Sequential(nn.Flatten(2), model), torch.rand(1, 1, 2, 2), target=mean, method="occlusion")


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture
def recomputed(monkeypatch):
    """A list that gets an entry each time a checkpointed block is computed again."""
    found = []
    kind = torch.utils.checkpoint._recomputation_hook
    enter = kind.__enter__
    monkeypatch.setattr(kind, "__enter__", lambda self: (found.append(self), enter(self))[1])
    return found


@pytest.mark.parametrize("attention, reentrant", [("sdpa", False), ("eager", True)])
def test_checkpointed_layers_of_transformers_are_computed_again_in_eval_mode(attention, reentrant, recomputed):
    plain = llama(attn_implementation=attention, attention_dropout=0.5)
    model = checkpointed(llama(attn_implementation=attention, attention_dropout=0.5), use_reentrant=reentrant)
    functions = [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    wanted = {
        name: analyzer
        for name, analyzer in analyzers(last, image=False).items()
        if name.split()[0] in ("gradient", "relevance")
    }
    wanted["deep_lift"] = lambda model, x: ll.saliency(model, x, target=last, method="deep_lift").values
    for name, analyzer in wanted.items():
        recomputed.clear()
        assert_same(analyzer(model, IDS), analyzer(plain, IDS))
        assert len(recomputed) >= 2, name
    assert functions == [vars(module).get("_gradient_checkpointing_func") for module in model.modules()]
    assert not any(module.training for module in model.modules())


def test_what_reads_weights_works_with_checkpointed_layers():
    plain, model = llama(), checkpointed(llama())
    for analyzer in (
        lambda m: ll.relevance(m, IDS, target=last, rules="epsilon", parameters="*").parameters,
        lambda m: ll.weight_sensitivity(m, IDS, draws=1).values,
        lambda m: ll.sensitivity(m, IDS, draws=2, null=True).null,
        lambda m: ll.saliency(m, IDS, target=last, method="leave_one_out").values,
        lambda m: ll.faithfulness.cascading_randomization(m, IDS, "gradient", layers="lm_head", target=last).values,
    ):
        assert_same(analyzer(model), analyzer(plain))


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in ("cnn", "lstm", "hf_vit", "hf_bert"))) for name in CASES
])  # fmt: skip
def test_any_model_as_one_checkpoint(name):
    """Of token ids the embedding is exchanged, which a checkpoint around it would undo."""
    model, x, target = CASES[name].build(), CASES[name].example(), CASES[name].target
    whole = Whole(model).eval()
    inputs = as_inputs(x)
    if inputs.floating() and not any("input_ids" in part for part in inputs.tensors()):
        for rules in ("auto", "epsilon_plus"):
            found, wanted = (ll.relevance(m, x, target=target, rules=rules).values for m in (whole, model))
            if any(isinstance(part, (nn.RNNBase, nn.RNNCellBase)) for part in model.modules()):
                # by steps in a checkpoint, which sums in another order than the closed form
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)
            else:
                assert_same(found, wanted)
    else:
        with pytest.raises(errors.InputError, match="edited inside a checkpointed block"):
            ll.relevance(whole, x, target=target)


class Whole(nn.Module):
    """A model as one checkpointed block."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        return checkpoint(lambda *args: self.model(*args, **kwargs), *args, use_reentrant=False)


class Deep(nn.Module):
    """Layers that are checkpointed one by one, or not."""

    def __init__(self, checkpoints):
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.checkpoints = nn.ModuleList(nn.Linear(8, 8) for _ in range(6)), checkpoints

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpoints else layer(x)
        return x


@pytest.mark.parametrize("checkpoints", [False, True])
@pytest.mark.parametrize("name", ["capture", "gradient", "relevance"])
def test_offloaded_weights_are_here_one_layer_at_a_time(name, checkpoints, tmp_path, monkeypatch):
    seen, most, linear = [], [0], nn.functional.linear

    def watched(x, weight, bias=None):
        seen.append(StorageWeakRef(weight.untyped_storage()))
        output = linear(x, weight, bias)
        most.append(len({one.cdata for one in seen if not one.expired()}))
        return output

    model, x = spread(Deep(checkpoints).eval(), "disk", tmp_path), torch.ones(1, 8)
    monkeypatch.setattr(nn.functional, "linear", watched)
    if name == "capture":
        ll.capture(model, x, reduce=lambda output: None)
    elif name == "gradient":
        ll.saliency(model, x, target=1, method="gradient")
    else:
        ll.relevance(model, x, target=1, rules="attn")
    assert max(most) == (1 if checkpoints or name == "capture" else 6)  # autograd keeps them for the backward pass


def test_several_targets_and_conditions_through_checkpointed_layers(recomputed):
    plain, model = llama(), checkpointed(llama())
    targets = [last, lambda output: output.logits[:, -1, 2]]
    for ours, theirs in zip(*(ll.relevance_by_target(m, IDS, targets=targets) for m in (model, plain)), strict=True):
        assert_same(told(ours), told(theirs))
    assert len(recomputed) == 4
    found = [ll.relevance(m, IDS, target=last, through={"model.layers.0.mlp": [1, 2]}).values for m in (model, plain)]
    assert torch.equal(*found)


def test_a_place_inside_of_a_checkpointed_layer_is_run_as_it_is(recomputed):
    plain, model = llama(), checkpointed(llama())
    options = {"target": last, "method": "integrated_gradients", "where": "model.layers.1.mlp", "steps": 3}
    found = [ll.saliency(m, IDS, tolerance=10.0, **options).values for m in (model, plain)]
    assert torch.equal(*found) and not recomputed[2:]


def test_checkpoints_survive_a_model_that_is_lent_twice():
    model = checkpointed(llama())
    layer = model.model.layers[0]
    with borrowed(model):
        outer = layer._gradient_checkpointing_func
        with borrowed(model):
            assert layer.training and layer._gradient_checkpointing_func is outer
            with borrowed(model, grad=False):
                assert not layer.training
        assert layer.training and not layer.mlp.training
    assert not layer.training and layer._gradient_checkpointing_func is not outer


class Checkpointed(nn.Module):
    """Checkpoints a part of itself, in any mode."""

    def __init__(self, reentrant=False):
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.first, self.last = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(checkpoint(self.first, x, use_reentrant=self.reentrant))


def test_an_edit_inside_of_a_checkpoint_of_the_model_is_refused():
    model, x = Checkpointed().eval(), torch.ones(2, 4)
    with pytest.raises(errors.InputError, match=r"'first\.1' is edited inside a checkpointed block"):
        ll.saliency(model, x, target=1, method="integrated_gradients", where="first.1")
    with (
        pytest.raises(errors.InputError, match="gradients would be wrong"),
        ll.Probe(model, (), edits={"first.0": lambda output: output * 2}),
    ):
        model(x).sum().backward()
    with torch.no_grad(), ll.Probe(model, "last", edits={"first.0": lambda output: output * 0}) as record:
        model(x)  # nothing is computed again
    assert torch.allclose(record["last"], model.last(model.first[2](torch.zeros(2, 4))))


@pytest.mark.filterwarnings("ignore:None of the inputs", "ignore:no relevance rule is known for CheckpointFunction")
@pytest.mark.parametrize("method", ["gradient", "relevance"])
def test_a_reentrant_checkpoint_of_the_model_is_refused(method):
    explain = {"gradient": ll.saliency, "relevance": ll.relevance}[method]
    options = {"method": "gradient"} if method == "gradient" else {}
    with pytest.raises(errors.LayerLensError, match=r"use_reentrant=False works"):
        explain(Checkpointed(reentrant=True).eval(), torch.ones(2, 4), target=1, **options)
    assert ll.capture(Checkpointed(reentrant=True).eval(), torch.ones(2, 4))["last"].shape == (2, 3)


# -- models as a compiler leaves them ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*is compiled")
@pytest.mark.parametrize("name", ["gradient", "relevance epsilon_plus", "occlusion", "jacobian"])
def test_a_compiled_model_gives_the_same_numbers(name):
    found = OF_IMAGES[name](torch.compile(net(), backend="eager"), X)
    wanted = expected(name)
    if isinstance(wanted, dict):
        found, wanted = found["values"], wanted["values"]
    assert_same(found, wanted)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_exported_program_is_refused_and_its_module_has_lost_its_layers():
    program = torch.export.export(net(), (X,))
    with pytest.raises(errors.InputError, match="got ExportedProgram"):
        ll.capture(program, X)
    assert "3" in ll.capture(program.module(), X, "3").unrun
    for name in ("gradient", "relevance epsilon_plus"):
        found, wanted = OF_IMAGES[name](program.module(), X), expected(name)
        assert_same(*((part["values"] if isinstance(part, dict) else part) for part in (found, wanted)))
