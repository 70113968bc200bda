"""Relevance through a loop that calls one layer many times, such as the sampling of a diffusion model.

The calls are cut out of the graph of the loop, which keeps nothing of a call but its arguments. In the sweep each call
is recorded by itself when relevance comes to it, with a ledger of its own, and forgotten: memory is that of one call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from layerlens.analyzers.common.leaves.leaves import Leaf, embedded, substitute
from layerlens.analyzers.common.leaves.token_leaf import token_uses
from layerlens.analyzers.common.scorer import Scorer
from layerlens.analyzers.common.target_scores import TargetScores
from layerlens.analyzers.graph.graph import Graph, NodeInfo
from layerlens.analyzers.graph.recorder import Recorder
from layerlens.errors import InputError, RelevanceError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.model.borrowed import generator_states, restore_generators
from layerlens.model.call_tracking import Spans, nodes_made
from layerlens.model.layers import Selection
from layerlens.model.trees import describe, map_tensors, named_tensors, version
from layerlens.probes.made_edits import Edit, Edited
from layerlens.probes.probe import Probe
from layerlens.results import Ledger
from layerlens.targets.target import Spec

from .book import Bookkeeper, book_inputs
from .layer_relevance import LayerOutput, LayerOutputs
from .loop_records import CallRelevance, LoopRelevance
from .plan import make_plan
from .record import Parameters, Recording, record
from .rules.operation_table import TABLE
from .rules.rulebook import Rulebook, as_rulebook
from .sweep import sweep


class LoopedCalls:
    """The calls of one layer in a loop, each cut out of the graph of the loop.

    Args:
        layer: the layer, of a borrowed model.
        batch: number of samples of the loop.
        prompt: argument of the layer that holds the words: its relevance is read also where it is a constant. None
            takes the token ids, else the only argument after the picture that is (batch, token, feature).
        rules: rulebook, its name, or `"auto"`.
        layers: layers inside of `layer` at whose outputs to read relevance.
        done: called after each call, forward and backward.

    Attributes:
        graph: what is known of the graph of the loop; set before the loop runs.
        bookkeeper: books what leaves the loop in a call; set before the sweep.
        found: what relevance did in each call, for each sweep, the last call first.
    """

    graph: Graph
    bookkeeper: Bookkeeper

    def __init__(
        self,
        layer: nn.Module,
        batch: int,
        *,
        prompt: str | None = None,
        rules: str | Rulebook = "auto",
        layers: Selection = (),
        done: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.layer, self.batch, self.prompt, self.layers, self.done = layer, batch, prompt, layers, done
        self.rulebook = None if rules == "auto" else as_rulebook(rules)
        self.found: list[list[CallRelevance]] = []
        self._calls: list[_Call] = []
        self._uses: dict[str, Leaf] | None = None
        self._ids: dict[str, torch.Tensor] = {}
        self._later: dict[tuple[str, int, str], torch.Tensor] = {}

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """Cut every call of the layer out of the graph; as usual where gradients are off.

        Yields:
            Nothing.
        """
        if not torch.is_grad_enabled():
            yield
            return
        own, self._calls = vars(self.layer).get("forward"), []

        def restore() -> None:
            if own is None:
                vars(self.layer).pop("forward", None)
            else:
                self.layer.forward = own

        def run(*args: Any, **kwargs: Any) -> Any:
            restore()
            try:
                return self._run(args, kwargs)
            finally:
                self.layer.forward = run

        self.layer.forward = run
        try:
            yield
        finally:
            restore()

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one call without a graph.

        Raises:
            InputError: where the loop switches gradients off.
        """
        if not torch.is_grad_enabled():
            raise InputError(
                "the sampling loop calls the model without gradients (torch.no_grad or torch.inference_mode), so "
                "nothing can be traced back. Give the loop without that decorator: of a decorated function, "
                "sample.__wrapped__ is the one inside."
            )
        call = _Call(self, nodes_made(), Inputs(args, kwargs).named_for(self.layer))
        self._calls.append(call)
        with torch.no_grad(), torch._C.DisableTorchFunction():
            output = self.layer(*args, **kwargs)
            call.outputs = tuple(one.detach().requires_grad_() for one in _floating(output))
        self.graph.add_leaves(call.outputs)
        parts = iter(call.outputs)
        self.done(1)
        return map_tensors(output, lambda old: next(parts) if old.is_floating_point() else old)

    def roots(self) -> list[NodeInfo]:
        """The nodes that made the arguments of the calls."""
        made = [one for call in self._calls for one in call.joined.values() if one.grad_fn is not None]
        return [info for one in made if (info := self.graph.info(one)) is not None and info.depends]

    def gradients(self, score: Any, ends: Sequence[Any], outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the multipliers of `ends`, call by call from the last.

        Args:
            score: the score.
            ends: tensors of the loop.
            outer: multiplier of the score.
        """
        self.found, self._later = [*self.found, []], {}
        outputs = [one for call in self._calls for one in call.outputs]
        reached: list[torch.Tensor | None] = [None] * (len(ends) + len(outputs))

        def collect(tensors: Sequence[torch.Tensor], given: Sequence[torch.Tensor]) -> None:
            targets = [*ends, *outputs]
            found = torch.autograd.grad(tensors, targets, given, allow_unused=True, retain_graph=True)
            for place, g in enumerate(found):
                before = reached[place]
                if g is not None:
                    reached[place] = g if before is None else before + g

        collect([score], [outer])
        for call in reversed(self._calls):
            start = len(ends) + len(outputs) - len(call.outputs)
            arriving, reached = reached[start:], reached[:start]
            outputs = outputs[: len(outputs) - len(call.outputs)]
            if any(g is not None for g in arriving):
                passed = call.relevance(arriving)
                pairs = [(call.joined[name], g) for name, g in passed.items() if g is not None]
                if pairs:
                    collect([one for one, _ in pairs], [g for _, g in pairs])
            self.done(1)
        self._later = {}
        return tuple(reached)

    def ids(self, given: Inputs) -> dict[str, Leaf]:
        """Return the leaves of token ids of a call, found once for ids that stay as they are."""
        kinds = (torch.int64, torch.int32)
        ids = {name: one for name, one in given.tensors().items() if one.dtype in kinds and one.ndim}
        if self._uses is None or any(not torch.equal(self._ids[name], ids[name]) for name in self._uses):
            uses = token_uses(self.layer, given, None, ids) if ids else {}
            self._uses = {name: Leaf(embedded(ids[name], calls), tuple(calls)) for name, calls in uses.items()}
            self._ids = ids
        return self._uses


class _Call:
    """One call: its arguments, and how to run it again."""

    def __init__(self, owner: LoopedCalls, number: int, given: Inputs) -> None:
        self.owner, self.number, self.index = owner, number, len(owner._calls)
        known = given.tensors()
        self.joined = {name: one for name, one in known.items() if one.requires_grad and one.is_floating_point()}
        self.versions = {name: version(one) for name, one in self.joined.items()}
        names = iter(known)
        self.given = given.map(lambda one: one.detach() if next(names) in self.joined else one.detach().clone())
        self.states = generator_states()
        self.outputs: tuple[torch.Tensor, ...] = ()

    def relevance(self, outer: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
        """Run the call again, and return the multipliers of the arguments that the loop made.

        Args:
            outer: multipliers of the outputs.

        Raises:
            RelevanceError: where a rule for first layers is asked for.
            InputError: where the loop wrote into an argument afterwards.
        """
        written = [name for name, one in self.joined.items() if version(one) != self.versions[name]]
        if written:
            raise InputError(
                f"the sampling loop writes into what it gave the model (argument {', '.join(written)}) after call "
                f"{self.index}, which is run again for its relevance. Make a new tensor there: x = x + step, not "
                "x += step."
            )
        states = generator_states()
        try:
            restore_generators(self.states)
            with torch.enable_grad():
                return self._propagate(outer)
        finally:
            restore_generators(states)

    def _run(self, leaves: Mapping[str, torch.Tensor], words: Mapping[str, Leaf]) -> tuple[torch.Tensor, ...]:
        """Run the layer with a graph, from these leaves."""
        given = self.given.replace({name: leaf for name, leaf in leaves.items() if name not in words})
        edits: dict[Edited, list[Edit]] = {path: [edit] for path, edit in substitute(words, leaves).items()}
        with Probe(self.owner.layer, (), edits=edits) if edits else contextlib.nullcontext():
            return _floating(self.owner.layer(*given.args, **given.kwargs))

    def _propagate(self, outer: Sequence[torch.Tensor | None]) -> dict[str, torch.Tensor | None]:
        owner, words = self.owner, self.owner.ids(self.given)
        leaves = {name: one.detach().clone().requires_grad_() for name, one in self.joined.items()}
        leaves |= {name: leaf.value.clone().requires_grad_() for name, leaf in words.items()}
        prompt = self.prompt(words)
        held = self.given.tensors().get(prompt)
        if held is not None and prompt not in leaves:
            if not held.is_floating_point():
                raise InputError(f"prompt={owner.prompt!r} holds {describe(held)}, which no embedding looks up.")
            leaves[prompt] = held.clone().requires_grad_()
        graph = Graph(leaves.values(), TABLE)
        read = LayerOutputs(owner.layer, owner.layers) if owner.layers != () else None
        with contextlib.ExitStack() as stack:
            spans = stack.enter_context(Spans(owner.layer))
            recorder = Recorder(graph, layer=spans.layer)
            for watcher in (read, recorder):
                if watcher is not None:
                    stack.enter_context(watcher)
            made = self._run(leaves, words)
            pairs = [(one, g) for one, g in zip(made, outer, strict=True) if g is not None and one.grad_fn is not None]
            score = torch.stack([(one * g).flatten(1).sum(1) for one, g in pairs]).sum(0)
        scores = TargetScores([lambda output: output])
        scores.values = [score]
        root = graph.visit(score.grad_fn)  # type: ignore[arg-type]
        recording = Recording(
            owner.layer, owner.rulebook, cast(Scorer, None), leaves, scores, graph.reached(root), [root],
            recorder.notes, spans.found, read, None, Parameters(owner.layer, ()),
        )  # fmt: skip
        plan, books = make_plan(recording), Bookkeeper.of(recording)
        (found,) = sweep(recording, plan, books)
        if any(one is not None for one in found.carried):
            raise RelevanceError("a first-layer rule (flat, w2, z-box) cannot be used in a loop: take epsilon or z+.")
        values = {
            name: (whole.sum(-1) if name in words else whole).detach()
            for name, whole in book_inputs(recording, books, found).items()
        }
        ledger = books.ledger(score)
        at: list[tuple[LayerOutput, torch.Tensor]] = []
        if read is not None:
            first = len(leaves)
            at = read.relevance(read.arrived(found.ends[first:], found.carried[first:], books.folded))
        sums, sizes = self._layers(at)
        owner.found[-1].append(
            CallRelevance(
                self.index, values, ledger, sums, sizes, plan.settings["rules"], prompt, held, self.given,
                self._book(ledger, prompt),
            )
        )  # fmt: skip
        return dict(zip(self.joined, found.ends, strict=False))

    def prompt(self, words: Mapping[str, Leaf]) -> str:
        """Return the name of the argument that holds the words; "" if there is none.

        Raises:
            InputError: if several may hold them.
        """
        if self.owner.prompt is not None:
            return self.given.find(self.owner.prompt, "argument in prompt=")[0]
        later = list(self.given.floating().items())[1:]
        found = list(words) or [name for name, one in later if one.ndim == 3]
        if len(found) > 1:
            raise InputError(
                f"the words may be in {' or '.join(found)}: name the argument, such as prompt={found[0]!r}."
            )
        return found[0] if found else ""

    def _layers(
        self, read: Iterable[tuple[LayerOutput, torch.Tensor]]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The relevance of each layer's output, and how large it is and how far it moves until the next call."""
        sums, squares = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
        for output, relevance in read:
            both = torch.stack([relevance.double().sum(), relevance.double().abs().sum()]).cpu()
            key, value = (output.layer, output.index, output.tensor), output.value
            later = self.owner._later.get(key)
            moved = value.new_tensor(float("nan")) if later is None else (later - value).double().square().sum()
            size = torch.stack([value.double().square().sum(), moved.double()]).cpu()
            self.owner._later[key] = value
            for kept, new in ((sums, both), (squares, size)):
                kept[output.layer] = kept[output.layer] + new if output.layer in kept else new
        return sums, {name: size.sqrt() for name, size in squares.items()}

    def _book(self, ledger: Ledger, prompt: str) -> torch.Tensor:
        """Book in the ledger of the loop what left it in this call; return that without the words."""
        batch, rest = self.owner.batch, ledger.score.new_zeros(self.owner.batch)
        for entry in ledger.entries:
            if entry.kind == "input" and entry.source in self.joined:
                continue  # it stays in the loop
            amount = entry.amount
            whole = amount.view(-1, batch).sum(0) if len(amount) % batch == 0 else amount.sum().expand(batch) / batch
            self.owner.bookkeeper.add(entry.kind, self.number, f"{entry.source} of call {self.index}", whole)
            rest = rest if entry.kind == "input" and entry.source == prompt else rest + whole
        return rest


def _floating(output: Any) -> tuple[torch.Tensor, ...]:
    return tuple(one for _, one in named_tensors(output) if one.is_floating_point())


def looped_relevance(
    model: nn.Module, x: Inputs, targets: Sequence[Spec], loop: Forward, calls: LoopedCalls
) -> list[LoopRelevance]:
    """Propagate scores of a loop back to its inputs and to what its calls take.

    Args:
        model: borrowed model.
        x: inputs of the loop.
        targets: what to score, of what the loop returns.
        loop: `loop(model, *args, **kwargs)`.
        calls: the calls of the layer.
    """

    def run(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with calls.cut():
            return loop(model, *args, **kwargs)

    recording = record(model, x, targets, rules=calls.rulebook or "auto", forward=run, calls=calls)
    plan, books = make_plan(recording), Bookkeeper.of(recording)
    calls.bookkeeper = books
    results = []
    for found, own, score, target in zip(
        sweep(recording, plan, books), calls.found, recording.scores.values, recording.scores.targets, strict=True
    ):
        inputs = {
            name: (whole if recording.scorer.leaves[name].layer is None else whole.sum(-1)).detach()
            for name, whole in book_inputs(recording, books, found).items()
        }
        results.append(LoopRelevance(score.detach(), target.label, inputs, books.ledger(score), own[::-1]))
    return results
