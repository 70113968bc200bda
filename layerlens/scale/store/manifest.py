"""What a store holds and how it was made: one JSON file next to the shards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from layerlens.errors import StoreError
from layerlens.files import whole
from layerlens.model.hashing import weights_digest
from layerlens.scale.data.source import DIGEST

from .fingerprint import structure
from .plan import Plan

FORMAT = "layerlens-store/1"
NAME = "manifest.json"


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a store holds and how it was made.

    Attributes:
        kind: the analysis: `"capture"`, `"saliency"`, ...
        settings: all its options.
        model: class, number of parameters, digest of the modules and their options, SHA-256 of the weights.
        data: number of samples, their kind, and a digest of some of them.
        plan: which samples are in which shard and batch.
        versions: versions of layerlens, torch and Python that began the store.
        complete: whether the run is finished.
    """

    kind: str
    settings: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    plan: Plan
    versions: dict[str, str]
    complete: bool = False

    @classmethod
    def of(
        cls, kind: str, settings: dict[str, Any], model: torch.nn.Module, data: dict[str, Any], plan: Plan
    ) -> Manifest:
        """Return the manifest of a new run."""
        about = {
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "modules": hashlib.sha256(structure(model).encode()).hexdigest()[:16],
            "sha256": weights_digest(model),
        }
        versions = {
            "layerlens": import_module("layerlens").__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        return cls(kind, json.loads(json.dumps(settings)), about, data, plan, versions)

    def differences(self, other: Manifest) -> list[str]:
        """Return how another run differs in what its numbers depend on, as sentences."""
        found = [] if self.kind == other.kind else [f"kind: {self.kind!r} there, {other.kind!r} now"]
        pairs = [("settings", self.settings, other.settings), ("model", self.model, other.model)]
        plans = [dataclasses.asdict(one.plan) | {"count": None} for one in (self, other)]
        pairs += [("data", self.data, other.data), ("plan", plans[0], plans[1])]
        for what, there, now in pairs:
            for name in dict.fromkeys([*there, *now]):
                known = what == "data" and there.get(DIGEST) is not None and there.get(DIGEST) == now.get(DIGEST)
                if there.get(name) != now.get(name) and not (name == "kind" and known):
                    found.append(f"{what}, {name}: {there.get(name)!r} there, {now.get(name)!r} now")
        return found

    def text(self) -> str:
        """Return the manifest as JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["plan"] = dataclasses.asdict(self.plan)
        return json.dumps({"format": FORMAT, **fields}, indent=1)


def create(folder: Path, manifest: Manifest) -> bool:
    """Write the manifest if there is none yet; return whether this process wrote it."""
    try:
        _write(folder, manifest, replace=False)
    except FileExistsError:
        return False
    return True


def replace(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest."""
    _write(folder, manifest, replace=True)


def _write(folder: Path, manifest: Manifest, *, replace: bool) -> None:
    with whole(folder / NAME, replace=replace) as file:
        file.write(manifest.text().encode())


def read(folder: Path) -> Manifest:
    """Read the manifest of a store.

    Raises:
        StoreError: when there is none, or it is damaged or of another format.
    """
    path = folder / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise StoreError(f"{path} has format {found['format']!r}; this layerlens reads {FORMAT!r}.")
        del found["format"]
        return Manifest(**{**found, "plan": Plan(**found["plan"])})
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{folder} is not a store of layerlens: it has no {NAME}.") from error
    except StoreError:
        raise
    except (KeyError, TypeError, ValueError, OSError) as error:
        raise StoreError(f"{path} is damaged, or not a manifest of layerlens ({error}).") from error
