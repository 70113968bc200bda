"""The first act of a relevance propagation: a forward pass, recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import nn

from layerlens.analyzers.common.features.basis_site import Sites, find_basis_sites, split_bases
from layerlens.analyzers.common.samples import warn_of_joint_scores
from layerlens.analyzers.common.scorer import Scorer
from layerlens.analyzers.common.target_scores import TargetScores
from layerlens.analyzers.graph.added_constants import Notes
from layerlens.analyzers.graph.cuts import Cuts
from layerlens.analyzers.graph.graph import Graph, NodeInfo
from layerlens.analyzers.graph.operation import relevance_of
from layerlens.analyzers.graph.recorder import Recorder
from layerlens.axes.followed import followed
from layerlens.errors import OptionError, RelevanceError
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.borrowed import generator_states, modules_of, parameters_of, restore_generators
from layerlens.model.call_tracking import Spans
from layerlens.model.layers import LayerPath, matching_names
from layerlens.model.placement import is_fsdp, need_weights, refuse_parts
from layerlens.targets.target import Spec

from .conditions import Conditions, Units
from .layer_relevance import LayerOutputs
from .rules.operation_table import TABLE
from .rules.recurrent import STEPS, WHOLE, Whole
from .rules.rulebook import Part, Rulebook, as_rulebook

Span: TypeAlias = tuple[int, int, LayerPath]
"""First number, number after the last, and layer of the autograd nodes made during one call."""


class CutCalls(Protocol):
    """Calls of a layer that are cut out of the graph, and through which relevance is swept apart; see `looped`."""

    graph: Graph

    def roots(self) -> list[NodeInfo]:
        """The nodes that made the arguments of the calls."""

    def gradients(self, score: Any, ends: Sequence[Any], outer: torch.Tensor) -> Any:
        """Return the multipliers of `ends`, as `torch.autograd.grad` does."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """A forward pass of a borrowed model, with what a relevance propagation needs of it.

    Attributes:
        model: the model.
        rulebook: the rulebook asked for; None for `"auto"`.
        scorer: from leaves to scores.
        leaves: input tensors, or embeddings, at which relevance ends.
        scores: scores of the targets.
        nodes: nodes of the graph between scores and leaves.
        roots: the node of each score.
        notes: constants that operations added, and inputs that they did not save.
        spans: which autograd nodes were made during which call of which layer.
        outputs: outputs of layers at which relevance is read; None if there are none.
        conditions: layers of which relevance passes chosen units only; None if there are none.
        parameters: parameters whose relevance is wanted.
        calls: calls that are cut out of the graph; None for none.
    """

    model: nn.Module
    rulebook: Rulebook | None
    scorer: Scorer
    leaves: dict[str, torch.Tensor]
    scores: TargetScores
    nodes: list[NodeInfo]
    roots: list[NodeInfo]
    notes: Notes
    spans: list[Span]
    outputs: LayerOutputs | None
    conditions: Conditions | None
    parameters: Parameters
    calls: CutCalls | None = None


def record(
    model: nn.Module,
    x: Input,
    targets: Sequence[Spec],
    *,
    rules: str | Rulebook,
    layers: Sites | LayerOutputs = (),
    through: Mapping[str, Units] | None = None,
    parameters: str | Sequence[str] = (),
    forward: Forward | None = None,
    calls: CutCalls | None = None,
) -> Recording:
    """Run a borrowed model, and record its graph and what the graph does not keep.

    Args:
        model: borrowed model.
        x: its input.
        targets: what to explain.
        rules: rulebook, its name, or `"auto"`.
        layers: layers at whose outputs to read the relevance, and bases.
        through: layer -> units that relevance may pass.
        parameters: patterns of names of parameters whose relevance is wanted.
        forward: function to call instead of the model.
        calls: calls that `forward` cuts out of the graph.

    Raises:
        RelevanceError: if a score does not depend on the input.
        InputError: if the model returns one value for several samples.
    """
    refuse_parts(
        model,
        "relevance",
        "Shard the model by FSDP2 (fully_shard), which gathers each layer's weights, or take a gradient method of "
        "saliency, such as input_x_gradient.",
    )
    rulebook, modules = None if rules == "auto" else as_rulebook(rules), modules_of(model)
    wanted = Parameters(model, parameters)
    if rulebook is None or rulebook.linear:
        _save_inputs(modules)
    else:
        _freeze(modules, but=wanted.tensors)
    scores = TargetScores(targets)
    scorer = Scorer(model, x, scores.joint_target(), forward=forward, whole="never")
    leaves = scorer.start()
    graph = Graph(leaves.values(), TABLE)
    if calls is not None:
        calls.graph = graph
    generators = generator_states()
    outputs = layers if isinstance(layers, LayerOutputs) else _outputs(model, scorer, layers, forward)
    restore_generators(generators)
    axes = functools.partial(followed, model, scorer.inputs, forward)
    conditions = Conditions(model, through, axes) if through else None
    with contextlib.ExitStack() as stack:
        spans = stack.enter_context(Spans(model))
        copying = any(map(is_fsdp, modules))
        whole = _whole_layers(rulebook, wanted)
        recorder = Recorder(graph, copying=copying, layer=spans.layer, whole=whole)
        for watcher in (outputs, conditions, recorder):
            if watcher is not None:
                stack.enter_context(watcher)
        with scorer.inner.left_to(recorder):
            joint, output = scorer.scored(leaves)
    scores.values = values = scores.values or [joint]
    scorer.refuse_joint("relevance")
    scorer.check(leaves, joint, output)
    if recorder.notes.cuts.left and calls is None:
        restore_generators(generators)
        _find_cuts_outside_torch(scorer, leaves, recorder.notes, whole)
        scores.values = values
    roots = [_root(score, graph, recorder.notes.cuts) for score in values]
    recomputes = any(getattr(one, "gradient_checkpointing", None) is True for one in modules)
    if conditions is None and calls is None and not recomputes:  # another backward pass would run its blocks again
        known = scorer.run._replace(key=None) if any(one.own for one in scores.targets) else scorer.run
        weighted = torch.stack([one * (1 + place) for place, one in enumerate(values)], dim=1)  # none cancel
        warn_of_joint_scores(lambda _: weighted, leaves, "relevance", run=known)
    every = [*roots, *(() if calls is None else calls.roots())]
    nodes = list({id(info): info for root in every for info in graph.reached(root)}.values())
    return Recording(
        model,
        rulebook,
        scorer,
        leaves,
        scores,
        nodes,
        roots,
        recorder.notes,
        spans.found,
        outputs,
        conditions,
        wanted,
        calls,
    )


def _outputs(model: nn.Module, scorer: Scorer, layers: Sites, forward: Forward | None) -> LayerOutputs | None:
    """What keeps the outputs of layers, and of bases; None if none are wanted."""
    bases, layers = split_bases(layers)
    sites = find_basis_sites(model, scorer.inputs, bases, forward)
    return LayerOutputs(model, layers, sites) if layers != () or sites else None


def _root(score: torch.Tensor, graph: Graph, cuts: Cuts) -> NodeInfo:
    root = None if score.grad_fn is None else graph.visit(score.grad_fn)
    if root is None or not root.depends:
        raise RelevanceError(
            f"the score does not depend on the input by operations that have a gradient: {cuts.reason()}, or the "
            "target ignores the input."
        )
    return root


def _whole_layers(rulebook: Rulebook | None, wanted: Parameters) -> Mapping[Callable[..., Any], Whole]:
    """What runs recurrent layers as one node: none where a rule, or a question, is about a part of them."""
    parts = () if rulebook is None else rulebook.linear  # those that "auto" chooses among are for convolutions
    known = all(TABLE.get(op) is row for op, row in STEPS.items())
    return WHOLE if known and not wanted.tensors and all(part is Part.CONVOLUTION for part, _ in parts) else {}


def _find_cuts_outside_torch(
    scorer: Scorer, leaves: Mapping[str, torch.Tensor], notes: Notes, whole: Mapping[Callable[..., Any], Whole]
) -> None:
    """Find the constants that were computed from the input outside of torch: those that change when it does."""
    draw = torch.Generator().manual_seed(0)
    moved = {
        name: leaf.detach() * (1 + 0.01 * torch.randn(leaf.shape, generator=draw).to(leaf))
        for name, leaf in leaves.items()
    }
    again = Recorder(Graph([leaf.requires_grad_() for leaf in moved.values()], TABLE), whole=whole)
    with again:
        scorer(moved)
    before, after = (
        [(number, constant) for number, constants in some.constants.items() for constant in constants]
        for some in (notes, again.notes)
    )
    (how, _), *_ = notes.cuts.left
    for (number, constant), (_, other) in zip(before, after, strict=False):
        if constant.kind == "additive" and not _equal(constant.value, other.value):
            notes.added_cuts.setdefault(number, how)


def _save_inputs(modules: Sequence[nn.Module]) -> None:
    """Make autograd save the input of every linear operation, as it does for a weight that needs a gradient."""
    for parameter in parameters_of(modules):
        if not parameter.requires_grad and parameter.is_floating_point() and not parameter.is_inference():
            parameter.requires_grad_(True)


def _freeze(modules: Sequence[nn.Module], but: Sequence[torch.Tensor]) -> None:
    """Make autograd save neither the inputs of linear operations nor offloaded weights, where no rule reads them."""
    wanted = {id(parameter) for parameter in but}
    for parameter in parameters_of(modules):
        if parameter.requires_grad and id(parameter) not in wanted:
            parameter.requires_grad_(False)


def _equal(one: complex | torch.Tensor, two: complex | torch.Tensor) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.shape == two.shape and torch.allclose(one, two, equal_nan=True)
    return type(one) is type(two) and bool(one == two)


class Parameters:
    """The parameters of a borrowed model whose relevance is wanted; they require gradients from here on.

    Args:
        model: borrowed model.
        patterns: names or globs; none for no parameter.

    Raises:
        LayerNotFound: if a pattern matches no parameter.
        OptionError: if a parameter that matches holds no floating-point numbers.
    """

    def __init__(self, model: nn.Module, patterns: str | Sequence[str]) -> None:
        patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        self._named: dict[str, nn.Parameter] = {}
        if patterns:
            need_weights(model, "the relevance of parameters (parameters=)")
            known = dict(model.named_parameters())
            for name in matching_names(patterns, known, "parameter", type(model).__name__):
                self._named[name] = known[name]
        for name, parameter in self._named.items():
            if not parameter.is_floating_point():
                raise OptionError(f"parameter {name!r} holds {parameter.dtype}, so no relevance can pass it.")
            parameter.requires_grad_(True)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The parameters, as further inputs of `torch.autograd.grad`."""
        return list(self._named.values())

    def relevance(self, multipliers: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor]:
        """Return R = w g by name, summed over the batch; 0 where the score does not depend on the parameter."""
        pairs = zip(self._named.items(), multipliers, strict=True)
        return {
            name: torch.zeros_like(parameter) if g is None else relevance_of(parameter.detach(), g)
            for (name, parameter), g in pairs
        }


def innermost(spans: Sequence[Span], numbers: Sequence[int]) -> dict[int, LayerPath]:
    """Return the path of the innermost layer during whose call each node was made; `""` for none.

    Args:
        spans: as recorded.
        numbers: sequence numbers of nodes, sorted.
    """
    pending = sorted(spans, key=lambda span: (span[0], -span[1]), reverse=True)
    paths: dict[int, LayerPath] = {}
    running: list[Span] = []
    for number in numbers:
        while pending and pending[-1][0] <= number:
            span = pending.pop()
            while running and running[-1][1] <= span[0]:
                running.pop()
            running.append(span)
        while running and running[-1][1] <= number:
            running.pop()
        paths[number] = running[-1][2] if running else ""
    return paths
