"""A data set through an analyzer: stores, the local loop, torchrun and Ray."""

from .engines import LocalEngine, RayEngine, TorchrunEngine
from .over import Over, over
from .store.store import Store, open_store

__all__ = ["LocalEngine", "Over", "RayEngine", "Store", "TorchrunEngine", "open_store", "over"]
