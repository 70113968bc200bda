"""Ways to score the parts of a model: gradients by plain hooks, contributions, exact patching, magnitude, chance."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from layerlens import Lens
from layerlens.results import Contributions


@dataclasses.dataclass(frozen=True)
class Site:
    """A tensor that is cut into parts.

    Attributes:
        module: path of the module that takes or returns it.
        taken: whether it is the module's input.
        axis: the axis that is cut.
        parts: names of the parts, as in results; one for the whole tensor.
    """

    module: str
    taken: bool
    axis: int
    parts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with pairs of inputs.

    Attributes:
        lens: the model.
        sites: its parts.
        start: module whose output is mixed between the two inputs; None for the input itself.
        clean: inputs, as the lens takes them.
        corrupted: as many inputs of the same shape.
        target: the score.
        score: the score of each sample from the model's output, in plain torch.
        parts: kind of the parts.
        layers: layers that are cut into parts.
    """

    lens: Lens
    sites: tuple[Site, ...]
    start: str | None
    clean: Any
    corrupted: Any
    target: Any
    score: Callable[[Any], torch.Tensor]
    parts: Any
    layers: list[str]

    @property
    def names(self) -> list[str]:
        """The names of all parts."""
        return [name for site in self.sites for name in site.parts]

    def run(self, inputs: Any, mixed: torch.Tensor | None = None) -> Run:
        """Run the model, keeping the tensors of the sites.

        Args:
            inputs: clean or corrupted inputs.
            mixed: values of the start to use instead.
        """
        found: dict[str, torch.Tensor] = {}
        with contextlib.ExitStack() as stack:
            for site in self.sites:
                module = self.lens.model.get_submodule(site.module)
                stack.callback(_hook(module, site.taken, _keep(found, site)).remove)
            stack.enter_context(torch.enable_grad())
            if self.start is None:
                begin = [(inputs if mixed is None else mixed).detach().clone().requires_grad_()]
                output = self.lens.model(begin[0])
            else:
                begin, handle = _begin(self.lens.model.get_submodule(self.start), mixed)
                stack.callback(handle.remove)
                output = self.lens.model(**inputs.tensors(), use_cache=False, logits_to_keep=1)
            return Run(begin[0], found, self.score(output))

    def scores_with(self, kept: set[str], values: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the scores of the clean inputs when all parts but some are replaced, `(pairs,)`.

        Args:
            kept: names of the parts that keep their values.
            values: site -> what replaces it, of its shape, or broadcasting to it.
        """

        def replace(site: Site) -> Callable[[Any], Any]:
            mask = torch.tensor([name in kept for name in site.parts])

            def mixed(value: Any) -> Any:
                own = value[0] if isinstance(value, tuple) else value
                wide = mask.repeat_interleave(own.shape[site.axis] // len(mask))
                shape = [1] * own.ndim
                shape[site.axis] = -1
                new = torch.where(wide.view(shape), own, values[site.module])
                return (new, *value[1:]) if isinstance(value, tuple) else new

            return mixed

        with contextlib.ExitStack() as stack, torch.no_grad():
            for site in self.sites:
                module, new = self.lens.model.get_submodule(site.module), values[site.module]
                if all(name in kept for name in site.parts):
                    continue
                if len(site.parts) == 1 and not site.taken:  # nothing of it is needed
                    module.forward = functools.partial(_instead, new)  # type: ignore[method-assign]
                    stack.callback(delattr, module, "forward")
                else:
                    stack.callback(_hook(module, site.taken, replace(site)).remove)
            if self.start is None:
                return self.score(self.lens.model(self.clean))
            return self.score(self.lens.model(**self.clean.tensors(), use_cache=False, logits_to_keep=1))

    def per_sample(self, products: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum over each part, `(parts, pairs)`."""
        rows = []
        for site in self.sites:
            product = products[site.module].movedim(site.axis, -1).unflatten(-1, (len(site.parts), -1))
            rows.append(product.transpose(-1, -2).flatten(1, -2).sum(dim=1).T)
        return torch.cat(rows)

    def sums(self, products: dict[str, torch.Tensor]) -> dict[str, float]:
        """Sum over each part, mean over pairs."""
        return dict(zip(self.names, self.per_sample(products).mean(dim=1).tolist(), strict=True))


@dataclasses.dataclass(frozen=True)
class Run:
    """One forward pass: the tensor it starts from, those of the sites, and the scores."""

    start: torch.Tensor
    values: dict[str, torch.Tensor]
    scores: torch.Tensor

    def gradients(self) -> dict[str, torch.Tensor]:
        """Of the sum of the scores."""
        found = torch.autograd.grad(self.scores.sum(), list(self.values.values()), allow_unused=True)
        pairs = zip(self.values.items(), found, strict=True)
        return {name: torch.zeros_like(value) if slope is None else slope for (name, value), slope in pairs}


def _instead(value: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    return value.expand_as(hidden)


def _hook(module: nn.Module, taken: bool, keep: Callable[[Any], None]) -> Any:
    if taken:
        return module.register_forward_pre_hook(lambda _, args: keep(args[0]))
    return module.register_forward_hook(lambda _, args, output: keep(output))


def _keep(found: dict[str, torch.Tensor], site: Site) -> Callable[[Any], None]:
    def keep(value: Any) -> None:
        found[site.module] = value[0] if isinstance(value, tuple) else value

    return keep


def _begin(module: nn.Module, mixed: torch.Tensor | None) -> tuple[list[torch.Tensor], Any]:
    begin: list[torch.Tensor] = []

    def embed(_: object, args: object, output: torch.Tensor) -> torch.Tensor:
        begin.append((output if mixed is None else mixed).detach().requires_grad_())
        return begin[0]

    return begin, module.register_forward_hook(embed)


def contributions(subject: Subject, rules: str, **options: Any) -> Contributions:
    """Return the contributions of the parts, with the corrupted input as the other one."""
    return subject.lens.contributions(
        subject.clean, subject.layers, other=subject.corrupted, target=subject.target, parts=subject.parts,
        rules=rules, **options,
    )  # fmt: skip


def relevance(subject: Subject) -> dict[str, float]:
    """Score by total contributions, which are the relevance of the nodes of the graph."""
    return dict(contributions(subject, "cp").ranked("total"))


def relevance_patching(subject: Subject, rules: str) -> dict[str, float]:
    """Score by the multiplier of the total contribution times the change (Jafari et al. 2025)."""
    return dict(contributions(subject, rules, multipliers="rules").ranked("difference"))


def differences(subject: Subject) -> dict[str, float]:
    """Score by the multiplier of differences times the change: the default of `contributions(..., other=)`."""
    return dict(contributions(subject, "cp").ranked("difference"))


def attribution_patching(subject: Subject) -> dict[str, float]:
    """Score by the gradient on the clean input times the change (Nanda 2023)."""
    clean = subject.run(subject.clean)
    slopes, change = clean.gradients(), _change(subject, clean)
    return subject.sums({name: slopes[name] * change[name] for name in change})


def eap_ig(subject: Subject, steps: int) -> dict[str, float]:
    """Score by gradients averaged between the inputs times the change (Hanna et al. 2024)."""
    clean, corrupted = subject.run(subject.clean), subject.run(subject.corrupted)
    change = _change(subject, clean)
    start, end = corrupted.start.detach(), clean.start.detach()
    total = {name: torch.zeros_like(value) for name, value in change.items()}
    for step in range(1, steps + 1):
        between = subject.run(subject.clean, start + (end - start) * step / steps)
        for name, slope in between.gradients().items():
            total[name] += slope / steps
    return subject.sums({name: total[name] * change[name] for name in change})


def _change(subject: Subject, clean: Run) -> dict[str, torch.Tensor]:
    corrupted = subject.run(subject.corrupted)
    return {name: (value - corrupted.values[name]).detach() for name, value in clean.values.items()}


def magnitude(subject: Subject) -> dict[str, float]:
    """Score by the squares of the values on the clean input."""
    return subject.sums({name: value.detach().square() for name, value in subject.run(subject.clean).values.items()})


def drawn(subject: Subject) -> dict[str, float]:
    """Score by chance."""
    names = list(subject.names)
    random.Random(1).shuffle(names)
    return {name: float(len(names) - place) for place, name in enumerate(names)}


def one_by_one(subject: Subject, values: dict[str, torch.Tensor], step: int = 1) -> torch.Tensor:
    """Return what the clean score loses when one part at a time is replaced, `(parts, pairs)`: exact, one run a part.

    Args:
        subject: the model and its pairs.
        values: site -> what replaces it.
        step: 2 for every second part, and so on.
    """
    whole, names = subject.run(subject.clean).scores.detach(), subject.names
    return torch.stack([whole - subject.scores_with(set(names) - {name}, values) for name in names[::step]])


def exact(subject: Subject) -> dict[str, float]:
    """Score each part by what the clean score loses when the part takes its corrupted values."""
    values = {name: value.detach() for name, value in subject.run(subject.corrupted).values.items()}
    return dict(zip(subject.names, one_by_one(subject, values).mean(dim=1).tolist(), strict=True))


OURS = "contributions(other=)"
EAP, LONG, EXACT, RANDOM = "EAP-IG, 5 steps", "EAP-IG, 15 steps", "exact patching", "random"
WAYS: dict[str, tuple[float, Callable[[Subject], dict[str, float]]]] = {
    "relevance (cp)": (3, relevance),
    "relevance patching (cp)": (4, functools.partial(relevance_patching, rules="cp")),
    "relevance patching (attn)": (4, functools.partial(relevance_patching, rules="attn")),
    OURS: (4, differences),
    "attribution patching": (4, attribution_patching),
    EAP: (16, functools.partial(eap_ig, steps=5)),
    LONG: (46, functools.partial(eap_ig, steps=15)),
    EXACT: (math.nan, exact),
    "magnitude": (1, magnitude),
    RANDOM: (0, drawn),
}
"""Way -> passes of a pair (a forward pass counts one, a backward pass two; NaN for one a part), and how it scores."""
