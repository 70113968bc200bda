"""The promise that every analyzer keeps on every model: it works, and the model is given back as it was."""

import contextlib
import functools
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import layerlens
from layerlens.errors import LayerLensError, TargetError
from tests.cases import CASES, normal
from tests.snapshot import Snapshot

SMALL: dict[str, Any] = {"steps": 4, "tolerance": 10.0}


ANALYZERS = {
    "layer_table": lambda model, x, target: layerlens.layers(model, x),
    "capture": lambda model, x, target: layerlens.capture(model, x),
    "route": lambda model, x, target: layerlens.route(model, x),
    "activation_maps": lambda model, x, target: layerlens.activation_maps(model, x, ran_once(model, x)),
    "feature_visualization": lambda model, x, target: dreamed(model, x),
    "layer_maps": lambda model, x, target: layerlens.layer_maps(model, x, ran_once(model, x)),
    "receptive_field": lambda model, x, target: seen_by(model, x),
    "recurrent_states": lambda model, x, target: over_time(model, x),
    "gradient": lambda model, x, target: layerlens.saliency(model, x, target=target, method="gradient"),
    "input_x_gradient": lambda model, x, target: layerlens.saliency(model, x, target=target, method="input_x_gradient"),
    "integrated_gradients": lambda model, x, target: layerlens.saliency(
        model, x, target=target, method="integrated_gradients", **SMALL
    ),
    "smooth_grad": lambda model, x, target: layerlens.saliency(
        model, x, target=target, method="smooth_grad", samples=3
    ),
    "auto": lambda model, x, target: layerlens.saliency(model, x, target=target, method="auto"),
    "centered_relevance": lambda model, x, target: of_text(model, x, target),
    "guided_backprop": lambda model, x, target: layerlens.saliency(model, x, target=target, method="guided_backprop"),
    "deep_lift": lambda model, x, target: compared(model, x, target),
    "grad_cam": lambda model, x, target: mapped(model, x, target, "grad_cam"),
    "score_cam": lambda model, x, target: mapped(model, x, target, "score_cam", units=2),
    "ablation_cam": lambda model, x, target: mapped(model, x, target, "ablation_cam", units=2),
    "jacobian": lambda model, x, target: layerlens.sensitivity(model, x, draws=2),
    "noise_response": lambda model, x, target: layerlens.sensitivity(
        model, x, method="noise_response", levels=(0.5,), draws=2
    ),
    "lipschitz": lambda model, x, target: layerlens.lipschitz(model, x, ran_once(model, x), iterations=2, restarts=1),
    "attack_curve": lambda model, x, target: attacked(model, x, layerlens.attack_curve, method=("fgsm", "pgd")),
    "attack_drift": lambda model, x, target: attacked(model, x, layerlens.attack_drift, layers=ran_once(model, x)),
    "corruption_curve": lambda model, x, target: layerlens.corruption_curve(
        model, x, target=mean_output, severities=(3,), draws=1
    ),
    "ablate": lambda model, x, target: layerlens.ablate(model, x, by="channel", target=target, count=3, null=True),
    "resample": lambda model, x, target: layerlens.ablate(
        model, x, value="resample", draws=1, metric="relative_change"
    ),
    "ablate heads": lambda model, x, target: of_heads(model, x, target),
    "patch": lambda model, x, target: layerlens.patch(
        model, x, other_than(x), target=target, recovery=False, direction="noise"
    ),
    "sobol": lambda model, x, target: layerlens.sobol(
        model, x, baseline="zero", features=one_or_two(x), target=target, samples=4
    ),
    "morris": lambda model, x, target: layerlens.morris(
        model, x, baseline="zero", features=one_or_two(x), target=target, trajectories=2
    ),
    "fisher": lambda model, x, target: layerlens.weight_sensitivity(model, x, draws=2),
    "hessian_trace": lambda model, x, target: layerlens.weight_sensitivity(
        model, x, measure="hessian_trace", loss=squared, estimator="hutchinson", probes=3
    ),
    "pruning": lambda model, x, target: layerlens.weight_sensitivity(model, x, measure="pruning", sparsities=(0.5,)),
    "relevance": lambda model, x, target: layerlens.relevance(model, x, target=target, layers=None),
    "relevance epsilon_plus": lambda model, x, target: layerlens.relevance(
        model, x, target=target, rules="epsilon_plus", layers=None
    ),
    "saliency by target": lambda model, x, target: layerlens.saliency_by_target(model, x, targets=[target, target])[0],
    "model uncertainty": lambda model, x, target: layerlens.model_uncertainty(
        model, x, models=[model, model], target=target, method="gradient"
    ),
    "relevance by target": lambda model, x, target: layerlens.relevance_by_target(model, x, targets=[target])[0],
    "relevance of parameters": lambda model, x, target: layerlens.relevance(
        model, x, target=target, rules="epsilon", parameters="*"
    ),
    "top inputs by activation": lambda model, x, target: layerlens.top_inputs(
        model, as_data(x), ran_once(model, x), by="activation", units=0, count=2, batched=True
    ),
    "top inputs by relevance": lambda model, x, target: layerlens.top_inputs(
        model, as_data(x), ran_once(model, x), target=target, units=0, count=2, batched=True
    ),
    "compare_groups": lambda model, x, target: layerlens.compare_groups(
        model,
        as_data(x) * 4,
        [0, 1] * (2 * as_data(x)[0].batch),
        target=one_class(target),
        batched=True,
        permutations=3,
    ),
    "linear_probe": lambda model, x, target: layerlens.linear_probe(
        model, as_data(x) * 2, [0, 1] * as_data(x)[0].batch, batched=True, permutations=0, untrained=False
    ),
    "generalization_gap": lambda model, x, target: layerlens.generalization_gap(
        model,
        as_data(x) * 2,
        as_data(x),
        train_labels=[0, 1] * as_data(x)[0].batch,
        test_labels=[0] * (as_data(x)[0].batch - 1) + [1],
        batched=True,
        permutations=3,
    ),
    "compare": lambda model, x, target: layerlens.compare(model, model, as_data(x) * 8, batched=True, permutations=1),
    "similarity": lambda model, x, target: layerlens.similarity(
        model, as_data(x) * 2, pool="mean", permutations=1, batched=True, batch_size=2
    ),
    "geometry": lambda model, x, target: layerlens.geometry(model, as_data(x) * 4, permutations=1, batched=True),
    "health": lambda model, x, target: layerlens.health(model, as_data(x) * 2, target=one_class(target), batched=True),
    "nonlinearity": lambda model, x, target: layerlens.nonlinearity(
        model, as_data(x) * 2, max_places=2, max_rows=8, max_features=8, batched=True
    ),
    "logit_lens": lambda model, x, target: unembedded(model, x),
    "relevance attn": lambda model, x, target: layerlens.relevance(model, x, target=target, rules="attn"),
}


