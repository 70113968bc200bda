"""Checks of the model: what it does not use, what else changes its score, and what is attached to it."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from layerlens.analyzers.common.leaves.padding import of_one_length
from layerlens.analyzers.common.null_model import with_parameters
from layerlens.analyzers.common.scorer import Leaves, gradients
from layerlens.analyzers.common.statistics import nearly_equal
from layerlens.inputs.inputs import Inputs
from layerlens.inputs.sequences import sequences
from layerlens.model.borrowed import borrowed, generator_states, restore_generators

from .examined import Examined, Found, named

NOISE = 1e-3
"""A score that changes by more than this share of itself, without a cause, is not what is explained."""

MOST = 16
"""Most layers, or samples, that are tried one by one."""

FORWARD = ("_forward_hooks", "_forward_pre_hooks")
BACKWARD = ("_backward_hooks", "_backward_pre_hooks")


class Hung(NamedTuple):
    """A hook: where it hangs, the object and its dict that hold it, its key there, and its name."""

    path: str
    owner: Any
    kind: str
    key: int
    name: str


def unused(examined: Examined) -> Found:
    """Inputs, and layers with weights, on which the score does not depend."""
    draw, states = torch.Generator().manual_seed(examined.seed), generator_states()

    def same(values: Leaves | None = None, weights: dict[str, torch.Tensor] | None = None) -> bool:
        restore_generators(states)
        if weights is None:
            found = examined.run({**examined.values, **(values or {})})
        else:
            forward = with_parameters(examined.model, examined.counted, weights)
            with torch.no_grad():
                output = examined.inputs.run(examined.model, forward)
            found = examined.target(output, examined.scorer.rows, at=examined.target.at).detach().double()
        return torch.equal(found, own)

    own = examined.run()
    idle = [n for n, v in examined.values.items() if v.is_floating_point() and same({n: v + _noise(v, draw)})]
    if idle and len(idle) == len(examined.values):
        return (
            "serious",
            f"the score stays the same when {named(idle)} is replaced by noise",
            "the score does not depend on the input: no map of it has a meaning",
            "lens.route(x) shows what ran",
        )
    floating = {name: one for name, one in examined.model.named_parameters() if one.is_floating_point()}
    slopes = _weight_slopes(examined, floating)
    owners: dict[str, list[str]] = {}
    for name in floating:
        owners.setdefault(name.rpartition(".")[0], []).append(name)
    flat = [path for path, names in owners.items() if not any(bool(slopes[name].any()) for name in names)]

    def dead(paths: list[str]) -> bool:
        names = [name for path in paths for name in owners[path]]
        return same(weights={n: floating[n].detach() + _noise(floating[n].detach(), draw) for n in names})

    shown = examined.target.at is None and not examined.scorer.joint
    found = flat if flat and shown and dead(flat) else [path for path in flat[:MOST] if shown and dead([path])]
    parts = [f"input {named(idle)}"] * bool(idle) + [f"the weights of {named(found)}"] * bool(found)
    if not parts:
        return "fine", f"noise in each input, and in the weights of each of {len(owners)} layers, changes the score"
    return (
        "worth knowing",
        f"the score stays the same when {' and '.join(parts)} get noise",
        "a dead branch, or units that are off for this input: values there say nothing",
        "lens.route(x) shows what ran, lens.health(data) which units never do anything",
    )


def _weight_slopes(examined: Examined, weights: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The gradient of the score by each weight; zero where there is none."""
    values = examined.values
    for weight in weights.values():
        weight.requires_grad_(True)
    try:
        score = examined.scorer(values).sum()
        found = (
            torch.autograd.grad(score, list(weights.values()), allow_unused=True)
            if score.requires_grad
            else [None] * len(weights)
        )
    finally:
        for weight in weights.values():
            weight.requires_grad_(False)
    pairs = zip(weights.items(), found, strict=True)
    return {name: torch.zeros_like(weight) if slope is None else slope for (name, weight), slope in pairs}


