"""Watch a training: gradients, updates, activations and drift of every layer, at a bounded cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from layerlens.analyzers.common.features.layer_features import FeatureReader
from layerlens.analyzers.common.messages import first_reasons
from layerlens.errors import AxesUnknown, OptionError, check_count, warn
from layerlens.inputs.inputs import Forward, Input
from layerlens.model.layers import Layers, Selection
from layerlens.model.tensors import changeable, tensor_path
from layerlens.model.trees import padded
from layerlens.probes.probe import Probe
from layerlens.results import TrainingHistory
from layerlens.signatures import public
from layerlens.turns import whole

from .drift import Drift
from .layer_statistics import HEALTH, FirstAxes, OutputSums, ParameterUpdates, output_sums, parameters_by_layer
from .lightning import lightning_callback
from .training_record import TrainingRecord

FEWEST_BETWEEN = 10
"""Steps between two measured ones on an accelerator, whose time the clock of this process does not show."""

GROWTH = 1.5
"""Factor from one step that is measured whatever it costs to the next: 11 of 120 steps, 20 of 4,000."""

USEFUL = 10
"""Fewest measured steps that show how a run develops."""

SEEN = 0.8
"""Share of the cost that the clock of the watch sees (.8 to .9 in benchmarks); the rest is the calls of hooks."""


@public
def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    layers: Selection = None,
    *,
    every: int | Literal["auto"] = "auto",
    budget: float = 0.05,
    data: Input | None = None,
    forward: Forward | None = None,
) -> Watch:
    r"""Record what happens in every layer while your own loop trains the model.

    At the steps that are measured:

    - `"gradient norm"`: ||dL/dW|| of each layer's own parameters, before the optimizer's step;
    - `"update ratio"`: ||W' - W|| / ||W||, what the step changed (for plain SGD, lr ||dL/dW|| / ||W||), and
      `"weight norm"`: ||W||;
    - `"constant units"`: the share of units (channels, features) whose output is one number for all samples and places
      of the step, as for a dead ReLU; `"zeros"`: the share of values that are 0; `"activation mean"` and
      `"activation std"`;
    - `"drift"`, with `data`: 1 - CKA between each layer's output for these samples now and at the start, both in eval
      mode (debiased linear CKA, Kornblith et al. 2019; Song et al. 2012): 0 is the same up to rotation and scale.

    Nothing is left on the model between measured steps, and nothing of the training changes: the loop's numbers are the
    same to the bit. Runs without gradients, such as a validation, are not counted. With gradient accumulation all
    forward passes of a step are taken together; of a closure that `step` calls several times, as LBFGS does, the first
    call counts. What the units of a layer are is followed once, at the first step, by one more forward pass in eval
    mode; where it is not known, the share of constant units is NaN.

    Args:
        model: any module.
        optimizer: optimizer whose `step` is watched; None only for `callback()`.
        layers: layers whose outputs are measured; None for all layers that have no layers inside them.
        every: number of steps from one measured step to the next; `"auto"` measures as often as `budget` allows, and
            always steps 0, 1, 2, 4, 7, 11, 17, ... (each about 1.5 times the one before), so that short runs have some.
        budget: with `"auto"`, the share of the time since the start of the watch that measuring may take, apart from
            the steps that are always measured.
        data: inputs, `(samples, ...)`, for the drift; 8 samples or more. Each measured step costs a forward pass on
            them, and the sums of products of all samples.
        forward: `forward(model, *args, **kwargs)` to run on `data` instead of the model.

    Returns:
        A `Watch`: a context in which the training runs. Its `history` is a `TrainingHistory`, at any time.

    Warns:
        UserWarning: at the end, when no step was seen, or with `"auto"` fewer than 10 and less than half were measured.

    Raises:
        InputError: when `data` cannot be read.
        LayerNotFound: when the selection matches no layer.
        OptionError: when an option is out of range, or the optimizer moves none of the model's parameters.

    Memory: at a measured step a copy of the parameters.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with watch(net, optimizer, every=1) as watching:
        ...     for _ in range(3):
        ...         loss = net(torch.randn(16, 4)).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...         watching.log(loss=loss)
        >>> watching.history.of("update ratio").values.shape
        torch.Size([2, 3])
    """
    return Watch(model, optimizer, layers, every, budget, data, forward)


@whole
class Watch:
    """A training that is watched; made by `watch`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        layers: Selection,
        every: int | Literal["auto"],
        budget: float,
        data: Input | None,
        forward: Forward | None,
    ) -> None:
        if every != "auto":
            check_count("every", every, also="'auto'")
        if not isinstance(budget, (int, float)) or isinstance(budget, bool) or not 0 < budget < 1:
            raise OptionError(f"budget must be a share of the time between 0 and 1, got {budget!r}.")
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise OptionError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
        known = Layers(model)
        leaves = [path for path, module in known.items() if not any(module.children())]
        self.layers = known.select(leaves if layers is None else layers, tensors=True)
        self.model, self.optimizer, self.every, self.budget = model, optimizer, every, float(budget)
        self.drift = None if data is None else Drift(FeatureReader(model, self.layers, forward=forward), data)
        if optimizer is not None:
            self._parameters(optimizer)
        self._handles: list[RemovableHandle] = []
        self._probe: Probe | None = None
        self._axes, self._following = FirstAxes(model), list[RemovableHandle]()
        self._updates = ParameterUpdates({})
        self._record = TrainingRecord(tuple(known))
        self._seen, self._since, self._start, self._spent, self._ended = 0, 0, 0.0, 0.0, 0.0
        self._setup = 0.0

    def _parameters(self, optimizer: torch.optim.Optimizer) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that the optimizer moves by layer.

        Raises:
            OptionError: when there are none.
        """
        groups = parameters_by_layer(self.model, (one for group in optimizer.param_groups for one in group["params"]))
        if not groups:
            raise OptionError(
                f"the optimizer moves none of the parameters of {type(self.model).__name__}; give the one that trains "
                "this model."
            )
        return groups

    def __enter__(self) -> Watch:
        if self._handles:
            raise OptionError("this watch is already on; make a second one to watch twice.")
        if self.optimizer is None:
            raise OptionError("there is no optimizer to watch: watch(model, optimizer), or hand over .callback().")
        self._updates = ParameterUpdates(self._parameters(self.optimizer))
        begun = time.perf_counter()
        self._start = begun - (self._ended - self._start)  # what an earlier time of this watch took counts as well
        self._ended = begun
        if self.drift is not None and not self._seen:
            self.drift.begin()
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        try:
            self._attach()
        except BaseException:
            self._stop()
            raise
        taken = time.perf_counter() - begun
        self._spent, self._setup = self._spent + taken, self._setup + taken
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if kind is None and not self._record.steps:
            warn("watch: no step of the optimizer was seen inside the block; is another optimizer at work?")
        elif kind is None and self.every == "auto" and len(self._record.steps) < min(USEFUL, self._seen / 2):
            warn(
                f"watch: {len(self._record.steps)} of {self._seen} steps were measured, as budget={self.budget:g} of "
                f"the time allowed. watch(..., every={max(1, self._seen // USEFUL)}) measures {USEFUL} or more."
            )

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._detach()
        self._updates.forget()
        self._ended = time.perf_counter()

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Add the time of the block to the time spent.

        Yields:
            Nothing.
        """
        begun = time.perf_counter()
        yield
        self._spent += time.perf_counter() - begun

    def _attach(self) -> None:
        """Read the layers' outputs from now until the next step."""
        modules = dict(Layers(self.model).items())
        edits = {path: self._reader(path, modules[path]) for path in self.layers}
        self._sums: dict[str, OutputSums] = {}
        self._probe = Probe(self.model, (), edits=edits)
        self._probe.__enter__()
        self._following = self._axes.attach()

    def _detach(self) -> None:
        for handle in self._following:
            handle.remove()
        self._following.clear()
        if self._probe is not None:
            probe, self._probe = self._probe, None
            probe.__exit__(None, None, None)

    def _reader(self, path: str, module: nn.Module) -> Callable[[Any], Any]:
        def read(output: Any) -> Any:
            if torch.is_grad_enabled():
                with self._timed(), torch.no_grad():
                    found = changeable(module, output, self.layers.tensors[path], path)
                    named = len(found) > 1 or self.layers.tensors[path] is not None
                    for tensor, values in found.items():
                        name, padded_values = tensor_path(path, tensor if named else ""), padded(values)
                        axes: tuple[int | None, int | None] = (None, None)
                        try:
                            axes = self._axes.of(path, tensor, padded_values)
                        except AxesUnknown as error:
                            self._axes.unknown.setdefault(name, str(error))
                        sums = output_sums(padded_values, *axes, known=name not in self._axes.unknown)
                        if sums is not None and name in self._sums:
                            self._sums[name].add(sums)
                        elif sums is not None:
                            self._sums[name] = sums
            return output

        return read

    def _before_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._probe is None:
            return None
        with self._timed():
            self._updates.begin()
        kwargs = dict(kwargs)
        closure = kwargs.pop("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._read_gradients()
            return None

        def watched() -> Any:  # forward and backward pass run inside the step, as in LBFGS and Lightning
            loss = closure()
            self._read_gradients()
            return loss

        return (args[0], watched, *args[2:]), kwargs

    def _read_gradients(self) -> None:
        """Read the gradients of the step, once, and stop reading the layers."""
        if self._probe is None:
            return
        with self._timed():
            self._detach()
            self._record.note("gradient norm", self._updates.gradients())

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._updates.begun:
            self._read_gradients()  # of an optimizer that has not called its closure
        with self._timed():
            if self._updates.begun:
                self._measure()
        self._seen += 1
        self._since += 1
        if self._due():
            with self._timed():
                self._attach()

    def _measure(self) -> None:
        if self._axes.unknown and not self._record.steps:
            warn(f"watch: 'constant units' is NaN where units are not known. {first_reasons(self._axes.unknown)}")
        sizes, ratio = self._updates.end()
        self._record.note("weight norm", sizes)
        self._record.note("update ratio", ratio)
        numbers = {path: sums.numbers() for path, sums in self._sums.items()}
        for quantity in HEALTH:
            self._record.note(quantity, {path: own[quantity] for path, own in numbers.items()})
        if self.drift is not None:
            self._record.note("drift", self.drift.now())
        self._record.close(self._seen, max((sums.rows for sums in self._sums.values()), default=0))
        self._since = 0

    def _due(self) -> bool:
        """Whether the next step is to be measured."""
        if self.every != "auto":
            return self._seen % self.every == 0
        if self._record.steps and self._seen > GROWTH * self._record.steps[-1]:
            return True
        device = next(self.model.parameters()).device.type
        fewest = 0 if device == "cpu" else FEWEST_BETWEEN
        elapsed = time.perf_counter() - self._start
        each = (self._spent - self._setup) / max(1, len(self._record.steps))
        return self._since >= fewest and self._spent + each <= SEEN * self.budget * elapsed

    def log(self, **values: float | torch.Tensor) -> None:
        """Keep numbers of the training loop with the last step that was taken, such as `log(loss=loss)`.

        Raises:
            OptionError: when a value is not a single number.
        """
        self.log_at(max(self._seen - 1, 0), **values)

    def log_at(self, step: int, **values: float | torch.Tensor) -> None:
        """Keep numbers with a step, counted from 0."""
        for name, value in values.items():
            self._record.log(name, step, value)

    @property
    def seen(self) -> int:
        """Steps of the optimizer so far; also the number of the one to come."""
        return self._seen

    def callback(self, optimizer: int = 0) -> Any:
        """A Lightning callback that watches one of the trainer's optimizers from the start to the end of its fit.

        The loss of each batch is kept as `"loss"`, with the step that the batch belongs to. Give the `LightningModule`,
        or any module inside it, to `watch`.

        Args:
            optimizer: number of the optimizer among those that `configure_optimizers` returns.

        Raises:
            MissingPackage: when neither `lightning` nor `pytorch_lightning` is installed.
        """
        return lightning_callback(self, optimizer)

    @property
    def history(self) -> TrainingHistory:
        """What was recorded so far."""
        now = time.perf_counter() if self._handles else self._ended
        share = min(1.0, self._spent / SEEN / max(now - self._start, 1e-9))
        return self._record.history(
            self._axes.place,
            method=f"hooks on {type(self.optimizer).__name__}.step",
            settings={"every": self.every, "budget": self.budget, "layers": tuple(self.layers)},
            checks={"share of time": torch.tensor(share), "steps seen": torch.tensor(self._seen)},
        )

    def __repr__(self) -> str:
        state = "on" if self._handles else "off"
        return f"Watch({type(self.model).__name__}, {state}: {len(self._record.steps)} of {self._seen} steps measured)"
