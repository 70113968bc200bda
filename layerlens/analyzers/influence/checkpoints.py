"""States of a model during its training: read one at a time, never as a pickle."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from layerlens.errors import InputError

Checkpoint: TypeAlias = "Mapping[str, torch.Tensor] | str | os.PathLike[str]"
"""A state dict, or a file that holds one."""

GIVE = "give state dicts, .safetensors files, or files of torch.save(model.state_dict(), ...)"


def listed(checkpoints: Any) -> list[Checkpoint | None]:
    """Return the checkpoints as a list; [None] is the model as it is.

    Raises:
        InputError: when there are none, or one is of another type.
    """
    if checkpoints is None:
        return [None]
    single = isinstance(checkpoints, (str, os.PathLike, Mapping))
    if single or not isinstance(checkpoints, Sequence) or not checkpoints:
        raise InputError(f"checkpoints is a {type(checkpoints).__name__}; {GIVE}, in a list, one per checkpoint.")
    for number, one in enumerate(checkpoints):
        if not isinstance(one, (str, os.PathLike, Mapping)):
            raise InputError(f"checkpoint {number} is a {type(one).__name__}; {GIVE}.")
    return list(checkpoints)


def load(model: nn.Module, checkpoint: Checkpoint | None) -> None:
    """Load a checkpoint into a model; None leaves it as it is.

    Raises:
        InputError: when it cannot be read without running code, or does not fit the model.
    """
    if checkpoint is None:
        return
    name = "a state dict" if isinstance(checkpoint, Mapping) else f"checkpoint {checkpoint}"
    try:
        state = checkpoint if isinstance(checkpoint, Mapping) else _read(Path(checkpoint))
        model.load_state_dict(state)
    except (OSError, pickle.UnpicklingError, SafetensorError) as error:
        raise InputError(f"cannot read {name}: {error}\n{GIVE[0].upper()}{GIVE[1:]}.") from error
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(f"{name} does not fit this model: {error}\n{GIVE[0].upper()}{GIVE[1:]}.") from error


def _read(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
