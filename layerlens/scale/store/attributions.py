"""Attributions of some samples, restored from the columns of a store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from layerlens.errors import StoreError
from layerlens.results import Attribution, Entry, Ledger, Relevance

if TYPE_CHECKING:
    from .store import Store

KINDS = {"input": "all inputs", "additive": "all constants", "absorbed": "all rules"}


def attribution(store: Store, samples: Sequence[int]) -> Attribution:
    """Return the attribution of some samples; see `Store.attribution`.

    Raises:
        StoreError: when the store has no attributions, or samples differ in shape.
    """
    about: dict[str, Any] = next((shard.about["result"] for shard in store.shards if shard.about["result"]), {})
    if "signed" not in about:
        raise StoreError(f"this store is of {store.manifest.kind}, not attributions; read its columns: {list(store)}.")
    if not samples:
        raise StoreError("no samples were given; give their numbers.")
    names = list(store)

    def rows(name: str) -> torch.Tensor:
        column = store[name]
        found = [column.of(sample) for sample in samples]
        if len({one.shape for one in found}) > 1:
            raise StoreError(f"samples {list(samples)} differ in shape; read them one by one.")
        return torch.stack(found)

    def with_prefix(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): rows(name) for name in names if name.startswith(prefix)}

    def one_or_several(name: str) -> Any:
        return rows(name) if name in names else with_prefix(f"{name}/") or None

    def texts(name: str) -> list[Any] | None:
        if name not in names:
            return None
        column = store[name]
        return [json.loads(bytes(column.of(sample).tolist())) for sample in samples]

    scored: list[str] = texts("target") or []
    fields = {name: about[name] for name in ("signed", "units", "target", "method", "settings", "cost")}
    fields |= {"axes": None if about["axes"] is None else tuple(about["axes"]), "values": one_or_several("values")}
    fields |= {"score": rows("score"), "checks": with_prefix("checks/"), "tokens": _by_input(texts("tokens"))}
    fields["texts"] = _by_input(texts("texts"))
    fields |= {
        "standard_error": one_or_several("standard error"),
        "skewness": one_or_several("skewness"),
        "targets": tuple(scored) if set(scored) - {about["target"]} else None,
    }
    fields["features"] = {name: tuple(titles) for name, titles in about.get("features", {}).items()}
    fields |= {"index": _index(store, samples), "degrees": about.get("degrees")}
    if about["class"] != "Relevance":
        return Attribution(**fields)
    entries = tuple(Entry(kind, "", source, rows(f"ledger/{kind}")) for kind, source in KINDS.items())
    layers: Mapping[str, torch.Tensor] = with_prefix("layers/")
    calls: dict[str, list[torch.Tensor]] = {}
    for name, tensor in layers.items():
        path, _, number = name.rpartition("#")  # "rnn#1" is the second call; a layer itself may have such a name
        calls.setdefault(path if path in layers and number.isdigit() else name, []).append(tensor)
    return Relevance(
        **fields,
        ledger=Ledger(fields["score"], entries),
        layers={path: tuple(tensors) for path, tensors in calls.items()},
        rules_used={},
    )


def _index(store: Store, samples: Sequence[int]) -> tuple[str | int, ...] | None:
    """The names of samples, their numbers where they have none; None where no sample of the store has a name."""
    if "index" not in list(store):
        return None

    def name(sample: int) -> Any:
        try:
            return json.loads(bytes(store["index"].of(sample).tolist()))
        except StoreError:  # the first rows of a table that is numbered from 0
            return sample

    return tuple(name(sample) for sample in samples)


def _by_input(rows: list[Any] | None) -> Any:
    """The texts of samples, by input where there are several."""
    if not rows or not isinstance(rows[0], dict):
        return rows
    return {name: [row[name] for row in rows] for name in rows[0]}
