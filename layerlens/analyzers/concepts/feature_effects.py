"""What each feature of a basis adds to a score: gradient x activation, or the score without it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from layerlens.analyzers.common.features.basis import Basis
from layerlens.analyzers.common.features.basis_site import ONE, shares, unit_axis
from layerlens.analyzers.common.scorer import Scorer, gradients, scoring
from layerlens.errors import OptionError, choose
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.tensors import refuse_several
from layerlens.model.trees import describe
from layerlens.results import Ranking
from layerlens.signatures import public
from layerlens.targets.target import Spec


@public
def feature_effects(
    model: nn.Module,
    x: Input,
    basis: Basis,
    *,
    target: Spec = None,
    by: Literal["gradient", "ablation"] = "gradient",
    forward: Forward | None = None,
) -> Ranking:
    """Measure what each feature of a basis adds to the score, with the error of the basis as one more row.

    With h the layer's output, c its codes, D the decoder, and h = D(c) + error:

    - `"gradient"`: the gradient of the score by a code, through D, times the code, summed over places; for the error
      its own gradient x activation. `"constant"` is what D adds by itself, such as the mean of PCA or a bias, and
      `"beyond first order"` the rest of a decoder that is not linear. The rows sum to the gradient x activation of the
      layer.
    - `"ablation"`: the change of the score when the part of a feature, D(c) - D(c without it), is taken out of h at all
      places; for the constant, D(0); for the error, h becomes D(c). One forward pass for each feature that is not zero.

    Args:
        basis: a `Basis`, which names the layer.
        by: `"gradient"` or `"ablation"`.

    Returns:
        A `Ranking` of features, `"constant"` and `"error"`, means over samples. Its checks are `"per sample"`,
        `(items, batch)`, and with gradients `"layer"`, `(batch,)`, the gradient x activation of the layer.

    Raises:
        LayerNotFound, SelectionError: when the basis does not name one tensor of one call of a layer.
        OptionError: when it is not a basis.
        AxesUnknown: when the layer's axis of units is unknown.
        InputError: when the basis does not fit the layer.
        TargetError: when the target does not fit, or the score does not depend on the layer.

    Source: Marks et al. 2024, "Sparse feature circuits": features and the error of a dictionary as parts of a score.

    Example:
        >>> net = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[2.0, 5.0]]))
        >>> first = Basis("0", encode=lambda h: h[:, :1], decode=lambda c: nn.functional.pad(c, (0, 1)))
        >>> feature_effects(net, torch.tensor([[3.0, 1.0]]), first).ranked()
        [('feature 0', 6.0), ('error', 5.0), ('constant', 0.0)]
    """
    choose("by", by, ("gradient", "ablation"))
    if not isinstance(basis, Basis):
        raise OptionError(
            f"basis is a Basis, such as Basis('blocks.1', sae) or lens.basis(...); got {describe(basis)}."
        )
    with scoring(model, x, target, where=basis.layer, forward=forward) as scorer, basis.coding():
        if len(scorer.leaves) > 1:
            refuse_several(basis.layer, [leaf.place.tensor for leaf in scorer.leaves.values() if leaf.place], ONE)
        ((name, leaf),) = scorer.leaves.items()
        assert leaf.place is not None
        unit = unit_axis(basis, leaf.place, leaf.value)
        score, slopes = gradients(scorer, scorer.start())
        hidden = scorer.values()[name].detach().movedim(unit, -1)
        checks: dict[str, torch.Tensor] = {}
        if by == "gradient":
            slope = slopes[name].detach().movedim(unit, -1)
            shared = shares(basis, hidden, slope)
            rows, items = shared.rows(), shared.items(basis)
            values = rows.reshape(*rows.shape[:2], -1).sum(dim=2)
            checks["layer"] = (slope * hidden).flatten(1).sum(dim=1)
        else:
            codes = basis.encode_last(hidden).detach()
            values = _ablated(scorer, basis, name, unit, hidden, codes, score)
            items = (*map(basis.label, range(codes.shape[-1])), "constant", "error")
    per_sample = values.T.cpu()
    change = by == "ablation"
    return Ranking(
        quantity="change of the score" if change else "gradient x activation",
        items=items,
        values=per_sample.mean(dim=1),
        units="score",
        signed=True,
        method=f"{'ablation' if change else 'gradient x activation'}, {basis.name} of {basis.layer}",
        settings={"layer": basis.layer, "basis": repr(basis), "by": by, "target": scorer.target.label},
        checks={"per sample": per_sample, **{key: value.cpu() for key, value in checks.items()}},
        explanation=(
            "What the score loses or gains without each feature, one at a time."
            if change
            else "What each feature adds to the score to first order; the rows sum to that of the layer.",
            "What the basis cannot express is in the error, and says nothing of the features.",
        ),
    )


def _ablated(
    scorer: Scorer, basis: Basis, name: str, unit: int, hidden: torch.Tensor, codes: torch.Tensor, score: torch.Tensor
) -> torch.Tensor:
    """Return the changes of the score, `(batch, features + 2)`."""
    decoded = basis.decode_last(codes, hidden)

    def without(part: torch.Tensor) -> torch.Tensor:
        return (scorer({name: (hidden - part).movedim(-1, unit)}) - score).detach()

    changes = []
    with torch.no_grad():
        for number in range(codes.shape[-1]):
            if not bool(codes[..., number].any()):
                changes.append(torch.zeros_like(score))
                continue
            kept = codes.clone()
            kept[..., number] = 0
            changes.append(without(decoded - basis.decode_last(kept, hidden)))
        changes.append(without(basis.decode_last(torch.zeros_like(codes), hidden)))
        changes.append(without(hidden - decoded))
    return torch.stack(changes, dim=1)
