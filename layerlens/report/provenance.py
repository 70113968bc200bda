"""What was run: the model, its weights, the inputs and the versions, and how to reproduce it."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

import layerlens
from layerlens.model.hashing import digest
from layerlens.model.layers import parameter_count
from layerlens.model.trees import describe
from layerlens.wrapped_model import WrappedModel

from .content import Fact
from .samples import Sample

PACKAGES = ("captum", "numpy", "matplotlib")
LONGEST = 400


def model_facts(lens: WrappedModel, weights: str, samples: Sequence[Sample]) -> tuple[Fact, ...]:
    """Return the facts about the run, for the head of the page."""
    model = lens.model
    parameters = list(model.parameters())
    kinds = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
    devices = sorted({str(parameter.device) for parameter in parameters})
    trained = sum(parameter.numel() for parameter in set(parameters) if parameter.requires_grad)
    count = parameter_count(model)
    packages = [f"torch {torch.__version__}"]  # with its build for CPUs or CUDA, which the metadata may leave out
    versions = ", ".join(packages + [f"{name} {metadata.version(name)}" for name in PACKAGES])
    made = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return (
        ("Model", f"{type(model).__module__}.{type(model).__qualname__}"),
        ("Parameters", f"{count:,}" + (f", {trained:,} of them open to training" if trained != count else "")),
        ("Weights, SHA-256", weights),
        ("Kept as", f"{', '.join(kinds) or 'no parameters'} on {', '.join(devices) or 'the CPU'}"),
        ("Samples", str(len(samples))),
        ("layerlens", layerlens.__version__),
        ("Made with", f"{versions}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("Made on", made),
    )


def input_facts(sample: Sample) -> list[Fact]:
    """Return shape, range and SHA-256 of the tensors of one sample."""
    rows = []
    for name, tensor in sample.inputs.tensors().items():
        called = "input" if len(sample.inputs.tensors()) == 1 else f"input {name}"
        rows.append((called, f"{describe(tensor)}{_span(tensor)}"))
    rows.append(("input, SHA-256", digest(sample.inputs.tensors().items())))
    return rows


def _span(tensor: torch.Tensor) -> str:
    if tensor.is_complex() or not tensor.numel():
        return ""
    low, high = tensor.min(), tensor.max()
    return f", {float(low):.4g} to {float(high):.4g}" if low.is_floating_point() else f", {int(low)} to {int(high)}"


def recipe(lens: WrappedModel, samples: Sequence[Sample], path: str | os.PathLike[str], options: dict[str, Any]) -> str:
    """Return Python code that reproduces the report, given the model and the inputs."""
    known = ["model"]
    for name in ("class_names", "tokenizer", "forward"):
        if getattr(lens, name) is not None:
            known.append(f"{name}={name}")
    texts = [sample.text for sample in samples]
    given = repr(texts) if all(text is not None for text in texts) and sum(map(len, map(str, texts))) < 2000 else None
    lines = ["from layerlens import Lens", ""]
    if given is not None:
        lines.append(f"inputs = {given}")
    lines += [
        f"lens = Lens({', '.join(known)})  # the weights have the SHA-256 given above",
        "lens.report(",
        "    inputs," + ("" if given is not None else "  # the samples have the SHA-256 given below"),
        f"    # {_targets([sample.target.label for sample in samples])}",
        f"    {_literal(options.pop('targets'))},",
        f"    path={os.fspath(path)!r},",
        *(f"    {name}={value!r}," for name, value in options.items() if value is not None),
        ")",
    ]
    return "\n".join(lines)


def _targets(labels: list[str]) -> str:
    if len(set(labels)) == 1:
        return f"target: {labels[0]!r}"
    return f"targets, sample by sample: {', '.join(map(repr, labels))}"


def _literal(targets: object) -> str:
    """Targets as code, if they are names and indices."""
    parts = targets if isinstance(targets, (list, tuple)) else [targets]
    return repr(targets) if all(part is None or isinstance(part, (int, str)) for part in parts) else "targets"


def settings_text(settings: dict[str, Any]) -> str:
    """Return the settings of a method in one line; long values are cut and marked."""
    return "; ".join(f"{name}: {_short(value)}" for name, value in settings.items()) or "none"


def _short(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return describe(value)
    if isinstance(value, dict):
        text = "{" + ", ".join(f"{name}: {_short(part)}" for name, part in value.items()) + "}"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} letters)"