def _noise(value: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    size = float(value.double().std(correction=0)) or float(value.abs().max()) or 1.0
    return torch.randn(value.shape, generator=draw).to(value) * size


def random(examined: Examined) -> Found:
    """Runs of the same input."""
    states = generator_states()
    again = []
    for number in range(3):
        if number < 2:
            restore_generators(states)
        again.append(examined.run())
    off = [float(((one - again[0]).abs() / examined.scale).max()) for one in again[1:]]
    if off[0] > NOISE or (off[0] > 0 and off[1] <= 10 * off[0]):
        means = "the model keeps a state between runs, or its kernels are not deterministic"
        large = off[0] > NOISE
        return (
            "serious" if large else "worth knowing",
            f"the same run gives a score that differs by {off[0]:.2g} of itself, with the same random numbers",
            means + ": methods that run it many times compare different models" * large,
            "reset the state in forward=, or torch.use_deterministic_algorithms(True)",
        )
    if off[1] > 0:
        return (
            "worth knowing",
            f"the score differs by {off[1]:.2g} of itself with other random numbers, in eval mode",
            "the model draws random numbers (dropout that stays on, sampling): a map is of one draw",
            "average maps over seed=0, 1, 2, ..., or score what is not drawn, such as a mean",
        )
    return "fine", "three runs give the same score"


def mode(examined: Examined) -> Found:
    """The score in the mode that the model was given in."""
    if not examined.training:
        return "fine", "the model was in eval mode"
    states = generator_states()
    with borrowed(examined.model):
        for module in examined.training:
            module.training = True
        own = examined.run()
        restore_generators(states)
        beside = None if examined.scorer.joint or len(own) == 1 else _beside(examined)
    restore_generators(states)
    off = float(((own - examined.score).abs() / examined.scale).max())
    if off <= NOISE:
        return "fine", f"{len(examined.training)} modules were in train mode, which leaves the score as it is"
    text = f"the model was in train mode, where the score differs by {off:.2g} of itself"
    if beside is not None and abs(beside - float(own[0])) > NOISE * float(examined.scale[0]):
        text += f"; there sample 0 has {float(own[0]):.4g} as given and {beside:.4g} next to other samples"
    return (
        "worth knowing",
        text,
        "dropout, or statistics of the batch, which tell a sample about the others (a leak if labels are sorted): what "
        "is explained is eval mode",
        "model.eval() before you compare scores; in training, shuffle the batches",
    )


def _first_score(examined: Examined, inputs: Inputs) -> float | None:
    """The score of sample 0 in other inputs; None where the model does not run on them."""
    rows = torch.zeros(1, dtype=torch.int64, device=examined.scorer.rows.device)
    try:
        with torch.no_grad():
            output = inputs.run(examined.model, examined.counted)
        return float(examined.target(output, rows)[0])
    except Exception:  # whatever the model raises
        return None


def batch(examined: Examined) -> Found:
    """The score of a sample next to other ones."""
    if examined.scorer.joint:
        return (
            "worth knowing",
            "the model returns one value for the whole batch",
            "a value says what its sample does to it, next to the others as they are",
            "return one score for each sample, if the value is a sum or a mean",
        )
    if len(examined.score) == 1 and examined.target.own:
        return "not run", "one sample, and a target that may have numbers of its own for it"
    states = generator_states()
    own = float(examined.run()[0])
    restore_generators(states)
    try:
        beside = _beside(examined)
    except Exception as error:  # whatever the model raises
        return "unclear", f"the model does not run with other samples next to the first: {str(error)[:120]}"
    off = abs(beside - own) / float(examined.scale[0])
    if nearly_equal(torch.tensor([beside]), torch.tensor([own])) or off <= NOISE:
        return "fine", "a sample has the same score next to other samples"
    return (
        "serious",
        f"sample 0 has a score of {own:.4g} as given and {beside:.4g} next to other samples, in eval mode",
        "the batch leaks into each score (statistics of the batch, quantization by batch): a map holds for this batch "
        "alone",
        "give one sample at a time, x[:1], or use running statistics in eval mode",
    )


def _beside(examined: Examined) -> float:
    """The score of sample 0 with all others replaced by -2 times themselves; of a single one next to -2 times it."""
    values, single = examined.values, len(examined.score) == 1
    floating = {name: value for name, value in values.items() if value.is_floating_point()}
    if single:
        values = {name: torch.cat([value, value]) for name, value in values.items()}
    changed = {name: torch.cat([value[:1], -2 * values[name][1:]]) for name, value in floating.items()}
    rows = torch.zeros(2, dtype=torch.int64, device=examined.scorer.rows.device) if single else examined.scorer.rows
    with torch.no_grad():
        return float(examined.scorer.scored({**values, **changed}, rows)[0][0])


def padding(examined: Examined) -> Found:
    """Padded samples, with and without their padding."""
    masks = [one for one in sequences(examined.inputs) if one.used is not None and not bool(one.used.all())]
    groups = of_one_length(examined.model, examined.inputs, examined.counted) if masks else []
    if not groups or len(masks) > 1:
        return "not run", "the input has no padding that a mask marks" if not masks else "several padded sequences"
    used = masks[0].used
    assert used is not None
    worst, sample = 0.0, -1
    for row in (~used.all(dim=1)).nonzero().flatten().tolist()[:MOST]:
        kept, own = used[row], examined.inputs.rows(torch.tensor([row]))
        cut = own.replace(
            {name: one[:, kept.to(one.device)] for name, one in own.tensors().items() if name in masks[0].names}
        )
        bare, given = _first_score(examined, cut), _first_score(examined, own)
        if bare is None or given is None:
            return "unclear", f"the model does not run on sample {row} without its padding"
        if (off := abs(bare - given) / float(examined.scale[row])) >= worst:
            worst, sample = off, row
    text = f"without its padding the score of sample {sample} differs by {worst:.2g} of itself"
    if worst <= NOISE:
        return "fine", text
    return (
        "serious" if worst > 0.1 else "worth knowing",
        text,
        "the model reads the padding: a map of a padded batch is of another text",
        "give the attention mask (and position ids for padding on the left), or one text at a time",
    )


def hung(model: nn.Module) -> list[Hung]:
    """Return the hooks of the layers, and those of torch for every layer, before a run: some models add their own then.

    Args:
        model: any module.
    """
    owners: list[tuple[str, Any, str]] = [
        (path or "the model itself", one, kind) for path, one in model.named_modules() for kind in (*FORWARD, *BACKWARD)
    ]
    owners += [("every layer", nn.modules.module, f"_global{kind}") for kind in (*FORWARD, *BACKWARD)]
    return [
        Hung(path, owner, kind, key, getattr(hook, "__qualname__", type(hook).__name__))
        for path, owner, kind in owners
        for key, hook in (getattr(owner, kind, None) or {}).items()
    ]


def hooks(examined: Examined) -> Found:
    """Hooks of layers and weights, and what they change."""
    found: list[Hung] = examined.hung
    weights = [name for name, one in examined.model.named_parameters() if one._backward_hooks]
    replaced = [path or "the model itself" for path, one in examined.model.named_modules() if "forward" in vars(one)]
    every = [f"{one.path} ({one.name})" for one in found] + [f"{name} (a hook of its gradient)" for name in weights]
    every += [f"{path} (forward replaced)" for path in replaced]
    if not every:
        return "fine", "the model has no hooks, and no forward was replaced"
    if not found:
        means = "the layer, or its gradient, is not what its class says"
        return "worth knowing", f"found on {named(every)}", means, "remove it, and check again"
    states, score = generator_states(), examined.run()
    slopes = examined.slopes if examined.differentiable else {}
    with _without(found):
        restore_generators(states)
        off = float(((examined.run() - score).abs() / examined.scale).max())
    turned = False
    backward = [one for one in found if one.kind.endswith(BACKWARD)]
    if slopes and backward:
        with _without(backward):
            restore_generators(states)
            bare = gradients(examined.scorer, examined.values)[1]
        turned = not all(torch.allclose(bare[name], own, rtol=1e-3) for name, own in slopes.items())
    text = f"hooks on {named(every)}; without them the score differs by {off:.2g} of itself"
    if turned:
        return (
            "serious",
            f"{text}, and the gradient is another one",
            "a hook edits the gradient: maps show the hook",
            "remove the hook, and check again",
        )
    if off > 0:
        return (
            "worth knowing",
            text,
            "what is explained is the model with its hooks",
            "remove them to explain the model alone; lens.run(x, edits=...) says what it edits",
        )
    return "worth knowing", text, "the hooks only look, for this input", "nothing, if you put them there"


@contextlib.contextmanager
def _without(found: list[Hung]) -> Iterator[None]:
    """Take hooks off within a `with` block; the very dicts come back."""
    kept = {(id(one.owner), one.kind): (one.owner, one.kind, getattr(one.owner, one.kind)) for one in found}
    gone = {(id(one.owner), one.kind, one.key) for one in found}
    try:
        for owner, kind, own in kept.values():
            left = {key: hook for key, hook in own.items() if (id(owner), kind, key) not in gone}
            setattr(owner, kind, OrderedDict(left))
        yield
    finally:
        for owner, kind, own in kept.values():
            setattr(owner, kind, own)


def shared(examined: Examined) -> Found:
    """Weights that several layers hold."""
    owners: dict[int, list[str]] = {}
    for name, one in examined.model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(one), []).append(name)
    tied = [" = ".join(names[:3]) for names in owners.values() if len(names) > 1]
    if not tied:
        return "fine", "no two layers share a weight"
    return (
        "worth knowing",
        f"{len(tied)} shared: {named(tied, 2)}",
        "what is changed, randomized or ranked in one layer is changed in the other",
        "name both layers in edits, and read their sensitivity together",
    )
