"""A watch as a callback of Lightning's Trainer, which has the optimizer only once the fit begins."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from layerlens.errors import MissingPackage, OptionError, warn

if TYPE_CHECKING:
    from .watch import Watch


def lightning_callback(watch: Watch, optimizer: int = 0) -> Any:
    """Return a callback that turns the watch on when a fit begins, and off when it ends, also by an error.

    Raises:
        MissingPackage: when neither `lightning` nor `pytorch_lightning` is installed.
    """
    base = _callback_class()

    class WatchLayers(base):  # type: ignore[misc, valid-type]
        """Watches the layers while the trainer fits."""

        def __init__(self) -> None:
            super().__init__()
            self._step = 0

        @property
        def state_key(self) -> str:
            """A key for each optimizer: a trainer may have a watch on every one."""
            return f"WatchLayers[{optimizer}]"

        def on_train_start(self, trainer: Any, module: Any) -> None:
            """Start the watch: the optimizers exist from here on."""
            watch.optimizer = _optimizer_at(trainer.optimizers, optimizer)
            watch.__enter__()

        def on_train_batch_start(self, trainer: Any, module: Any, batch: object, index: int) -> None:
            """Note the step: with gradient accumulation several batches belong to one."""
            self._step = watch.seen

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: object, index: int) -> None:
            """Keep the loss, as the training step returned it."""
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if loss is None:
                return
            if module.automatic_optimization:  # Lightning has divided it by the batches of a step
                loss = loss * trainer.accumulate_grad_batches
            watch.log_at(self._step, loss=loss)

        def on_train_end(self, trainer: Any, module: Any) -> None:
            """Stop the watch."""
            watch.__exit__(None, None, None)

        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            """Stop the watch of a fit that failed or was interrupted: nothing may stay on the model."""
            watch.__exit__(type(exception), exception, None)

    return WatchLayers()


def _optimizer_at(optimizers: list[Any], index: int) -> Any:
    """Return one of a trainer's optimizers.

    Raises:
        OptionError: when there is none of that number.
    """
    if not 0 <= index < len(optimizers):
        raise OptionError(f"callback({index}): the trainer has {len(optimizers)} optimizer(s), counted from 0.")
    if len(optimizers) > 1 and index == 0:
        warn(
            f"watch: the trainer has {len(optimizers)} optimizers, and this watch sees the steps of the first; give a "
            "second watch's .callback(1) as well.",
        )
    return optimizers[index]


def _callback_class() -> type[Any]:
    """Import the class that callbacks of Lightning derive from.

    Raises:
        MissingPackage: when no package that has it is installed.
    """
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found: type[Any] = importlib.import_module(package).Callback
            return found
        except ImportError:
            continue
    raise MissingPackage("a callback for Lightning needs lightning: pip install lightning.")
