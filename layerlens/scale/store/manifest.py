"""What a store holds and how it was made: one JSON file next to the shards."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import secrets
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from layerlens.errors import OptionError, StoreError
from layerlens.files import read_json, whole
from layerlens.model.hashing import weights_digest
from layerlens.scale.data.source import DIGEST, same_samples

from .fingerprint import code_in, without_code
from .plain_values import added, structure
from .plan import Plan
from .reached import UNKNOWN, Reached

FORMAT = "layerlens-store/2"
NAME = "manifest.json"
MOST_BYTES = 2**26
"""The most that is read of a manifest."""
SHOWN = 120
"""Characters of a setting in a message."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a store holds and how it was made.

    Attributes:
        kind: the analysis: `"capture"`, `"saliency"`, ...
        settings: all its options.
        model: class, number of parameters, digests of the modules and their options and attributes, SHA-256 of the
            weights.
        data: number of samples, their kind, and a digest of some of them.
        plan: which samples are in which shard and batch.
        versions: versions of layerlens, torch and Python that began the store.
        code: the user's functions that the model and the settings reach, by name, each with a digest of its source
            text, and the values that they read; see `Reached`. Empty if `version` stands for them.
        version: the version that the user gave for the code.
        run: number of the run, which its shards repeat.
        complete: whether the run is finished.
    """

    kind: str
    settings: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    plan: Plan
    versions: dict[str, str]
    code: dict[str, str]
    version: str | None
    run: str
    complete: bool = False

    @classmethod
    def of(
        cls,
        kind: str,
        settings: dict[str, Any],
        model: torch.nn.Module,
        data: dict[str, Any],
        plan: Plan,
        version: str | None = None,
    ) -> Manifest:
        """Return the manifest of a new run; a version is used instead of the code."""
        about = {
            "class": f"{type(model).__module__}.{type(model).__qualname__}",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "modules": hashlib.sha256(structure(model).encode()).hexdigest()[:16],
            "sha256": weights_digest(model),
        }
        code: dict[str, str] = {}
        if version is None:
            reached = Reached()
            about["attributes"] = reached.model(model)
            code = reached.code
            for name, text in code_in(settings).items():
                code |= added(code, name.partition(" #")[0], text)
        else:
            settings = without_code(settings)
        versions = {
            "layerlens": import_module("layerlens").__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        known = json.loads(json.dumps(settings))
        return cls(kind, known, about, data, plan, versions, code, version, secrets.token_hex(8))

    @property
    def unknown(self) -> dict[str, str]:
        """What cannot be fingerprinted, with the reason."""
        return {name: text.removeprefix(UNKNOWN) for name, text in self.code.items() if text.startswith(UNKNOWN)}

    def is_sound(self) -> bool:
        """Whether the fields have the types that they should have."""
        texts = [self.kind, self.run, self.version or "", *self.code.values(), *self.versions.values()]
        parts = (self.settings, self.model, self.data)
        return (
            all(isinstance(text, str) for text in texts)
            and all(isinstance(part, dict) for part in parts)
            and isinstance(self.complete, bool)
        )

    def differences(self, other: Manifest) -> list[str]:
        """Return how another run differs in what its numbers depend on, as sentences."""
        found = [] if self.kind == other.kind else [f"kind: {self.kind!r} there, {other.kind!r} now"]
        if self.version != other.version:
            found.append(f"version: {self.version!r} there, {other.version!r} now")
        plans = [dataclasses.asdict(one.plan) | {"count": None} for one in (self, other)]
        pairs = [("settings", self.settings, other.settings), ("model", self.model, other.model)]
        pairs += [("data", self.data, other.data), ("plan", plans[0], plans[1])]
        if self.version == other.version:
            pairs.append(("code", self.code, other.code))
        for what, there, now in pairs:
            if what == "data" and same_samples(there.get(DIGEST), now.get(DIGEST)):
                there, now = (
                    {name: part for name, part in one.items() if name not in ("kind", DIGEST)} for one in (there, now)
                )
            found += _differences(what, there, now)
        return found

    def text(self) -> str:
        """Return the manifest as JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["plan"] = dataclasses.asdict(self.plan)
        return json.dumps({"format": FORMAT, "sha256": _checksum(fields), **fields}, indent=1)


def _differences(what: str, there: Any, now: Any) -> Iterator[str]:
    """Say where two nested settings differ.

    Yields:
        Sentences.
    """
    if isinstance(there, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*there, *now]):
            yield from _differences(f"{what}, {name}", there.get(name), now.get(name))
    elif there != now:
        texts = (text if len(text) <= SHOWN else f"{text[:SHOWN]}..." for text in map(repr, (there, now)))
        yield f"{what}: {' there, '.join(texts)} now"


def _checksum(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


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


def plan_in(folder: Path) -> Plan | None:
    """Return the plan of a store; None if there is no store, or a damaged one."""
    try:
        return read(folder).plan
    except StoreError:
        return None


def read(folder: Path) -> Manifest:
    """Read the manifest of a store.

    Raises:
        StoreError: when there is none, or it is damaged or of another format.
    """
    path = folder / NAME
    try:
        found = read_json(path, MOST_BYTES)
        kind = found.pop("format")
        if kind != FORMAT:
            raise StoreError(
                f"{path} has format {str(kind)[:SHOWN]!r}; this layerlens reads {FORMAT!r}. The shards there are plain "
                "safetensors files; to compute them again, give another folder."
            )
        checksum = found.pop("sha256")
        manifest = Manifest(**{**found, "plan": Plan(**found["plan"])})
        if checksum != _checksum(found) or not manifest.is_sound():
            raise StoreError(f"{path} is damaged: its content is not what was written (SHA-256).")
        return manifest
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(f"{folder} is not a store of layerlens: it has no {NAME}.") from error
    except StoreError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, OSError, OptionError) as error:
        raise StoreError(f"{path} is damaged, or not a manifest of layerlens ({error}).") from error
