"""The beginning and the end of a run: its store, new or from an earlier start, and its summary."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from layerlens.errors import OptionError, SampleError, StoreError, warn
from layerlens.files import FORMATS, printable

from ..store import manifest as manifests
from ..store.manifest import Manifest
from ..store.shard_files import file_name
from ..store.shard_storage import Folder, Memory
from ..store.store import Store

FEW = 4
"""Functions that are named in a message."""
MOST = 200
"""The most characters of a list of files in a message."""


def begin(folder: Path | None, manifest: Manifest, *, shared: bool) -> Store:
    """Return the store of a run: a new one, or the one of an earlier start.

    Args:
        folder: folder of the files; None for memory.
        manifest: manifest of the run.
        shared: whether several processes take part.

    Raises:
        OptionError: when several processes have no folder.
        StoreError: when the folder holds something else, another run, or one of code that cannot be fingerprinted.

    Warns:
        UserWarning: when code cannot be fingerprinted, so that the run cannot be resumed.
    """
    if folder is None:
        if shared:
            raise OptionError("several processes need a folder that all of them can reach: over(..., store=path).")
        return Store(Memory(), manifest)
    if os.path.exists(folder) and not folder.is_dir():
        raise StoreError(f"{folder} is a file; a store is a folder.")
    if not os.path.exists(folder) and folder.suffix.lower().removeprefix(".") in FORMATS:
        raise StoreError(f"a store is a folder, and {folder.name} ends like a file: store={folder.stem!r}.")
    try:
        return _in_folder(folder, manifest, shared)
    except StoreError:
        raise
    except (OSError, ValueError) as error:  # a name with a zero in it is a ValueError
        raise StoreError(f"the folder {printable(folder)} cannot be made or written to ({error}).") from error


def _in_folder(folder: Path, manifest: Manifest, shared: bool) -> Store:
    if folder.is_dir() and not (folder / manifests.NAME).exists():
        strange = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if strange:
            raise StoreError(
                f"the folder {folder} has {strange[0]!r} in it and is not a store; give a new or empty one."
            )
    unknown = manifest.unknown
    names = "; ".join(f"{name}: {why}" for name, why in list(unknown.items())[:FEW])
    names += f"; and {len(unknown) - FEW} more" if len(unknown) > FEW else ""
    advice = "over(..., version='1') says that the code is of a version of yours, to be changed with the code."
    if unknown and shared:
        raise StoreError(f"code that this run depends on cannot be fingerprinted: {names}. {advice}")
    folder.mkdir(parents=True, exist_ok=True)
    if manifests.create(folder, manifest):
        if unknown:
            warn(f"this run cannot be resumed, as code that it depends on cannot be fingerprinted: {names}. {advice}")
        return Store(Folder(folder, manifest.run), manifest)
    known = manifests.read(folder)
    if differences := known.differences(manifest):
        raise StoreError(
            f"{folder} holds another run: {'; '.join(differences)}. Give another folder, or the same options."
        )
    if unknown:
        raise StoreError(f"{folder} is not resumed: whether its code has changed is not known, as it cannot be "
                         f"fingerprinted: {names}. Give another folder. {advice}")  # fmt: skip
    if known.versions != manifest.versions:
        versions = f"{known.versions} there, {manifest.versions} now"
        warn(f"{folder} was begun with other versions: {versions}; numbers may differ slightly.")
    storage = Folder(folder, known.run)
    storage.remove_leftovers()
    if manifest.plan.count is None and known.complete:  # a stream may be longer now
        known = dataclasses.replace(known, complete=False, plan=manifest.plan)
        manifests.replace(folder, known)
    storage.check(known.plan.shards)
    return Store(storage, known)


def check_bad_samples(store: Store, on_error: str) -> None:
    """Check that an earlier start noted no bad samples, if bad samples end the run.

    Raises:
        SampleError: when it did.
    """
    bad = store.errors if on_error == "raise" else {}
    if bad:
        first, shard = next(iter(bad)), store.manifest.plan.shard
        files = ", ".join(file_name(number) for number in dict.fromkeys(sample // shard for sample in bad))
        raise SampleError(
            f"{store.folder} notes {len(bad)} bad sample(s); sample {first}: {bad[first]}. Pass on_error='record' to "
            f"leave them out, or remove {files if len(files) < MOST else 'their shards'} to have them read again."
        )


def finish(store: Store, kind: str, *, stream: bool) -> None:
    """Note that the run is complete, and report bad samples.

    Args:
        store: store with every shard.
        kind: kind of the data, for messages.
        stream: whether the length of the data is unknown before its end.

    Raises:
        SampleError: when all samples are bad.
        StoreError: when there were no samples, or a stream had another length at an earlier start.

    Warns:
        UserWarning: when some are bad, or the analysis warned; once, with the samples.
    """
    numbers, count = store.storage.numbers(), store.manifest.plan.count or 0
    if not numbers:
        raise StoreError(f"the data ({kind}) has no samples; an iterator can be read only once.")
    if stream:
        last = store.storage.shard(numbers[-1])
        count = max([*last.tensor("ids").tolist(), *map(int, last.about["errors"])]) + 1
        _check_stream(store, numbers, count)
    plan = dataclasses.replace(store.manifest.plan, count=count)
    store.manifest = dataclasses.replace(store.manifest, complete=True, plan=plan)
    if store.folder is not None:
        manifests.replace(store.folder, store.manifest)
    if warnings := store.warnings:
        span, text = warnings[0]
        shown = f"samples {span.start} to {span.stop - 1}: {text}"
        warn(f"{len(warnings)} warnings of {store.manifest.kind}; {shown} All: store.warnings")
    bad = store.errors
    if not bad:
        return
    first = next(iter(bad))
    if len(bad) == count:
        raise SampleError(f"all {count} samples of the data are bad; sample {first}: {bad[first]}")
    few = f"{len(bad)} of {count} samples of the data are bad and have no rows; sample {first}: {bad[first]}."
    warn(f"{few} All: store.errors")


def _check_stream(store: Store, numbers: list[int], count: int) -> None:
    """Check that only the last shard of a stream is not full, because an earlier start may have had a shorter stream.

    Raises:
        StoreError: when another shard is not full.
    """
    plan = dataclasses.replace(store.manifest.plan, count=count)
    for number in range(numbers[-1] + 1):
        shard = store.storage.shard(number)
        held, wanted = shard.shape("ids")[0] + len(shard.about["errors"]), len(plan.span(number))
        if held != wanted:
            raise StoreError(
                f"shard {number} holds {held} of {wanted} samples: the stream ended there at an earlier start, and is "
                f"longer now. Remove {file_name(number)} and run again."
            )
