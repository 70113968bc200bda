"""Where a score is made: contributions of parts, and the graph of what they send each other."""

from .attribution_graph import attribution_graph as attribution_graph
from .contributions import contributions as contributions
