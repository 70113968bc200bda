"""A training that is looked at: when to measure, and hooks on the optimizer and the layers while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from layerlens.analyzers.common.features.layer_features import FeatureReader
from layerlens.errors import OptionError, check_count, warn
from layerlens.inputs.inputs import Forward
from layerlens.model.layers import Layers, Selection
from layerlens.probes.probe import Probe
from layerlens.results import TrainingHistory

from .drift import Drift
from .layer_statistics import HEALTH, Sums, owners, sums_of
from .lightning import lightning_callback
from .parameter_updates import Moves
from .training_record import TrainingRecord

FEWEST_BETWEEN = 10
"""Steps between two measured ones on an accelerator, whose own time the clock of this process does not show."""

SEEN = 0.8
"""Part of the price that the clock of the watch sees (.8 to .9 in benchmarks); the rest is what calling hooks costs."""


class Watch:
    """A training that is looked at; made by `watch`."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        layers: Selection,
        every: int | Literal["auto"],
        budget: float,
        data: Any,
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
        self.layers = known.select(leaves if layers is None else layers)
        self.model, self.optimizer, self.every, self.budget = model, optimizer, every, float(budget)
        self.drift = None if data is None else Drift(FeatureReader(model, self.layers, forward=forward), data)
        if optimizer is not None:
            self._own(optimizer)
        self._handles: list[RemovableHandle] = []
        self._probe: Probe | None = None
        self._moves = Moves({})
        self._record = TrainingRecord(tuple(self.layers))
        self._seen, self._since, self._start, self._spent, self._ended = 0, 0, 0.0, 0.0, 0.0
        self._setup = 0.0

    def _own(self, optimizer: torch.optim.Optimizer) -> dict[str, list[nn.Parameter]]:
        groups = owners(self.model, (one for group in optimizer.param_groups for one in group["params"]))
        if not groups:
            raise OptionError(
                f"the optimizer moves none of the parameters of {type(self.model).__name__}; give the one that trains "
                "this model."
            )
        return groups

    def __enter__(self) -> Watch:
        if self._handles:
            raise OptionError("this watch is already on; make a second one to look twice.")
        if self.optimizer is None:
            raise OptionError("there is no optimizer to watch: watch(model, optimizer), or hand over .callback().")
        self._moves = Moves(self._own(self.optimizer))
        begun = time.perf_counter()
        self._start = begun - (self._ended - self._start)  # what an earlier time of this watch took counts on
        self._ended = begun
        if self.drift is not None and not self._seen:
            self.drift.begin()
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]
        try:
            self._look()
        except BaseException:
            self._off()
            raise
        taken = time.perf_counter() - begun
        self._spent, self._setup = self._spent + taken, self._setup + taken
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._off()
        if kind is None and not self._record.steps:
            warn("watch: no step of the optimizer was seen inside the block; is another optimizer at work?")

    def _off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._close()
        self._moves.forget()
        self._ended = time.perf_counter()

    def _look(self) -> None:
        """Look at the layers' outputs from now until the next step."""
        modules = dict(Layers(self.model).items())
        edits = {path: self._reader(path, modules[path]) for path in self.layers}
        self._sums: dict[str, Sums] = {}
        self._probe = Probe(self.model, (), edits=edits)
        self._probe.__enter__()

    def _close(self) -> None:
        if self._probe is not None:
            probe, self._probe = self._probe, None
            probe.__exit__(None, None, None)

    def _reader(self, path: str, module: nn.Module) -> Callable[[Any], Any]:
        def read(output: Any) -> Any:
            if torch.is_grad_enabled():
                begun = time.perf_counter()
                with torch.no_grad():
                    found = sums_of(module, output)
                if found is not None:
                    known = self._sums.get(path)
                    if known is None:
                        self._sums[path] = found
                    else:
                        known.add(found)
                self._spent += time.perf_counter() - begun
            return output

        return read

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        if self._probe is None:
            return None
        begun = time.perf_counter()
        self._moves.begin()
        self._spent += time.perf_counter() - begun
        kwargs = dict(kwargs)
        closure = kwargs.pop("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._read_gradients()
            return None

        def watched() -> Any:  # forward and backward pass run inside of the step, as in LBFGS and Lightning
            found = closure()
            self._read_gradients()
            return found

        return (args[0], watched, *args[2:]), kwargs

    def _read_gradients(self) -> None:
        """Read the gradients of the step, once, and look at the layers no more."""
        if self._probe is None:
            return
        begun = time.perf_counter()
        self._close()
        self._record.note("gradient norm", self._moves.gradients())
        self._spent += time.perf_counter() - begun

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._moves.begun:
            self._read_gradients()  # of an optimizer that has not called its closure
        begun = time.perf_counter()
        if self._moves.begun:
            self._measure()
        self._seen += 1
        self._since += 1
        self._spent += time.perf_counter() - begun
        if self._due():
            begun = time.perf_counter()
            self._look()
            self._spent += time.perf_counter() - begun

    def _measure(self) -> None:
        sizes, ratio = self._moves.end()
        self._record.note("weight norm", sizes)
        self._record.note("update ratio", ratio)
        numbers = {path: sums.numbers() for path, sums in self._sums.items()}
        for quantity in HEALTH:
            self._record.note(quantity, {path: found[quantity] for path, found in numbers.items()})
        if self.drift is not None:
            self._record.note("drift", self.drift.now())
        self._record.close(self._seen, max((sums.rows for sums in self._sums.values()), default=0))
        self._since = 0

    def _due(self) -> bool:
        """Whether the next step is to be measured."""
        if self.every != "auto":
            return self._seen % self.every == 0
        device = next(self.model.parameters()).device.type
        fewest = 0 if device == "cpu" else FEWEST_BETWEEN
        elapsed = time.perf_counter() - self._start
        each = (self._spent - self._setup) / max(1, len(self._record.steps))
        return self._since >= fewest and self._spent + each <= SEEN * self.budget * elapsed

    def log(self, **values: float | torch.Tensor) -> None:
        """Keep numbers of the training loop with the last step that was taken, such as `log(loss=loss)`.

        Raises:
            OptionError: when a value is no single number.
        """
        self.log_at(max(self._seen - 1, 0), **values)

    def log_at(self, step: int, **values: float | torch.Tensor) -> None:
        """The same with a step, counted from 0."""
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
            optimizer: which of those that `configure_optimizers` returns.

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
            method=f"hooks on {type(self.optimizer).__name__}.step",
            settings={"every": self.every, "budget": self.budget, "layers": tuple(self.layers)},
            checks={"share of time": torch.tensor(share), "steps seen": torch.tensor(self._seen)},
        )

    def __repr__(self) -> str:
        state = "on" if self._handles else "off"
        return f"Watch({type(self.model).__name__}, {state}: {len(self._record.steps)} of {self._seen} steps measured)"
