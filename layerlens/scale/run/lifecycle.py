"""Where a run begins, or goes on, and where it ends: the store that it fills."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from layerlens.errors import OptionError, SampleError, StoreError, warn

from ..store import manifest as manifests
from ..store.manifest import Manifest
from ..store.shard_files import file_name
from ..store.shard_storage import Folder, Memory
from ..store.store import Store

MOST = 200
"""Characters of a list of files in a message."""


def begin(folder: Path | None, manifest: Manifest, *, shared: bool) -> Store:
    """The store of a run: a new one, or that of an earlier start.

    Args:
        folder: of the files; None for memory.
        manifest: of the run that begins.
        shared: whether several processes take part.

    Raises:
        OptionError: when several processes have no folder.
        StoreError: when the folder holds something else, or another run.
    """
    if folder is None:
        if shared:
            raise OptionError("several processes need a folder that all of them reach: over(..., store=path).")
        return Store(Memory(), manifest)
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file; a store is a folder.")
    try:
        return _in_folder(folder, manifest)
    except OSError as error:
        raise StoreError(f"the folder {folder} cannot be made or written to ({error}).") from error


def _in_folder(folder: Path, manifest: Manifest) -> Store:
    if folder.is_dir() and not (folder / manifests.NAME).exists():
        strange = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if strange:
            raise StoreError(f"the folder {folder} holds {strange[0]!r} and is no store; give a new or empty one.")
    folder.mkdir(parents=True, exist_ok=True)
    if manifests.create(folder, manifest):
        return Store(Folder(folder), manifest)
    known = manifests.read(folder)
    if apart := known.differences(manifest):
        raise StoreError(f"{folder} holds another run: {'; '.join(apart)}. Give another folder, or ask for the same.")
    if known.versions != manifest.versions:
        told = f"{known.versions} there, {manifest.versions} now"
        warn(f"{folder} was begun with other versions: {told}; numbers may differ a little.")
    shelf = Folder(folder)
    shelf.remove_leftovers()
    return Store(shelf, known)


def check_noted(store: Store, on_error: str) -> None:
    """See that an earlier start noted no bad samples, where bad samples are to end the run.

    Raises:
        SampleError: when it did.
    """
    bad = store.errors if on_error == "raise" else {}
    if bad:
        first, shard = next(iter(bad)), store.manifest.plan.shard
        files = ", ".join(file_name(number) for number in dict.fromkeys(sample // shard for sample in bad))
        raise SampleError(
            f"{store.folder} notes {len(bad)} bad sample(s); sample {first}: {bad[first]}. Pass on_error='record' to "
            f"keep it so, or remove {files if len(files) < MOST else 'their shards'} to have them read again."
        )


def finish(store: Store, kind: str, *, stream: bool) -> None:
    """Note that the run is complete, and what was bad.

    Args:
        store: with every shard.
        kind: of the data, for messages.
        stream: whether its length is seen at its end only.

    Raises:
        SampleError: when all samples are bad.
        StoreError: when there was none, or a stream had another length at an earlier start.

    Warns:
        UserWarning: when some are bad, or the analysis warned; once, with the place in the data.
    """
    numbers, count = store.shelf.numbers(), store.manifest.plan.count or 0
    if not numbers:
        raise StoreError(f"the data ({kind}) gave no sample; an iterator can be read only once.")
    if stream:
        last = store.shelf.shard(numbers[-1])
        count = max([*last.tensor("ids").tolist(), *map(int, last.about["errors"])]) + 1
        _check_stream(store, numbers, count)
    plan = dataclasses.replace(store.manifest.plan, count=count)
    store.manifest = dataclasses.replace(store.manifest, complete=True, plan=plan)
    if store.folder is not None:
        manifests.replace(store.folder, store.manifest)
    if told := store.warnings:
        span, text = told[0]
        shown = f"samples {span.start} to {span.stop - 1}: {text}"
        warn(f"{len(told)} warnings of {store.manifest.kind}; {shown} All: store.warnings")
    bad = store.errors
    if not bad:
        return
    first = next(iter(bad))
    if len(bad) == count:
        raise SampleError(f"all {count} samples of the data are bad; sample {first}: {bad[first]}")
    few = f"{len(bad)} of {count} samples of the data are bad and have no rows; sample {first}: {bad[first]}."
    warn(f"{few} All: store.errors")


def _check_stream(store: Store, numbers: list[int], count: int) -> None:
    """See that only the last shard of a stream is not full: an earlier start may have seen a shorter stream."""
    plan = dataclasses.replace(store.manifest.plan, count=count)
    for number in range(numbers[-1] + 1):
        shard = store.shelf.shard(number)
        held, wanted = shard.shape("ids")[0] + len(shard.about["errors"]), len(plan.span(number))
        if held != wanted:
            raise StoreError(
                f"shard {number} holds {held} of {wanted} samples: the stream ended there at an earlier start, and is "
                f"longer now. Remove {file_name(number)} and run again."
            )
