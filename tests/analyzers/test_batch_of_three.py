"""The promise that a sample gets in a batch what it gets alone, from every analyzer on every row of tests/cases.py."""

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

import layerlens
import layerlens.analyzers.saliency  # registers the methods
from layerlens.analyzers.common.registry import METHODS
from layerlens.errors import LayerLensError
from layerlens.inputs.inputs import Inputs, as_inputs
from layerlens.model.trees import named_tensors
from tests.cases import CASES, Case, double

SHORT: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 4, "tolerance": math.inf},
    "layer_conductance": {"steps": 4, "tolerance": math.inf},
    "blur_ig": {"steps": 4, "tolerance": math.inf},
    "guided_ig": {"steps": 4, "tolerance": math.inf},
    "internal_influence": {"steps": 4},
    "neuron_conductance": {"steps": 4, "unit": 0},
    "smooth_grad": {"samples": 3},
    "smooth_grad_squared": {"samples": 3},
    "var_grad": {"samples": 3},
    "gradient_shap": {"samples": 4},
    "extremal_mask": {"steps": 4},
    "lime": {"samples": 16},
    "kernel_shap": {"samples": 200},
    "shapley_sampling": {"permutations": 2},
    "sobol": {"draws": 4},
    "rise": {"samples": 8},
    "score_cam": {"units": 2},
    "ablation_cam": {"units": 2},
}
OF_THE_BATCH = ("permutation",)
"""Methods whose values are of the batch by definition: they exchange values between its samples."""

Answer = dict[str, torch.Tensor]
"""What an analyzer says of each sample, `(batch, ...)`."""


def of(result: Any) -> Answer:
    """The map, the score and the checks of each sample."""
    values = result.values if isinstance(result.values, dict) else {"values": result.values}
    return {**values, "score": result.score, **result.checks}


def method(name: str) -> Callable[[nn.Module, Inputs, Any], Answer]:
    """A saliency method."""

    def analyze(model: nn.Module, x: Inputs, target: Any) -> Answer:
        options = dict(SHORT.get(name, {}))
        if name in ("layer_conductance", "internal_influence", "neuron_conductance"):
            options["where"] = a_layer(model)
        return of(layerlens.saliency(model, x, target=target, method=name, **options))

    return analyze


def a_layer(model: nn.Module) -> str:
    """The first layer of numbers that is called."""
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, kinds)}
    return next(path for path, layer in layers.items() if type(layer).__name__ != "NonDynamicallyQuantizableLinear")


def per_sample(result: Any) -> Answer:
    """The check of each sample, `(..., batch)`, by layer or part."""
    names = result.layers if hasattr(result, "layers") else result.items if hasattr(result, "items") else None
    values = result.checks["per sample"]
    return (
        {"per sample": values.movedim(-1, 0)} if names is None else dict(zip(names, values.movedim(-1, 1), strict=True))
    )


ANALYZERS: dict[str, Callable[[nn.Module, Inputs, Any], Answer]] = {
    **{name: method(name) for name in METHODS if name not in OF_THE_BATCH},
    "relevance of layers": lambda model, x, target: of(layerlens.relevance(model, x, target=target, layers=None)),
    "relevance epsilon": lambda model, x, target: of(layerlens.relevance(model, x, target=target, rules="epsilon")),
    "relevance_by_target": lambda model, x, target: of(layerlens.relevance_by_target(model, x, targets=[target])[0]),
    "jacobian": lambda model, x, target: per_sample(layerlens.jacobian(model, x, draws=2)),
    "lipschitz": lambda model, x, target: per_sample(
        layerlens.lipschitz(model, x, a_layer(model), iterations=2, restarts=1)
    ),
    "noise_response": lambda model, x, target: per_sample(
        layerlens.noise_response(model, x, levels=(0.5,), draws=2, target=target)
    ),
    "ablate": lambda model, x, target: per_sample(
        layerlens.ablate(model, x, a_layer(model), by="channel", target=target)
    ),
    "patch": lambda model, x, target: per_sample(
        layerlens.patch(model, x, halved(x), a_layer(model), by="channel", target=target, recovery=False)
    ),
}


