"""The HTML report: what was run, checks, samples, profiles and layers of a model on one page."""

from .assemble import build, report
from .page import write

__all__ = ["build", "report", "write"]
