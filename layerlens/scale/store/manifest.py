"""What a store holds and how it was made: one JSON file beside the shards."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import socket
from pathlib import Path
from typing import Any

import torch

from layerlens import __version__
from layerlens.errors import StoreError
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
        kind: of the analysis: `"capture"`, `"saliency"`, ...
        settings: every option of it.
        model: class, number of parameters, digest of the modules and their options, SHA-256 of the weights.
        data: how many samples, of what kind, and a digest of some of them.
        plan: which samples stand in which shard and batch.
        versions: of layerlens, torch and Python that began the store.
        complete: whether the run came to its end.
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
        """The manifest of a run that begins."""
        about = {
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "modules": hashlib.sha256(structure(model).encode()).hexdigest()[:16],
            "sha256": weights_digest(model),
        }
        versions = {"layerlens": __version__, "torch": torch.__version__, "python": platform.python_version()}
        return cls(kind, json.loads(json.dumps(settings)), about, data, plan, versions)

    def differences(self, other: Manifest) -> list[str]:
        """How another run differs in what its numbers depend on, as sentences."""
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
        """As JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["plan"] = dataclasses.asdict(self.plan)
        return json.dumps({"format": FORMAT, **fields}, indent=1)


def create(folder: Path, manifest: Manifest) -> bool:
    """Write the manifest where there is none yet; whether this process was the one to do so."""
    temporary = _write_aside(folder, manifest)
    try:
        os.link(temporary, folder / NAME)  # unlike a rename, this fails where another process was first
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if (folder / NAME).exists():
            return False
        os.replace(temporary, folder / NAME)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return True


def replace(folder: Path, manifest: Manifest) -> None:
    """Write the manifest over the one that is there, in one step."""
    os.replace(_write_aside(folder, manifest), folder / NAME)


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
        raise StoreError(f"{folder} is no store of layerlens: it has no {NAME}.") from error
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path} is damaged, or no manifest of layerlens ({error}).") from error


def _write_aside(folder: Path, manifest: Manifest) -> Path:
    temporary = folder / f".{NAME}.{socket.gethostname()}.{os.getpid()}.tmp"
    temporary.write_text(manifest.text(), encoding="utf-8")
    return temporary
