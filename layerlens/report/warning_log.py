"""What the analyzers warned of while a report was made, and on which samples."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

ONE_SAMPLE = "one sample gives no interval"


class Told:
    """Collects warnings, each text once; those that are not for users go their way."""

    def __init__(self) -> None:
        self._labels: dict[str, list[str]] = {}

    @contextlib.contextmanager
    def of(self, label: str | None = None) -> Iterator[None]:
        """Collect what is warned of in the block, on the sample `label`; None for what is of no single sample."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for one in caught:
            text = " ".join(str(one.message).split())
            if not issubclass(one.category, (UserWarning, RuntimeWarning)):
                warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
            elif ONE_SAMPLE not in text:  # each sample is run for itself, which is meant
                labels = self._labels.setdefault(text, [])
                if label is not None and label not in labels:
                    labels.append(label)

    def texts(self, count: int) -> tuple[str, ...]:
        """The texts, each with the samples it is about where there are several and it is not about all `count`."""
        return tuple(
            f"{', '.join(labels)}: {text}" if labels and len(labels) < count else text
            for text, labels in self._labels.items()
        )
