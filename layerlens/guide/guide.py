"""The questions that fit a model and an input, each with its call and its cost."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from layerlens.analyzers.activation.attention.weights import attention
from layerlens.analyzers.activation.recurrent.states import RECURRENT
from layerlens.analyzers.common.samples import or_none
from layerlens.analyzers.dynamics.blocks.logit_lens import logit_lens
from layerlens.analyzers.saliency.fitting import Fit, fit_of, fitting_methods
from layerlens.axes.followed import followed
from layerlens.errors import LayerLensError
from layerlens.inputs.inputs import Inputs
from layerlens.model.layers import Layers
from layerlens.results import Guide, GuideRow
from layerlens.signatures import public
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Spec
from layerlens.wrapped_model import WrappedModel

from .questions import QUESTIONS, Question

NAMES: Final = "x is your input; data, labels, other, optimizer and groups are what the question says."


@dataclasses.dataclass(frozen=True)
class Facts:
    """What is known of a model and an input.

    Attributes:
        fit: what decides which methods fit; None where the output has no score.
        why: why there is no score without a target; empty if there is one.
        target: what is scored, and as it is typed; `"None"` for the predicted class.
        output: the main output.
        attention: whether attention was found.
        recurrent: paths of the recurrent layers that ran.
        blocks: paths of the blocks that a logit lens reads; empty if there are none.
        calls: paths of the layers that ran, and hold weights.
        layers: number of layers that ran.
        classes: two likeliest classes of the first sample, as they are typed; fewer if there are fewer.
        inputs: the input.
    """

    fit: Fit | None
    why: str
    target: tuple[Spec, str]
    output: torch.Tensor | None
    attention: bool
    recurrent: tuple[str, ...]
    blocks: tuple[str, ...]
    calls: tuple[str, ...]
    layers: int
    classes: tuple[str, ...]
    inputs: Inputs

    @property
    def layer(self) -> str:
        """A layer to ask about: that of class activation maps, the middle block, or the middle layer with weights."""
        if self.fit is not None and self.fit.cam_layer is not None:
            return self.fit.cam_layer
        names = self.blocks or self.calls[:-1] or self.calls or ("",)
        return names[len(names) // 2]

    @property
    def each_block(self) -> str:
        """A selection of all blocks, as it is typed; `None` where there are none."""
        globs = {re.sub(r"(^|\.)\d+$", r"\1*", name) for name in self.blocks}
        return repr(globs.pop()) if len(globs) == 1 else "None"


Has = Callable[[Facts, Fit], bool]

NEEDS: Final[Mapping[str, Has]] = {
    "a score": lambda facts, fit: True,
    "a gradient": lambda facts, fit: fit.differentiable,
    "a layer with places": lambda facts, fit: fit.cam_layer is not None,
    "places": lambda facts, fit: fit.cam_layer is not None,
    "a text read with CTC": lambda facts, fit: not fit.tokens and _reads(facts.output),
    "a grid": lambda facts, fit: fit.cam_layer is not None and bool(fit.places) and not fit.tokens,
    "an image": lambda facts, fit: fit.image,
    "a table": lambda facts, fit: not (fit.places or fit.tokens),
    "several samples": lambda facts, fit: fit.samples > 1,
    "one input": lambda facts, fit: len(facts.inputs.tensors()) == 1,
    "classes": lambda facts, fit: len(facts.classes) > 1,
    "two classes": lambda facts, fit: len(facts.classes) > 1,
}
"""What a question needs of a score -> whether it is there."""

NEEDS_OF_MODEL: Final[Mapping[str, Callable[[Facts], bool]]] = {
    "attention": lambda facts: facts.attention,
    "recurrent layers": lambda facts: bool(facts.recurrent),
    "blocks": lambda facts: bool(facts.blocks),
    "a generator": lambda facts: _generates(facts),
    "a denoiser": lambda facts: _denoises(facts),
}
"""What a question needs of the model alone -> whether it is there."""


@public
def guide(lens: WrappedModel, x: Any = None, *, target: Spec = None) -> Guide:
    """List the questions that can be asked of this model and input, each with its call and its cost.

    Without an input, all questions. With one, the model is run about 25 times to find out which of them apply, and
    two timed passes give the time of each.

    Args:
        lens: a `Lens`.
        x: input as the lens takes it; None for the list of all questions.
        target: what to score in the calls; None for the predicted class.

    Returns:
        A `Guide`: a table that prints itself, with the calls in `calls`.

    Raises:
        InputError: when the input cannot be read.

    Example:
        >>> import torch
        >>> from layerlens import Lens
        >>> lens = Lens(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)))
        >>> any("attention" in call for call in lens.guide(torch.ones(1, 3)).calls), len(lens.guide()) > 40
        (False, True)
    """
    if x is None:
        words = {
            "target": "target",
            "class": "a",
            "classes": "a, b",
            "layer": "layer",
            "blocks": "layers",
            "recurrent": "layer",
        }
        rows = [
            GuideRow(
                one.ask, one.call.format(**words), _cost(one), ", ".join([*one.needs, *[one.given] * bool(one.given)])
            )
            for one in QUESTIONS
        ]
        return Guide(
            tuple(rows), notes=(NAMES, "lens.guide(x) lists those that fit your model and input, with their time.")
        )
    inputs = lens.inputs(x)
    facts = _facts(lens, inputs, target)
    lacking = {one: _lacks(one, facts) for one in QUESTIONS}
    left: dict[str, list[str]] = {}
    for one, need in lacking.items():
        if need:
            left.setdefault(need, []).append(_method(one))
    taken = _auto(lens, inputs, facts)
    words = {
        "target": facts.target[1],
        "class": next(iter(facts.classes), ""),
        "classes": ", ".join(facts.classes[:2]),
        "layer": repr(facts.layer),
        "blocks": facts.each_block,
        "recurrent": repr(facts.recurrent[0]) if len(facts.recurrent) > 1 else "",
    }
    rows = [_row(one, words, facts, taken) for one in QUESTIONS if not lacking[one]]
    notes = [NAMES]
    if facts.why:
        scored = "nothing was scored" if facts.fit is None else f"the calls have target={facts.target[1]}"
        mean = ", a function such as lambda output: output.flatten(1).mean(dim=1)" * (facts.target[1] == "score")
        notes.append(f"without a target there is no score, so {scored}{mean}: {facts.why}")
    notes += [f"left out, without {need}: {', '.join(dict.fromkeys(names))}" for need, names in left.items()]
    return Guide(tuple(rows), True, notes=tuple(notes))


def _row(one: Question, words: Mapping[str, str], facts: Facts, auto: str) -> GuideRow:
    call = one.call.format(**words).replace(", )", ")")
    call = re.sub(r", (targets?=)?None\b", "", call)
    cost = one.cost.replace("auto", re.sub(r" \([^)]*\)", "", auto))
    seconds = None
    if facts.fit is not None and not one.given:
        seconds = facts.fit.seconds(cost, block=len(facts.blocks or facts.calls), layer=facts.layers)
        if seconds is not None and cost.endswith("in all"):
            seconds /= facts.fit.samples
    return GuideRow(one.ask, call, cost, one.given, seconds)


def _cost(one: Question) -> str:
    return one.cost.replace("auto", "as the method that auto takes")


def _method(one: Question) -> str:
    found = re.search(r"lens\.(\w+)", one.call)
    assert found is not None
    detail = re.search(r'by="\w+"|contrast', one.call)
    return found[1] if detail is None else f"{found[1]} ({detail[0]})"


def _lacks(one: Question, facts: Facts) -> str:
    """Return the first thing that a question needs and that is not there; empty if it applies."""
    for need in one.needs:
        if need in NEEDS_OF_MODEL:
            there = NEEDS_OF_MODEL[need](facts)
        else:
            there = facts.fit is not None and NEEDS[need](facts, facts.fit)
        if not there:
            return need if need in NEEDS_OF_MODEL or facts.fit is not None else "a score"
    return ""


def _facts(lens: WrappedModel, inputs: Inputs, target: Spec) -> Facts:
    model, forward = lens.model, lens.forward
    output = or_none(lambda: main_output(lens.run_inputs(inputs)))
    classes = _classes(lens, inputs, output)
    named = target is None and classes and inputs.batch == 1 and output is not None and output.ndim == 2
    tries = [(target, classes[0] if named else repr(target))]
    if target is None and output is not None:
        tries += _others(output)
    fit, why, chosen = None, "", tries[0]
    for one in tries:
        try:
            fit = fit_of(model, inputs, target=lens.target(one[0], inputs), forward=forward)
        except LayerLensError as error:
            why = why or str(error)
        else:
            chosen = one
            break
    lensed = or_none(lambda: logit_lens(model, inputs, top=1, forward=forward))
    modules = Layers(model)
    ran = dict.fromkeys(site.path for site in followed(model, inputs, forward).calls if site.path)
    weighted = [path for path in ran if any(True for _ in modules[path].parameters(recurse=False))]
    return Facts(
        fit=fit,
        why=why,
        target=chosen,
        output=output,
        attention=or_none(lambda: attention(model, inputs, queries=-1, forward=forward)) is not None,
        recurrent=tuple(path for path in ran if isinstance(modules[path], RECURRENT)),
        blocks=() if lensed is None else tuple(row for row in lensed.rows if not row.startswith("input of ")),
        calls=tuple(weighted),
        layers=len(ran) + 1,
        classes=classes,
        inputs=inputs,
    )


def _reads(output: torch.Tensor | None) -> bool:
    """Whether each sample of an output (batch, step, class) has symbols, and blanks (class 0) between them."""
    if output is None or output.ndim != 3 or not output.is_floating_point():
        return False
    blank = output.argmax(dim=2) == 0
    return bool((blank.any(dim=1) & ~blank.all(dim=1)).all())


def _others(output: torch.Tensor) -> list[tuple[Spec, str]]:
    """Return what to score, and how it is typed, where the output names no class: a token, or a mean."""
    tokens = output.ndim == 3 and output.shape[-1] > 1
    last = (-1, int(output[0, -1].argmax())) if tokens else None
    mean = (lambda output: output.flatten(1).mean(dim=1)), "score"
    return [mean] if last is None else [(last, repr(last)), mean]


def _classes(lens: WrappedModel, inputs: Inputs, output: torch.Tensor | None) -> tuple[str, ...]:
    """Return the two likeliest classes of the first sample as they are typed: a name, a number, a token."""
    if output is None or output.ndim not in (2, 3) or output.shape[-1] < 2 or not output.is_floating_point():
        return ()
    likeliest = output[0].reshape(-1, output.shape[-1])[-1].topk(2).indices.tolist()
    if output.ndim == 3:
        texts = [None if lens.tokenizer is None else _token(lens, inputs, one) for one in likeliest]
        return tuple(f"(-1, {one})" if text is None else repr(text) for one, text in zip(likeliest, texts, strict=True))
    names = lens.class_names
    return tuple(repr(one if names is None else names[one]) for one in likeliest)


def _token(lens: WrappedModel, inputs: Inputs, token: int) -> str | None:
    """Return a text that a target can name a token by, None if there is none."""
    decode = getattr(lens.tokenizer, "decode", None)
    text: str | None = None if decode is None else decode([token])
    return text if text is not None and or_none(lambda: lens.target(text, inputs)) is not None else None


def _auto(lens: WrappedModel, inputs: Inputs, facts: Facts) -> str:
    """Return the cost of the method that `auto` takes."""
    if facts.fit is None:
        return ""
    aim = lens.target(facts.target[0], inputs)
    table = fitting_methods(lens.model, inputs, target=aim, forward=lens.forward, fit=facts.fit)
    return table["auto"][1]


def _generates(facts: Facts) -> bool:
    """Whether it makes images of vectors."""
    given = list(facts.inputs.tensors().values())
    vector = len(given) == 1 and given[0].ndim == 2 and given[0].is_floating_point()
    return vector and facts.output is not None and facts.output.ndim == 4


def _denoises(facts: Facts) -> bool:
    """Whether it makes pictures of pictures and something else, such as a noise level."""
    first, *others = facts.inputs.tensors().values()
    return bool(others) and facts.output is not None and first.ndim == 4 and first.shape[2:] == facts.output.shape[2:]
