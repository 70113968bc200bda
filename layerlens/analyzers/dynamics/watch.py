"""Look on while a model is trained: gradients, updates, activations and drift of every layer, at a bounded price."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ...errors import OptionError, check_count
from ...layers import Layers, Selection
from ...probe import Probe
from ...results import TrainingHistory
from ..features import FeatureReader
from .drift import Drift
from .layer_statistics import HEALTH, Sums, norms, owners, sums_of
from .lightning import lightning_callback
from .training_record import TrainingRecord

FEWEST_BETWEEN = 10
"""Steps between two measured ones on an accelerator, whose own time the clock of this process does not show."""


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    layers: Selection = None,
    *,
    every: int | Literal["auto"] = "auto",
    budget: float = 0.05,
    data: Any = None,
    forward: Callable[..., Any] | None = None,
) -> Watch:
    r"""Record what happens in every layer while the user's own loop trains the model.

    At the steps that are measured:

    - `"gradient norm"`: ||dL/dW|| of each layer's own parameters, before the optimizer's step;
    - `"update ratio"`: ||W' - W|| / ||W||, what the step changed (for plain SGD, lr ||dL/dW|| / ||W||), and
      `"weight norm"`: ||W||;
    - `"constant units"`: the share of units (channels, features) whose output is one number for all samples and places
      of the step, as that of a dead ReLU is; `"zeros"`: the share of values that are 0; `"activation mean"` and
      `"activation std"`;
    - `"drift"`, with `data`: 1 - CKA of what a layer makes of these samples now and at the start, both in eval mode
      (debiased linear CKA, Kornblith et al. 2019; Song et al. 2012): 0 is the same up to rotation and scale.

    Nothing stands on the model between measured steps, and nothing of the training changes: the loop's numbers are the
    same to the bit. Runs without gradients, such as a validation, are not counted. With gradient accumulation all
    forward passes of a step are taken together.

    Args:
        model: any module.
        optimizer: whose `step` is watched; None only for `callback()`.
        layers: whose outputs are looked at; None for all layers that have no layers inside them.
        every: measure each so many steps; `"auto"` as often as `budget` allows, the first step always.
        budget: with `"auto"`, the share of the time, from the start of the watch on, that measuring may take.
        data: inputs, `(samples, ...)`, for the drift; 8 samples or more. Each measured step costs a forward pass on
            them, and the sums of products of all samples.
        forward: `forward(model, *args, **kwargs)` to run on `data` in place of calling the model.

    Returns:
        A `Watch`: a context in which the training runs. Its `history` is a `TrainingHistory`, at any time.

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
        forward: Callable[..., Any] | None,
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
        self._before: dict[str, list[torch.Tensor]] = {}
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
        self._parameters = self._own(self.optimizer)
        self._start = self._ended = time.perf_counter()
        if self.drift is not None:
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
        self._spent = self._setup = time.perf_counter() - self._start
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._off()
        if kind is None and not self._record.steps:
            warnings.warn(
                "watch: no step of the optimizer was seen inside the block; is another optimizer at work?", stacklevel=2
            )

    def _off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._close()
        self._before = {}
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

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._probe is None:
            return
        begun = time.perf_counter()
        self._close()
        with torch.no_grad():
            self._before = {path: [one.detach().clone() for one in own] for path, own in self._parameters.items()}
            gradients = {
                path: [one.grad.coalesce().values() if one.grad.is_sparse else one.grad for one in own
                       if one.grad is not None]
                for path, own in self._parameters.items()
            }  # fmt: skip
            self._record.note("gradient norm", dict(zip(gradients, norms(gradients).tolist(), strict=True)))
        self._spent += time.perf_counter() - begun

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        begun = time.perf_counter()
        if self._before:
            self._measure()
        self._seen += 1
        self._since += 1
        self._spent += time.perf_counter() - begun
        if self._due():
            begun = time.perf_counter()
            self._look()
            self._spent += time.perf_counter() - begun

    def _measure(self) -> None:
        with torch.no_grad():
            moved = {
                path: [new.detach() - old for new, old in zip(self._parameters[path], before, strict=True)]
                for path, before in self._before.items()
            }
            sizes = norms(self._before)
            change = norms(moved)
        self._before = {}
        ratio = torch.where(change == 0, 0.0, change / sizes)
        self._record.note("weight norm", dict(zip(moved, sizes.tolist(), strict=True)))
        self._record.note("update ratio", dict(zip(moved, ratio.tolist(), strict=True)))
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
        return self._since >= fewest and self._spent + each <= self.budget * elapsed

    def log(self, **values: float | torch.Tensor) -> None:
        """Keep numbers of the training loop with the step that they belong to, such as `log(loss=loss)`.

        Raises:
            OptionError: when a value is no single number.
        """
        for name, value in values.items():
            try:
                number = float(value.detach() if isinstance(value, torch.Tensor) else value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise OptionError(f"log({name}=...) takes one number, got {value!r}.") from error
            self._record.log(name, max(self._seen - 1, 0), number)

    def callback(self) -> Any:
        """A Lightning callback that watches the trainer's first optimizer from the start to the end of its fit.

        Raises:
            MissingPackage: when neither `lightning` nor `pytorch_lightning` is installed.
        """
        return lightning_callback(self)

    @property
    def history(self) -> TrainingHistory:
        """What was recorded so far."""
        now = time.perf_counter() if self._handles else self._ended
        share = self._spent / max(now - self._start, 1e-9)
        return self._record.history(
            method=f"hooks on {type(self.optimizer).__name__}.step",
            settings={"every": self.every, "budget": self.budget, "layers": tuple(self.layers)},
            checks={"share of time": torch.tensor(share), "steps seen": torch.tensor(self._seen)},
        )

    def __repr__(self) -> str:
        state = "on" if self._handles else "off"
        return f"Watch({type(self.model).__name__}, {state}: {len(self._record.steps)} of {self._seen} steps measured)"
