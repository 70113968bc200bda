import pytest
import torch
from torch import nn

from layerlens.inputs.inputs import as_inputs
from layerlens.probes.run import capture
from layerlens.targets.target import as_target
from tests.cases import ADDITIVE, CASES, case_names, perturb, zero_additive


def test_the_zoo_has_every_kind():
    kinds = {case.kind for case in CASES.values()}
    assert kinds == {"feedforward", "convolution", "recurrent", "transformer", "generative", "hybrid", "dynamic"}
    assert len(case_names) == len(CASES) and list(CASES) == [case.name for case in CASES.values()]
    quick = {case.kind for case in CASES.values() if not case.slow}
    assert quick == kinds


def test_a_case_builds_twice_the_same_and_leaves_the_generator(case):
    state = torch.get_rng_state()
    first, second = case.build(), case.build()
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in first.modules())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    names = as_inputs(case.example()).tensors()
    assert all(torch.equal(names[key], other) for key, other in as_inputs(case.example()).tensors().items())
    assert as_inputs(case.example()).batch == 2


def test_no_number_of_a_case_is_trivial(case):
    for name, parameter in case.build().named_parameters():
        assert parameter.numel() == 1 or parameter.std() > 1e-3, name
        assert parameter.any(), name
    for name, buffer in case.build().named_buffers():
        if name.endswith(("running_mean", "running_var")):
            assert buffer.std() > 1e-3, name


def test_a_case_scores_each_sample_apart(case):
    model, given, target = case.build(), as_inputs(case.example()), as_target(case.target)
    if case.name == "vae":
        pytest.skip("draws noise for the whole batch")
    with torch.no_grad():
        target = target.resolve(given.run(model))
        both = target(given.run(model))
        for k in range(2):
            row = torch.tensor([k])
            assert torch.allclose(target(given.rows(row).run(model), row), both[k : k + 1], atol=1e-6)
    assert (both[0] - both[1]).abs() > 1e-5 and both.abs().min() > 1e-4


def test_what_does_not_run_is_known(case):
    record = capture(case.build(), case.example())
    containers = (nn.ModuleList, nn.ModuleDict)
    modules = dict(case.build().named_modules())
    assert tuple(path for path in record.unrun if not isinstance(modules[path], containers)) == case.unrun


def test_zero_additive_is_a_copy_without_constants(case):
    model = case.build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = zero_additive(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, tensor in (*twin.named_parameters(), *twin.named_buffers()):
        if name.endswith(("bias", "running_mean")) or "position_embeddings" in name or "bias_" in name:
            assert not tensor.any() or not tensor.is_floating_point(), name
        elif tensor.is_floating_point() and not ADDITIVE.search(name):
            assert tensor.any(), name


def test_a_net_without_constants_maps_zero_to_zero():
    for name in ("mlp", "cnn", "lstm", "gru", "gan", "video"):
        model = zero_additive(CASES[name].build())
        assert not model(torch.zeros_like(CASES[name].example())).any(), name


def test_perturb_reaches_norms_biases_and_layer_scales():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4))
    model.register_parameter("layer_scale", nn.Parameter(torch.full((4,), 1e-6)))
    perturb(model, 3)
    assert all(parameter.std() > 0.01 for parameter in model.parameters())
    assert model[0].running_mean.std() > 0.01 and model[0].running_var.min() > 0.1
    assert model.layer_scale.abs().max() > 0.1