def halved(x: Inputs) -> Inputs:
    """Another input: half the numbers, other tokens, but for those that hold the places of a picture."""
    tensors = x.tensors()
    return x.replace(
        {
            name: one / 2 if one.is_floating_point() else (one + 1) % 7
            for name, one in tensors.items()
            if "mask" not in name and not (name == "input_ids" and "pixel_values" in tensors)
        }
    )


def three_of(case: Case) -> tuple[Inputs, Any]:
    """The two samples of a case and a third, and the target of all."""
    x = as_inputs(double(case.example())).rows(torch.tensor([0, 1, 0]))
    changed = {}
    for name, tensor in x.tensors().items():
        if tensor.ndim and "mask" not in name:
            third = tensor[2].flip(-1) if tensor.is_floating_point() else tensor[2].roll(1, -1)
            changed[name] = torch.cat([tensor[:2], third[None]])
    target = case.target
    listed = isinstance(target, list) or (isinstance(target, torch.Tensor) and target.ndim == 1)
    return x.replace(changed), [*map(int, target), int(target[0])] if listed else target


def single(target: Any, row: int) -> Any:
    """The target of one sample."""
    return target[row] if isinstance(target, list) else target


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Short runs warn of their gaps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def same_output(model: nn.Module, x: Inputs, rows: list[Inputs]) -> bool:
    """Whether the model gives the samples alone what it gives them together."""
    with torch.no_grad():
        torch.manual_seed(0)
        whole = dict(named_tensors(x.run(model)))
        alone = [dict(named_tensors(row.run(model))) for row in rows]
    return all(
        torch.allclose(tensor, torch.cat([one[name] for one in alone]))
        for name, tensor in whole.items()
        if tensor.ndim and len(tensor) == 3
    )


def check(case: Case, name: str) -> None:
    """A batch of three gives what three batches of one give, or both are refused."""
    model, (x, target) = case.build().double(), three_of(case)
    analyze, rows = ANALYZERS[name], [x.rows(torch.tensor([row])) for row in range(3)]
    if not same_output(model, x, rows):
        pytest.skip("the model itself gives a sample another output in a batch: it draws other numbers")
    with quiet():
        try:
            together = analyze(model, x, target)
        except LayerLensError as error:
            with pytest.raises(type(error)):
                analyze(model, rows[0], single(target, 0))
            pytest.skip(f"refused: {error}")
        alone = [analyze(model, rows[row], single(target, row)) for row in range(3)]
    if case.kind == "dynamic" and "score" not in together:
        pytest.skip("which layers run, and how often, is decided by the batch")
    assert all(set(one) == set(together) for one in alone)
    for part, values in together.items():
        assert len(values) == 3, part
        expected = torch.cat([one[part] for one in alone])
        scale = float(expected.abs().nan_to_num(0, 0, 0).max())
        torch.testing.assert_close(
            values,
            expected,
            rtol=1e-6,
            atol=1e-8 * max(1.0, scale),
            equal_nan=True,
            msg=f"{part} differs",
        )


FAST = {
    "cnn": ("feature_ablation", "grad_cam", "ablation_cam", "noise_response"),
    "lstm": (),
    "encoder": ("leave_one_out", "lime", "relevance", "ablate"),
}
SLOW = (
    "extremal_mask",
    "deep_shap",
    "xrai",
    "jacobian",
    "lipschitz",
    "relevance_by_target",
    "relevance of layers",
    "patch",
)


@pytest.mark.parametrize(
    ("row", "name"),
    [
        pytest.param(
            row,
            name,
            marks=[] if row in FAST and name not in SLOW and name in (FAST[row] or ANALYZERS) else [pytest.mark.slow],
        )
        for row in CASES
        for name in ANALYZERS
    ],
)
def test_a_batch_of_three_gives_what_three_samples_give(row, name):
    check(CASES[row], name)