def mean_output(output):
    """The mean of the main output, (batch,)."""
    main = layerlens.targets.target.main_output(output)
    return main.flatten(1).mean(dim=1)


def attacked(model, x, analyzer, **options):
    """A short attack on the mean of the output."""
    return analyzer(model, x, target=mean_output, eps=(0.05,), steps=1, restarts=1, draws=1, **options)


def ran_once(model, x):
    """A layer with a tensor output of at least two axes that ran exactly once."""
    record = layerlens.capture(model, x, reduce=lambda out: out if isinstance(out, torch.Tensor) else None)
    return next(
        layer
        for layer in record
        if len(record.calls(layer)) == 1 and record[layer] is not None and record[layer].ndim >= 2
    )


def dreamed(model, x):
    """A feature visualization of the first layer that can be one; of a model with one floating-point input."""
    if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
        layerlens.capture(model, x)  # the promise still has something to hold
        return None
    target = layerlens.deep_dream(ran_once(model, x))
    return layerlens.feature_visualization(model, target, x.shape[1:], axes=(*"abcdef"[: x.ndim - 1],), steps=2)


def seen_by(model, x):
    """The receptive field of the first layer; of a model with one floating-point input that has places."""
    if not (isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim > 2):
        return layerlens.capture(model, x)
    try:
        return layerlens.receptive_field(model, x, ran_once(model, x), by="change", draws=1)
    except LayerLensError as error:
        if "no gradient of layer" not in str(error):
            raise
        return None


