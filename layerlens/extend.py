"""Everything to extend layerlens from outside: a method, a measure, a relevance rule, a figure, each in one file.

A decorator registers what you write; it is then called like what layerlens brings: `lens.saliency.mine(x)`,
`lens.sensitivity.mine(x)`, `result.plot("mine")`. The pages "Write your own ..." of the documentation import from here
only.
"""

from .analyzers.common.measure_registry import measure
from .analyzers.common.registry import method
from .analyzers.common.scorer import Scorer, gradients, scoring, warn_of_zeros
from .errors import InputError, OptionError, PlotError, TargetError, warn
from .inputs.batches import Samples
from .inputs.inputs import Forward, Input
from .model.borrowed import borrowed
from .model.layers import Selection
from .plotting import Plot, figure, style
from .plotting.drawing.canvas import Canvas
from .plotting.drawing.images import finite_array, picture
from .plotting.plot import through
from .plotting.words import words
from .probes.probe import Probe
from .results import Attribution, Curve, LayerProfile, Matrix, Ranking, Relevance, Result
from .rules import (
    RULEBOOKS,
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Kind,
    Part,
    Role,
    Row,
    Rulebook,
    WSquare,
    ZBox,
    ZPlus,
    register,
)
from .signatures import public
from .targets.target import Spec, Target, as_target

__all__ = [
    "RULEBOOKS",
    "AlphaBeta",
    "Attribution",
    "Canvas",
    "Curve",
    "Epsilon",
    "Flat",
    "Forward",
    "Gamma",
    "Input",
    "InputError",
    "Kind",
    "LayerProfile",
    "Matrix",
    "OptionError",
    "Part",
    "Plot",
    "PlotError",
    "Probe",
    "Ranking",
    "Relevance",
    "Result",
    "Role",
    "Row",
    "Rulebook",
    "Samples",
    "Scorer",
    "Selection",
    "Spec",
    "Target",
    "TargetError",
    "WSquare",
    "ZBox",
    "ZPlus",
    "as_target",
    "borrowed",
    "figure",
    "finite_array",
    "gradients",
    "measure",
    "method",
    "picture",
    "public",
    "register",
    "scoring",
    "style",
    "through",
    "warn",
    "warn_of_zeros",
    "words",
]
