"""A watch as a callback of Lightning's Trainer, which knows the optimizer only when the fit begins."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ...errors import MissingPackage

if TYPE_CHECKING:
    from .watch import Watch


def lightning_callback(watch: Watch) -> Any:
    """A callback that turns the watch on with the fit's first optimizer, and off when it ends, also by an error.

    Raises:
        MissingPackage: when neither `lightning` nor `pytorch_lightning` is installed.
    """
    base = _base()

    class WatchLayers(base):  # type: ignore[misc, valid-type]
        """Watches the layers while the trainer fits."""

        def on_train_start(self, trainer: Any, module: Any) -> None:
            """The optimizers exist from here on."""
            watch.optimizer = _plain(trainer.optimizers[0])
            watch.__enter__()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            """Keep the loss."""
            loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
            if loss is not None:
                watch.log(loss=loss)

        def on_train_end(self, trainer: Any, module: Any) -> None:
            """The fit is over."""
            watch.__exit__(None, None, None)

        def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
            """The fit failed, or was interrupted: nothing may stay on the model."""
            watch.__exit__(type(exception), exception, None)

    return WatchLayers()


def _plain(optimizer: Any) -> Any:
    """The torch optimizer inside of Lightning's wrapper."""
    return getattr(optimizer, "_optimizer", optimizer)


def _base() -> type[Any]:
    for package in ("lightning.pytorch", "pytorch_lightning"):
        try:
            found: type[Any] = importlib.import_module(package).Callback
            return found
        except ImportError:
            continue
    raise MissingPackage("a callback for Lightning needs lightning: pip install lightning.")