def over_time(model, x):
    """The states of the first recurrent layer; a model without one is refused, which is well."""
    layers = [path for path, module in model.named_modules() if isinstance(module, nn.RNNBase)]
    if not layers:
        return layerlens.capture(model, x)
    return layerlens.recurrent_states(model, x, layers[0])


def compared(model, x, target):
    """DeepLIFT; a model that takes another route for the baseline is refused, which is well."""
    try:
        return layerlens.saliency(model, x, target=target, method="deep_lift")
    except LayerLensError as error:
        if "another route" not in str(error):
            raise
        return None


def of_text(model, x, target):
    """Centred relevance; what is no text is refused."""
    try:
        return layerlens.saliency(model, x, target=target, method="centered_relevance")
    except LayerLensError as error:
        if "takes token ids" not in str(error):
            raise
        return None


def mapped(model, x, target, method, **options):
    """A class activation map; a model without places is refused, which is well."""
    try:
        return layerlens.saliency(model, x, target=target, method=method, **options)
    except LayerLensError as error:
        if "needs an image input" not in str(error) and "which " + method + " needs" not in str(error):
            raise
        return None


def of_heads(model, x, target):
    """The worth of every head; a model without any is refused, which is well."""
    try:
        return layerlens.ablate(model, x, by="head", target=target)
    except LayerLensError as error:
        if "no attention with an output projection" not in str(error):
            raise
        return layerlens.capture(model, x)


def other_than(x):
    """Another input of the same shapes: the samples in the other order, padded as they were."""
    inputs = layerlens.inputs.inputs.as_inputs(x)
    return inputs.replace({name: part.flip(0) for name, part in inputs.tensors().items() if "mask" not in name})


def unembedded(model, x):
    """A logit lens; models without a list of blocks or without classes are refused, which is well."""
    try:
        return layerlens.logit_lens(model, x)
    except LayerLensError as error:
        if not any(text in str(error) for text in ("Give the layers", "give head=", "has one class")):
            raise
        return None


def one_class(target):
    """The first of several classes."""
    return target[0] if isinstance(target, list) else int(target[0]) if isinstance(target, torch.Tensor) else target


def one_or_two(x):
    """Features that are few: token ids as they are, of others two cells for each input."""
    inputs = layerlens.inputs.inputs.as_inputs(x)
    cells = {name: 2 for name, tensor in inputs.floating().items() if tensor.ndim > 2}
    return 2 if len(cells) == len(inputs.tensors()) else cells or None


def squared(output, labels):
    """The mean square of the output, a loss for any model."""
    return layerlens.targets.target.main_output(output).square().mean()


def as_data(x):
    """A data set of one batch."""
    return [layerlens.inputs.inputs.as_inputs(x)]


@contextlib.contextmanager
def quiet():
    """Numbers that would mislead are warned of; here only the promise matters."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


@functools.cache
def messy(name):
    """The model of a case as users hand it in: half in train mode, part frozen, gradients lying around, a hook.

    Every analyzer gets the same one, and each must give it back.
    """
    model = CASES[name].build()
    modules = list(model.modules())
    for index, module in enumerate(modules):
        module.training = index % 2 == 0
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 != 0)
        if index % 2:
            parameter.grad = torch.full_like(parameter, 0.5)
    modules[-1].register_forward_hook(lambda module, args, output: None)
    return model


WITHOUT_TARGET = set(
    "noise_response attack_curve attack_drift corruption_curve resample fisher hessian_trace pruning".split()
)
"""Analyzers that read the output here, which of `hf_clip` is a matrix of pairs: refused, which is well."""


@pytest.mark.parametrize("name", list(ANALYZERS))
def test_it_works_and_gives_the_model_back(case, name):
    model, x = messy(case.name), case.example()
    before = Snapshot(model, x)
    refused = pytest.raises(TargetError, match=r"could be scored.*logits_per_image")
    pairs = case.name == "hf_clip" and name in WITHOUT_TARGET
    with quiet(), refused if pairs else contextlib.nullcontext():
        ANALYZERS[name](model, x, case.target)
    before.check()


@pytest.mark.parametrize("name", list(ANALYZERS))
def test_it_works_under_any_grad_mode(name):
    for case in (CASES["cnn"], CASES["lstm"], CASES["hf_bert"]):
        model, x = built(case.name), case.example()
        with quiet():
            found = []
            for mode in (torch.no_grad, torch.inference_mode):
                with mode():
                    found.append(ANALYZERS[name](model, x, case.target))
            if isinstance(found[0], layerlens.Attribution):
                expected = ANALYZERS[name](model, x, case.target)
                for one in found:
                    torch.testing.assert_close(one.values, expected.values)


@functools.cache
def built(name):
    return CASES[name].build()


class Interrupted(nn.Module):
    """Runs well a number of times; then the user presses Ctrl-C, or the model fails."""

    def __init__(self, inner, error):
        super().__init__()
        self.inner, self.error, self.left = inner, error, 0

    def forward(self, *args, **kwargs):
        out = self.inner(*args, **kwargs)
        if self.__dict__["left"] <= 0:
            raise self.error
        self.__dict__["left"] -= 1
        return out


@pytest.mark.parametrize("error", [RuntimeError("the model failed"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("name", list(ANALYZERS))
def test_the_model_is_given_back_after_an_error(name, error):
    for case in (CASES["cnn"], CASES["lstm"], CASES["hf_bert"]):
        for runs in (0, 1, 2):
            model, x = Interrupted(messy(case.name), error), case.example()
            layer = ran_once(model.inner, x) if name == "activation_maps" else None
            model.__dict__["left"] = runs
            before = Snapshot(model, x)
            with quiet(), contextlib.suppress(type(error), LayerLensError):
                if layer is None:
                    ANALYZERS[name](model, x, case.target)
                else:
                    layerlens.activation_maps(model, x, f"inner.{layer}")
            before.check()


def test_the_error_reaches_the_caller():
    model = Interrupted(CASES["mlp"].build(), RuntimeError("the model failed"))
    for name, analyzer in ANALYZERS.items():
        if name != "activation_maps":
            with pytest.raises(RuntimeError, match="the model failed"), quiet():
                analyzer(model, CASES["mlp"].example(), 0)


def test_the_callers_input_is_safe_from_a_model_that_writes_into_it():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            x += 1
            return self.fc(x.relu_())

    torch.manual_seed(0)
    model, x = Writes(), normal(2, 4)
    for analyzer in ANALYZERS.values():
        before = Snapshot(model, x)
        with quiet():
            analyzer(model, x, 1)
        before.check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["gradient", "input_x_gradient", "integrated_gradients", "smooth_grad", "deep_lift", "relevance"]
)
def test_the_dtype_is_kept(name, dtype):
    case = CASES["cnn"]
    model, x = case.build().to(dtype), case.example().to(dtype)
    with quiet():
        result = ANALYZERS[name](model, x, case.target)
    assert result.values.dtype == dtype
    assert result.values.shape == x.shape
    assert torch.isfinite(result.values).all()
